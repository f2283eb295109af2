import VFIOPCI

/// QEMU's teaching device (docs/specs/edu.rst): inverts, computes factorials, copies by DMA, interrupts.
struct Edu: PCIDevice {
  static let identity = PCIIdentity(
    vendor: 0x1234, device: 0x11E8, revision: 0x10, classCode: 0x00_FF_00,
    subsystem: (vendor: 0x1AF4, device: 0x1100))
  static let interrupts = Interrupts(intx: true, msi: 1)

  static let bars: [BAR<Edu>] = [
    .registers(0, size: 1 << 20, access: .words) {
      Constant(0x00, 0x0100_00ED)
      Register(0x04, \.liveness) { edu, _ in edu.liveness = ~edu.liveness }
      Register(0x08, \.factorial) { $0.compute(&$1) }.frozen { $0.status.contains(.computing) }
      Register(0x20, \.status, writable: .raisesWhenDone)
      Register(0x24, \.causes, writable: [])
      Doorbell(0x60) { $0.raise($1, &$2) }
      Doorbell(0x64) { $0.acknowledge($1, &$2) }
      Register(0x80, \.source).frozen { $0.isCopying }
      Register(0x88, \.destination).frozen { $0.isCopying }
      Register(0x90, \.count).frozen { $0.isCopying }
      Doorbell(0x98, \.command) { $0.copy($1, &$2) }
    }
  ]

  static let saved = [Saved<Edu>(\.buffer)]

  /// The address bits that the device can drive.
  var dmaMask: UInt64 = (1 << 28) - 1

  var liveness: UInt32 = 0
  var factorial: UInt32 = 0
  var status: Status = []
  var causes: Cause = []
  var source: UInt64 = 0
  var destination: UInt64 = 0
  var count: UInt64 = 0
  var command: Command = []
  /// At 0x40000 of the device's own address space.
  var buffer = [UInt8](repeating: 0, count: 4096)

  struct Status: OptionSet, RegisterValue {
    let rawValue: UInt32
    static let computing = Status(rawValue: 0x01)
    static let raisesWhenDone = Status(rawValue: 0x80)
  }

  /// Software may raise causes of its own besides these.
  struct Cause: OptionSet, RegisterValue {
    let rawValue: UInt32
    static let factorial = Cause(rawValue: 0x001)
    static let dma = Cause(rawValue: 0x100)
  }

  struct Command: OptionSet, RegisterValue {
    let rawValue: UInt64
    static let start = Command(rawValue: 1)
    /// From the buffer to memory; the other way without it.
    static let toMemory = Command(rawValue: 2)
    static let raisesWhenDone = Command(rawValue: 4)
  }

  var isCopying: Bool { command.contains(.start) }

  mutating func compute(_ bus: inout Bus) {
    status.insert(.computing)
    later(&bus) { [factorial] _ in
      // 34! and all beyond it have 32 factors of two: nothing is left in 32 bits.
      (1...max(1, min(factorial, 34))).reduce(1, &*)
    } finish: { edu, result, bus in
      edu.factorial = result
      edu.status.remove(.computing)
      if edu.status.contains(.raisesWhenDone) { edu.raise(.factorial, &bus) }
    }
  }

  mutating func raise(_ raised: Cause, _ bus: inout Bus) {
    causes.formUnion(raised)
    if !causes.isEmpty { bus.raise() }
  }

  mutating func acknowledge(_ acknowledged: Cause, _ bus: inout Bus) {
    causes.subtract(acknowledged)
    if causes.isEmpty { bus.lower() }
  }

  /// Starts a transfer. One that leaves the buffer moves nothing, one that faults stops there; both
  /// finish as any other.
  mutating func copy(_ requested: Command, _ bus: inout Bus) {
    guard !isCopying, requested.contains(.start) else { return }
    command = requested
    if requested.contains(.toMemory) {
      let bytes = Array(buffer[bufferRange(at: source)])
      later(&bus) { [address = destination & dmaMask] master in
        if !bytes.isEmpty { try? master.write(bytes.span, to: address) }
      } finish: { edu, _, bus in
        edu.finishCopy(&bus)
      }
    } else {
      let range = bufferRange(at: destination)
      later(&bus) { [address = source & dmaMask] master in
        range.isEmpty ? [] : (try? master.read(range.count, from: address)) ?? []
      } finish: { edu, bytes, bus in
        edu.buffer.replaceSubrange(range.lowerBound..<range.lowerBound + bytes.count, with: bytes)
        edu.finishCopy(&bus)
      }
    }
  }

  private mutating func finishCopy(_ bus: inout Bus) {
    command.remove(.start)
    if command.contains(.raisesWhenDone) { raise(.dma, &bus) }
  }

  /// The bytes of the buffer that a transfer at `address` covers; none if it leaves the buffer.
  private func bufferRange(at address: UInt64) -> Range<Int> {
    let (start, isBelow) = address.subtractingReportingOverflow(0x40000)
    guard !isBelow, start <= buffer.count, count <= UInt64(buffer.count) - start else {
      return 0..<0
    }
    return Int(start)..<Int(start + count)
  }
}
