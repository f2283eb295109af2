import Testing
import VFIOCore
import VFIOPCI

/// Reads the word at an address, then the word at the address that it found there.
private struct Chaser: PCIDevice {
  static let identity = PCIIdentity(vendor: 1, device: 2, revision: 3, classCode: 0)
  static let interrupts = Interrupts()
  static let ignoresBusMastering = true
  static let bars: [BAR<Chaser>] = [
    .registers(0, size: 16) {
      Doorbell(0x0, \.found) { $0.chase($1, steps: 2, &$2) }
      Register(0x4, \.stepsLeft, writable: 0)
    }
  ]
  var found: UInt32 = 0
  var stepsLeft: UInt32 = 0

  mutating func chase(_ address: UInt32, steps: UInt32, _ bus: inout Bus) {
    stepsLeft = steps
    guard steps > 0 else { return }
    later(&bus) { master in
      ((try? master.read(4, from: UInt64(address))) ?? []).reversed().reduce(0) {
        $0 << 8 | UInt32($1)
      }
    } finish: { chaser, word, bus in
      chaser.found = word
      chaser.chase(word, steps: steps - 1, &bus)
    }
  }
}

@Suite struct BusMasterTests {
  private let memory = ClientMemory([8, 0, 0, 0, 0, 0, 0, 0, 0x78, 0x56, 0x34, 0x12])

  @Test func `work that finishes may begin more, and may ignore bus mastering`() throws {
    let device = try PCIFunction(Chaser(), memory: Memory.make)
    try device.open(memory.dma, keepingState: false)
    try device.set(0, 0, UInt32(0))
    #expect(try eventually { try device.get(0, 4, as: UInt32.self) == 0 })
    #expect(try device.get(0, 0) == UInt32(0x1234_5678))
    #expect(memory.faults.summary.count == 0)
  }
}
