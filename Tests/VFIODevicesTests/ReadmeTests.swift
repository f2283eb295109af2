import Foundation
import Testing
import VFIOCore
import VFIOPCI

// The README's device, word for word.
struct Adder: PCIDevice {
  static let identity = PCIIdentity(
    vendor: 0x1234, device: 0xADD0, revision: 1, classCode: 0xFF_00_00)
  static let interrupts = Interrupts(intx: true, msi: 1)

  static let bars: [BAR<Adder>] = [
    .registers(0, size: 4096) {
      Register(0x00, \.sum, writable: 0)
      Doorbell(0x04) { $0.add($1, &$2) }
      Doorbell(0x08) { (_: inout Adder, _: UInt32, bus: inout Bus) in bus.lower() }
    }
  ]

  var sum: UInt32 = 0

  mutating func add(_ number: UInt32, _ bus: inout Bus) {
    sum &+= number
    if sum.isMultiple(of: 100) { bus.raise() }
  }
}

@Suite struct `The README's device` {
  @Test func `adds up and interrupts as the README says`() throws {
    let adder = try PCIFunction(Adder(), memory: Memory.make)
    #expect(try adder.get(0, 0x00) == UInt32(0))
    try adder.set(0, 0x04, UInt32(40))
    try adder.set(0, 0x04, UInt32(60))
    #expect(try adder.get(0, 0x00) == UInt32(100))
    #expect(try adder.get(7, 0x06) & UInt16(8) == 8)
    try adder.set(0, 0x08, UInt32(0))
    #expect(try adder.get(7, 0x06) & UInt16(8) == 0)
  }

  @Test func `is here as it is there`() throws {
    let here = try String(contentsOfFile: #filePath, encoding: .utf8)
    let package = URL(filePath: #filePath).appending(path: "../../..").standardized
    let readme = try String(contentsOf: package.appending(path: "README.md"), encoding: .utf8)
    let start = try #require(here.range(of: "struct Adder"))
    let end = try #require(here.range(of: "\n}\n", range: start.upperBound..<here.endIndex))
    #expect(readme.contains(here[start.lowerBound..<end.upperBound]))
  }
}
