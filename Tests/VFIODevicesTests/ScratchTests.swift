import SystemPackage
import Testing
import VFIOCore
import VFIOPCI

@testable import VFIODevices

@Suite struct ScratchTests {
  private let scratch: any DeviceOperations
  private let dma = ClientMemory([]).dma

  init() throws {
    scratch = try DeviceModels.make("scratch", DeviceOptions(), memory: Memory.make)
    try scratch.open(dma, keepingState: false)
  }

  @Test func `BAR 0 is 1 MiB by message`() throws {
    let bar = try scratch.region(0)
    #expect(bar.size == 1 << 20 && bar.readable && bar.writable)
    #expect(bar.mappable.isEmpty && bar.memory == nil)
  }

  @Test func `BAR 2 is 2 MiB, mappable after its first 4 KiB, and BAR 3 its upper half`() throws {
    let bar = try scratch.region(2)
    #expect(bar.size == 2 << 20)
    #expect(bar.mappable == [0x1000..<0x20_0000])
    #expect(bar.memory?.size == 2 << 20)
    #expect(try scratch.region(3).size == 0)
  }

  @Test func `there is no BAR 1`() throws {
    #expect(try scratch.region(1).size == 0)
    #expect(throws: Errno.invalidArgument) { try scratch.bytes(1, 0, 4) }
  }

  @Test func `BAR 4 holds the MSI-X table, by message`() throws {
    let bar = try scratch.region(4)
    #expect(bar.size == 4096 && bar.mappable.isEmpty)
    try scratch.set(4, 0x10, UInt64(0xFEE0_0001))
    #expect(try scratch.get(4, 0x10) == UInt64(0xFEE0_0000))
    #expect(try scratch.get(4, 0x1C) == UInt32(1))
    try scratch.set(4, 0x800, UInt64.max)
    #expect(try scratch.get(4, 0x800) == UInt64(0))
    #expect(throws: Errno.invalidArgument) { try scratch.bytes(4, 4093, 4) }
  }

