import SystemPackage
import Testing
import VFIOCore

@testable import VFIOPCI

/// One register of each sort, in a BAR that takes any access.
private struct Sample: PCIDevice {
  static let identity = PCIIdentity(vendor: 1, device: 2, revision: 3, classCode: 0x040506)
  static let interrupts = Interrupts()
  static let bars: [BAR<Sample>] = [
    .registers(0, size: 4096) {
      Constant(0x00, 0x1234_5678)
      Register(0x04, \.plain)
      Register(0x08, \.masked, writable: 0x0F)
      Register(0x09, \.events, clearable: 0xFF)
      Register(0x0A, \.half, writable: 0)
      Register(0x10, \.wide) { sample, _ in sample.writes += 1 }
      Register(0x18, \.writes, writable: 0)
      Register(0x1C, \.locked).frozen { $0.plain == 0xDEAD }
      Doorbell(0x20) { sample, rung, _ in sample.writes = rung }
      Doorbell(0x24, \.plain) { (sample, rung: UInt32, _) in sample.plain = rung &+ 1 }
        .ioeventfd()
      Doorbell(0x2E) { (sample, rung: UInt16, _) in sample.writes = UInt32(rung) }
        .ioeventfd([7, 0xFFFF])
    },
    .registers(1, size: 16, access: .words) {
      Register(0x0, \.wide)
      Register(0x8, \.plain)
    },
  ]
  var plain: UInt32 = 0
  var masked: UInt8 = 0xA5
  var events: UInt8 = 0xFF
  var half: UInt16 = 0xBEEF
  var wide: UInt64 = 0
  var writes: UInt32 = 0
  var locked: UInt32 = 7
}

@Suite struct RegisterTests {
  private let device: PCIFunction
  init() throws { device = try PCIFunction(Sample(), memory: noMemory) }

  @Test func `a constant reads the same after a write`() throws {
    try device.set(0, 0x00, UInt32(0))
    #expect(try device.get(0, 0x00) == UInt32(0x1234_5678))
  }

  @Test func `a byte written to a register leaves its other bytes`() throws {
    try device.set(0, 0x04, UInt32(0x1122_3344))
    try device.set(0, 0x06, UInt8(0xAA))
    #expect(try device.get(0, 0x04) == UInt32(0x11AA_3344))
  }

  @Test func `a write changes writable bits only`() throws {
    try device.set(0, 0x08, UInt8(0xFA))
    #expect(try device.get(0, 0x08) == UInt8(0xAA))
    try device.set(0, 0x0A, UInt16(0))
    #expect(try device.get(0, 0x0A) == UInt16(0xBEEF))
  }

  @Test func `a one written to a clearable bit clears it, a zero doesn't`() throws {
    let cleared = try PCIFunction(Clearing(), memory: noMemory)
    try cleared.set(0, 0, UInt8(0x0F))
    #expect(try cleared.get(0, 0) == UInt8(0xF0))
  }

  @Test func `an access that spans registers reaches each of them`() throws {
    try device.set(0, 0x02, [9, 9, 1, 2, 3, 4, 0x0B])
    #expect(try device.bytes(0, 0x02, 7) == [0x34, 0x12, 1, 2, 3, 4, 0xAB])
  }

  @Test func `what no register holds reads as all ones`() throws {
    #expect(try device.bytes(0, 0x0C, 6) == [0xFF, 0xFF, 0xFF, 0xFF, 0, 0])
    #expect(try device.bytes(0, 4092, 4) == [0xFF, 0xFF, 0xFF, 0xFF])
  }

