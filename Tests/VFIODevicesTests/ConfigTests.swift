import SystemPackage
import Testing
import VFIOCore
import VFIOPCI

@testable import VFIODevices

@Suite struct ConfigTests {
  private let edu: any DeviceOperations
  private let scratch: any DeviceOperations

  init() throws {
    edu = try DeviceModels.make("edu", DeviceOptions(), memory: Memory.make)
    scratch = try DeviceModels.make("scratch", DeviceOptions(), memory: Memory.make)
  }

  @Test func `a function has nine regions, five kinds of interrupts and a reset`() {
    #expect(edu.information == DeviceInformation(flags: 3, regions: 9, interrupts: 5))
  }

  @Test func `configuration space is region 7, of 256 bytes`() throws {
    let config = try edu.region(7)
    #expect(config.size == 256 && config.readable && config.writable && config.mappable.isEmpty)
    #expect(try edu.bytes(7, 0, 256).prefix(4) == [0x34, 0x12, 0xE8, 0x11])
  }

  @Test func `a region that isn't there has size 0, and beyond the last is EINVAL`() throws {
    for index in [1, 6, 8] as [UInt32] {
      let region = try edu.region(index)
      #expect(region.size == 0 && !region.readable && !region.writable)
    }
    #expect(throws: Errno.invalidArgument) { try edu.region(9) }
    #expect(throws: Errno.invalidArgument) { try edu.region(.max) }
  }

  @Test func `the header says who the devices are`() throws {
    #expect(try edu.get(7, 0x00) == UInt32(0x11E8_1234))
    #expect(try edu.get(7, 0x08) == UInt32(0x00FF_0010))
    #expect(try edu.get(7, 0x0E) == UInt8(0))
    #expect(try edu.get(7, 0x2C) == UInt32(0x1100_1AF4))
    #expect(try edu.get(7, 0x3D) == UInt8(1))
    #expect(try scratch.get(7, 0x00) == UInt32(0x5C7A_1234))
    #expect(try scratch.get(7, 0x2C) == UInt32(0x5C7A_1234))
    #expect(try scratch.get(7, 0x3D) == UInt8(1))
  }

  @Test func `an identity can't be written`() throws {
    let before = try edu.bytes(7, 0, 4) + edu.bytes(7, 8, 4) + edu.bytes(7, 0x2C, 8)
    try edu.set(7, 0, UInt32.max)
    try edu.set(7, 8, UInt32.max)
    try edu.set(7, 0x2C, UInt64.max)
    #expect(try edu.bytes(7, 0, 4) + edu.bytes(7, 8, 4) + edu.bytes(7, 0x2C, 8) == before)
  }

  @Test func `COMMAND keeps just the bits that a function has`() throws {
    try edu.set(7, 4, UInt16.max)
    #expect(try edu.get(7, 4) == UInt16(0x0547))
    try edu.set(7, 4, UInt16(0))
    #expect(try edu.get(7, 4) == UInt16(0))
  }

  @Test func `COMMAND decodes without bus mastering at start and after a first open`() throws {
    #expect(try edu.get(7, 4) == UInt16(0x0003))
    try edu.set(7, 4, UInt16(0x0404))
    try edu.open(ClientMemory([]).dma, keepingState: false)
    #expect(try edu.get(7, 4) == UInt16(0x0003))
  }

  @Test func `a reset keeps COMMAND and clears the rest`() throws {
    try edu.set(7, 4, UInt16(0x0406))
    try edu.set(7, 0x10, UInt32(0xFEB0_0000))
    try edu.set(7, 0x3C, UInt8(11))
    try edu.set(7, 0x42, UInt16(1))
    try edu.reset()
    #expect(try edu.get(7, 4) == UInt16(0x0406))
    #expect(try edu.get(7, 0x10) == UInt32(0))
    #expect(try edu.get(7, 0x3C) == UInt8(0))
    #expect(try edu.get(7, 0x42) == UInt16(0x0080))
  }