  @Test(
    arguments: [
      (0, 0, 1), (0, 3, 7), (0, 0, 1 << 20), (2, 0xFFE, 4), (2, 1 << 20, 1 << 20),
      (0, (1 << 20) - 1, 1),
    ] as [(UInt32, UInt64, Int)]) func `memory keeps what is written, whatever its size and place`(
      _ region: UInt32, _ offset: UInt64, _ count: Int
    ) throws
  {
    let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ 5) }
    try scratch.set(region, offset, bytes)
    #expect(try scratch.bytes(region, offset, count) == bytes)
  }

  @Test(
    arguments: [
      (0, 1 << 20, 1), (0, (1 << 20) - 1, 2), (2, 2 << 20, 1), (0, .max, 1), (0, .max - 3, 4),
      (2, .max - 3, 8), (3, 0, 1), (6, 0, 1), (8, 0, 1), (9, 0, 1),
    ] as [(UInt32, UInt64, Int)]) func `an access that leaves the memory fails with EINVAL`(
      _ region: UInt32, _ offset: UInt64, _ count: Int
    )
  {
    #expect(throws: Errno.invalidArgument) { try scratch.bytes(region, offset, count) }
    #expect(throws: Errno.invalidArgument) {
      try scratch.set(region, offset, [UInt8](repeating: 1, count: count))
    }
  }

  @Test(arguments: [0, 2, 4] as [UInt32])
  func `memory whose decoding is off fails with EIO`(_ region: UInt32) throws {
    try scratch.set(7, 4, UInt16(0x0001))
    #expect(throws: Errno.ioError) { try scratch.bytes(region, 0, 4) }
    #expect(throws: Errno.ioError) { try scratch.set(region, 0, UInt32(1)) }
    #expect(throws: Errno.invalidArgument) { try scratch.bytes(region, .max, 4) }
  }

  @Test func `a reset leaves memory alone and empties the MSI-X table`() throws {
    try scratch.set(0, 0, UInt32(1))
    try scratch.set(2, 0x1000, UInt32(2))
    try scratch.set(4, 8, UInt32(3))
    try scratch.reset()
    #expect(try scratch.get(0, 0) == UInt32(1))
    #expect(try scratch.get(2, 0x1000) == UInt32(2))
    #expect(try scratch.get(4, 8) == UInt32(0))
  }

  @Test(arguments: [false, true])
  func `a new client's memory is a copy that an old mapping can't see`(_ keeping: Bool) throws {
    try scratch.set(2, 0x1000, UInt32(7))
    let old = try #require(try scratch.region(2).memory)
    scratch.release()
    try scratch.open(dma, keepingState: keeping)
    let new = try #require(try scratch.region(2).memory)
    #expect(old !== new)
    #expect(try scratch.get(2, 0x1000) == UInt32(7))
    try old.write([9, 9, 9, 9].span, at: 0x1000)
    #expect(try scratch.get(2, 0x1000) == UInt32(7))
    try scratch.set(2, 0x1000, UInt32(8))
    var seen = [UInt8](repeating: 0, count: 1)
    var span = seen.mutableSpan
    try old.read(at: 0x1000, into: &span)
    #expect(seen == [9])
  }

  @Test func `memory stays the same while a descriptor is open`() throws {
    let first = try #require(try scratch.region(2).memory)
    try scratch.open(dma, keepingState: false)
    scratch.release()
    #expect(try scratch.region(2).memory === first)
  }

  @Test func `memory that no client was given isn't copied`() throws {
    let copies = Trigger()
    let device = try DeviceModels.make("scratch", DeviceOptions()) { size throws(Errno) in
      CountedMemory(size, copies)
    }
    for _ in 0..<3 {
      try device.open(dma, keepingState: false)
      device.release()
    }
    #expect(copies.count == 0)
    _ = try device.region(0)
    _ = try device.region(2)
    try device.open(dma, keepingState: false)
    #expect(copies.count == 1)
  }

  @Test func `an open whose copy fails has not opened the device`() throws {
    let device = try DeviceModels.make("scratch", DeviceOptions()) { size throws(Errno) in
      UncopiableMemory(size)
    }
    try device.open(dma, keepingState: false)
    try device.set(7, 4, UInt16(0x0006))
    _ = try device.region(2)
    device.release()
    #expect(throws: Errno.noSpace) { try device.open(dma, keepingState: false) }
    #expect(throws: Errno.noSpace) { try device.open(dma, keepingState: false) }
    #expect(try device.get(7, 4) == UInt16(0x0006))
  }

  @Test func `its interrupts are raised by requests without an event`() throws {
    let triggers = (0..<8).map { _ in Trigger() }
    try scratch.trigger(2, .triggers(triggers), count: 8)
    try scratch.trigger(2, .none, start: 6, count: 2)
    #expect(triggers.map(\.count) == [0, 0, 0, 0, 0, 0, 1, 1])
    try scratch.trigger(2, .none, count: 0)
    try scratch.trigger(0, .triggers([triggers[0]]))
    try scratch.trigger(0, .none)
    #expect(triggers[0].count == 1)
  }
}

private final class CountedMemory: MappableMemory {
  let size: UInt64
  private let copies: Trigger
  var descriptor: FileDescriptor { FileDescriptor(rawValue: -1) }

  init(_ size: UInt64, _ copies: Trigger) {
    self.size = size
    self.copies = copies
  }
  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {}
  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {}
  func copy() throws(Errno) -> any MappableMemory {
    copies.signal()
    return self
  }
}

private final class UncopiableMemory: MappableMemory {
  let size: UInt64
  var descriptor: FileDescriptor { FileDescriptor(rawValue: -1) }
  init(_ size: UInt64) { self.size = size }
  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {}
  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {}
  func copy() throws(Errno) -> any MappableMemory { throw .noSpace }
}