  @Test func `the doorbells that allow it may be rung by eventfds, some for a value each`() throws {
    #expect(
      try device.ioEvents(0) == [
        IOEvent(offset: 0x24, size: 4), IOEvent(offset: 0x2E, size: 2, value: 7),
        IOEvent(offset: 0x2E, size: 2, value: 0xFFFF),
      ])
    #expect(try device.ioEvents(1) == [])
    #expect(try device.ioEvents(7) == [])
    for region in [2, 8, 9, .max] as [UInt32] {
      #expect(throws: Errno.invalidArgument) { try device.ioEvents(region) }
    }
  }

  @Test func `an effect runs once for each write`() throws {
    try device.set(0, 0x10, UInt64(1))
    try device.set(0, 0x12, UInt8(1))
    #expect(try device.get(0, 0x18) == UInt32(2))
    #expect(try device.get(0, 0x10) == UInt64(0x1_0001))
  }

  @Test func `a write runs no effect of the register before it`() throws {
    try device.set(0, 0x18, UInt32(0))
    #expect(try device.get(0, 0x18) == UInt32(0))
  }

  @Test func `a frozen register ignores writes until it thaws`() throws {
    try device.set(0, 0x04, UInt32(0xDEAD))
    try device.set(0, 0x1C, UInt32(8))
    #expect(try device.get(0, 0x1C) == UInt32(7))
    try device.set(0, 0x04, UInt32(0))
    try device.set(0, 0x1C, UInt32(8))
    #expect(try device.get(0, 0x1C) == UInt32(8))
  }

  @Test func `a doorbell acts on what is written, and reads as all ones or as its property`() throws
  {
    try device.set(0, 0x20, UInt32(77))
    #expect(try device.get(0, 0x18) == UInt32(77))
    #expect(try device.get(0, 0x20) == UInt32.max)
    try device.set(0, 0x24, UInt32(1))
    #expect(try device.get(0, 0x24) == UInt32(2))
  }

  @Test func `a reset puts back the value that the device was made with`() throws {
    var sample = Sample()
    sample.plain = 5
    let device = try PCIFunction(sample, memory: noMemory)
    try device.set(0, 0x04, UInt32(6))
    try device.reset()
    #expect(try device.get(0, 0x04) == UInt32(5))
  }

  @Test func `registers of words take four or eight bytes at their start`() throws {
    try device.set(1, 0, UInt64.max)
    #expect(try device.get(1, 0) == UInt64.max)
    #expect(try device.get(1, 8) == UInt32(0))
    for (offset, count) in [(0, 1), (0, 2), (0, 3), (0, 16), (8, 8), (4, 4), (1, 4)] {
      let ones = [UInt8](repeating: 0xFF, count: count)
      try device.set(1, 8, UInt32(0))
      try device.set(1, 0, UInt64(0))
      if offset + count <= 16 {
        try device.set(1, UInt64(offset), ones)
        #expect(try device.bytes(1, UInt64(offset), count) == ones)
        #expect(try device.get(1, 0) == UInt64(0), "\(count) bytes at \(offset)")
        #expect(try device.get(1, 8) == UInt32(0), "\(count) bytes at \(offset)")
      }
    }
  }

  @Test func `four bytes written to a register of eight are extended with zeros`() throws {
    try device.set(1, 0, UInt64.max)
    try device.set(1, 0, UInt32(5))
    #expect(try device.get(1, 0) == UInt64(5))
  }

  @Test(
    arguments: [
      (4096, 1), (4095, 2), (.max, 1), (.max - 3, 4), (.max - 3, 8), (1 << 63, 4),
    ] as [(UInt64, Int)]) func `an access that leaves its BAR fails with EINVAL`(
      _ offset: UInt64, _ count: Int
    )
  {
    #expect(throws: Errno.invalidArgument) { try device.bytes(0, offset, count) }
    #expect(throws: Errno.invalidArgument) {
      try device.set(0, offset, [UInt8](repeating: 0, count: count))
    }
  }

  @Test(arguments: [2, 3, 4, 5, 6, 8, 9, 255, UInt32.max])
  func `an access to a region that isn't there fails with EINVAL`(_ region: UInt32) {
    #expect(throws: Errno.invalidArgument) { try device.bytes(region, 0, 1) }
    #expect(throws: Errno.invalidArgument) { try device.set(region, 0, UInt8(0)) }
  }

  @Test func `registers of a BAR whose decoding is off fail with EIO`() throws {
    try device.set(7, 0x04, UInt16(0x0001))
    #expect(throws: Errno.ioError) { try device.bytes(0, 0, 4) }
    #expect(throws: Errno.ioError) { try device.set(0, 4, UInt32(1)) }
    try device.set(7, 0x04, UInt16(0x0002))
    #expect(try device.get(0, 4) == UInt32(0))
  }
}

private struct Clearing: PCIDevice {
  static let identity = PCIIdentity(vendor: 1, device: 2, revision: 3, classCode: 0)
  static let interrupts = Interrupts()
  static let bars: [BAR<Clearing>] = [
    .registers(0, size: 16) { Register(0, \.events, writable: 0, clearable: 0xFF) }
  ]
  var events: UInt8 = 0xFF
}