  @Test func `BARs tell their size when all ones are written`() throws {
    for place in stride(from: UInt64(0x10), through: 0x30, by: 4) {
      try edu.set(7, place, UInt32.max)
      try scratch.set(7, place, UInt32.max)
    }
    #expect(try edu.get(7, 0x10) == UInt32(0xFFF0_0000))
    #expect(try edu.bytes(7, 0x14, 20) == [UInt8](repeating: 0, count: 20))
    #expect(try scratch.get(7, 0x10) == UInt32(0xFFF0_0000))
    #expect(try scratch.get(7, 0x14) == UInt32(0))
    #expect(try scratch.get(7, 0x18) == UInt64(0xFFFF_FFFF_FFE0_000C))
    #expect(try scratch.get(7, 0x20) == UInt32(0xFFFF_F000))
    #expect(try scratch.get(7, 0x24) == UInt32(0))
    #expect(try scratch.get(7, 0x30) == UInt32(0))
  }

  @Test func `accesses may have any size and begin anywhere`() throws {
    #expect(try edu.bytes(7, 1, 3) == [0x12, 0xE8, 0x11])
    try edu.set(7, 0x11, [0xFF, 0xF5, 0x12])
    #expect(try edu.get(7, 0x10) == UInt32(0x12F0_0000))
    try edu.set(7, 3, [0, 0x06])
    #expect(try edu.get(7, 4) == UInt16(0x0006))
    try edu.set(7, 0, [UInt8](repeating: 0xFF, count: 256))
    #expect(try edu.get(7, 0) == UInt32(0x11E8_1234))
    #expect(try edu.bytes(7, 256, 0) == [])
  }

  @Test(
    arguments: [(0, 257), (255, 2), (256, 1), (257, 0), (.max, 1), (.max, 256)] as [(UInt64, Int)])
  func `an access beyond 256 bytes fails with EINVAL`(_ offset: UInt64, _ count: Int) {
    #expect(throws: Errno.invalidArgument) { try edu.bytes(7, offset, count) }
    #expect(throws: Errno.invalidArgument) {
      try edu.set(7, offset, [UInt8](repeating: 0, count: count))
    }
  }

  /// The capabilities' identifiers and places, from the chain.
  private func capabilities(_ device: any DeviceOperations) throws -> [UInt8: UInt64] {
    #expect(try device.get(7, 6, as: UInt16.self) & 0x10 == 0x10)
    var found: [UInt8: UInt64] = [:]
    var place = UInt64(try device.get(7, 0x34, as: UInt8.self))
    while place != 0, found.count < 48 {
      found[try device.get(7, place)] = place
      place = UInt64(try device.get(7, place + 1, as: UInt8.self))
    }
    return found
  }

  @Test func `edu has MSI with a 64-bit address and one vector`() throws {
    let found = try capabilities(edu)
    #expect(found.count == 1)
    let msi = try #require(found[0x05])
    #expect(try edu.get(7, msi + 2) == UInt16(0x0080))
    try edu.set(7, msi + 2, [UInt8](repeating: 0xFF, count: 12))
    #expect(try edu.get(7, msi + 2) == UInt16(0x0081))
    #expect(try edu.get(7, msi + 4) == UInt64(0xFFFF_FFFF_FFFF_FFFC))
    #expect(try edu.get(7, msi + 12) == UInt16.max)
  }

  @Test func `scratch has MSI-X with eight vectors in BAR 4`() throws {
    let found = try capabilities(scratch)
    #expect(found.count == 1)
    let msix = try #require(found[0x11])
    #expect(try scratch.get(7, msix + 2) == UInt16(7))
    #expect(try scratch.get(7, msix + 4) == UInt32(4))
    #expect(try scratch.get(7, msix + 8) == UInt32(0x804))
    try scratch.set(7, msix + 2, [UInt8](repeating: 0xFF, count: 10))
    #expect(try scratch.get(7, msix + 2) == UInt16(0xC007))
    #expect(try scratch.get(7, msix + 8) == UInt32(0x804))
  }
}
