import SystemPackage
import Testing
import VFIOCore
import VFIOPCI

@testable import VFIODevices

@Suite struct EduDMATests {
  private typealias R = EduRegister
  private static let buffer: UInt64 = 0x40000
  private let edu: any DeviceOperations
  private let memory = ClientMemory(
    (0..<16384).map { UInt8(truncatingIfNeeded: $0 * 7 + $0 / 256) })

  init() throws {
    edu = try DeviceModels.make("edu", DeviceOptions(), memory: Memory.make)
    try edu.open(memory.dma, keepingState: false)
    try edu.set(7, 4, UInt16(0x0006))
  }

  private var faults: UInt64 { memory.faults.summary.count }

  private func start(
    _ source: UInt64, _ destination: UInt64, _ count: UInt64, _ command: UInt64
  ) throws {
    try edu.set(0, R.source, source)
    try edu.set(0, R.destination, destination)
    try edu.set(0, R.count, count)
    try edu.set(0, R.command, command)
  }

  private func finished() throws -> Bool {
    try eventually { try edu.get(0, R.command, as: UInt64.self) & 1 == 0 }
  }

  private func copy(
    _ source: UInt64, _ destination: UInt64, _ count: UInt64, _ command: UInt64
  ) throws {
    try start(source, destination, count, command)
    #expect(try finished())
  }

  @Test(arguments: [1, 100, 4096])
  func `bytes go from memory to the buffer and back`(_ count: UInt64) throws {
    let after = try memory.bytes(8192 + count, 16)
    try copy(0, Self.buffer, count, 1)
    try copy(Self.buffer, 8192, count, 3)
    #expect(try memory.bytes(8192, Int(count)) == memory.bytes(0, Int(count)))
    #expect(try memory.bytes(8192 + count, 16) == after)
  }

  @Test func `a part of the buffer keeps the rest`() throws {
    try copy(0, Self.buffer, 4096, 1)
    try copy(1, Self.buffer + 4095, 1, 1)
    try copy(Self.buffer, 8192, 4096, 3)
    #expect(try memory.bytes(8192, 4095) == memory.bytes(0, 4095))
    #expect(try memory.bytes(8192 + 4095, 1) == memory.bytes(1, 1))
  }

  @Test func `a transfer raises cause 0x100 if the command asks for it`() throws {
    try copy(0, Self.buffer, 4, 1)
    #expect(try edu.get(0, R.causes) == UInt32(0))
    try copy(0, Self.buffer, 4, 5)
    #expect(try edu.get(0, R.causes) == UInt32(0x100))
    #expect(try edu.get(0, R.command) == UInt64(4))
  }

  @Test func `a command without the start bit is ignored`() throws {
    try edu.set(0, R.command, UInt64(6))
    #expect(try edu.get(0, R.command) == UInt64(0))
  }

  @Test func `addresses are cut at 28 bits`() throws {
    try copy(0xFFFF_FFFF_F000_0000, Self.buffer, 16, 1)
    try copy(Self.buffer, 0x1000_0000 + 8192, 16, 3)
    #expect(try memory.bytes(8192, 16) == memory.bytes(0, 16))
    #expect(faults == 0)
  }

  @Test func `dma_mask sets the address bits`() throws {
    let edu = try DeviceModels.make(
      "edu", DeviceOptions(["dma_mask": .integer(0xFFF)]), memory: Memory.make)
    try edu.open(memory.dma, keepingState: false)
    try edu.set(7, 4, UInt16(0x0006))
    try edu.set(0, R.source, UInt64(0x1004))
    try edu.set(0, R.destination, Self.buffer)
    try edu.set(0, R.count, UInt64(4))
    try edu.set(0, R.command, UInt64(1))
    #expect(try eventually { try edu.get(0, R.command, as: UInt64.self) & 1 == 0 })
    try edu.set(0, R.source, Self.buffer)
    try edu.set(0, R.destination, UInt64(0))
    try edu.set(0, R.command, UInt64(3))
    #expect(try eventually { try edu.get(0, R.command, as: UInt64.self) & 1 == 0 })
    #expect(try memory.bytes(0, 4) == memory.bytes(4, 4))
  }

  @Test(
    arguments: [
      (0x40000, 4097), (0x40FFF, 2), (0x41001, 0), (0x3FFFF, 1), (0, 1), (0x40000, .max),
      (0x40001, .max), (.max, 1), (.max, .max), (0x41000, 1), (0x8000_0000_0004_0000, 1),
    ] as [(UInt64, UInt64)])
  func `a transfer that leaves the buffer moves nothing and finishes`(
    _ place: UInt64, _ count: UInt64
  ) throws {
    let before = try memory.bytes(0, 16384)
    try copy(0, place, count, 5)
    #expect(try edu.get(0, R.causes) == UInt32(0x100))
    try copy(place, 0, count, 7)
    #expect(try memory.bytes(0, 16384) == before)
    #expect(memory.arrived == 0)
  }

  @Test(arguments: [1, 3] as [UInt64])
  func `a fault is counted, and the transfer finishes`(_ command: UInt64) throws {
    if command == 1 {
      try copy(16380, Self.buffer, 8, command | 4)
    } else {
      try copy(Self.buffer, 16380, 8, command | 4)
    }
    #expect(try edu.get(0, R.causes) == UInt32(0x100))
    #expect(faults == 1)
  }

  @Test func `a transfer with bus mastering off is a fault`() throws {
    try edu.set(7, 4, UInt16(0x0002))
    try copy(0, Self.buffer, 4, 5)
    #expect(faults == 1)
    #expect(memory.arrived == 0)
    #expect(try edu.get(0, R.causes) == UInt32(0x100))
  }

  @Test func `a device that nobody opened has no memory to reach`() throws {
    edu.release()
    try copy(0, Self.buffer, 4, 1)
    #expect(memory.arrived == 0)
  }

  @Test func `an access doesn't wait for a transfer, whose registers ignore writes`() throws {
    memory.setClosed(true)
    try start(0, Self.buffer, 4, 1)
    #expect(eventually { memory.arrived == 1 })
    try start(1, 2, 3, 7)
    #expect(try edu.get(0, R.source) == UInt64(0))
    #expect(try edu.get(0, R.destination) == Self.buffer)
    #expect(try edu.get(0, R.count) == UInt64(4))
    #expect(try edu.get(0, R.command) == UInt64(1))
    try edu.set(0, R.liveness, UInt32(0))
    #expect(try edu.get(0, R.liveness) == UInt32.max)
    memory.setClosed(false)
    #expect(try finished())
    #expect(memory.arrived == 1)
  }

  @Test func `a reset voids the transfer in flight`() throws {
    memory.setClosed(true)
    try start(0, Self.buffer, 4096, 5)
    #expect(eventually { memory.arrived == 1 })
    try edu.reset()
    #expect(try edu.get(0, R.command) == UInt64(0))
    memory.setClosed(false)
    // The queue is serial: once an empty transfer has finished, the old one has ended.
    try copy(0, Self.buffer, 0, 1)
    try copy(Self.buffer, 8192, 4096, 3)
    #expect(try memory.bytes(8192, 4096) == [UInt8](repeating: 0, count: 4096))
    #expect(try edu.get(0, R.causes) == UInt32(0))
  }

  @Test func `a transfer that waits in the queue when the device is reset never begins`() throws {
    memory.setClosed(true)
    try start(0, Self.buffer, 4, 1)
    #expect(eventually { memory.arrived == 1 })
    try edu.reset()
    try start(0, Self.buffer, 4, 1)
    try edu.reset()
    memory.setClosed(false)
    try copy(0, Self.buffer, 4, 1)
    #expect(memory.arrived == 2)
  }

  @Test func `a transfer that outlives its client never touches the next one's memory`() throws {
    memory.setClosed(true)
    try start(0, Self.buffer, 4, 1)
    #expect(eventually { memory.arrived == 1 })
    edu.release()
    let next = ClientMemory([UInt8](repeating: 0xEE, count: 4096))
    try edu.open(next.dma, keepingState: true)
    memory.setClosed(false)
    #expect(try finished())
    #expect(next.arrived == 0)
    try copy(Self.buffer, 0, 4, 3)
    #expect(try next.bytes(0, 4) == memory.bytes(0, 4))
  }

  @Test func `a reset keeps bus mastering on`() throws {
    try edu.reset()
    try copy(0, Self.buffer, 4, 1)
    #expect(faults == 0)
  }

  @Test func `a device is let go when its last transfer has ended`() throws {
    var device: (any DeviceOperations)? = try DeviceModels.make(
      "edu", DeviceOptions(), memory: Memory.make)
    weak let watched = device
    try device?.open(memory.dma, keepingState: false)
    try device?.set(7, 4, UInt16(0x0006))
    memory.setClosed(true)
    try device?.set(0, R.destination, Self.buffer)
    try device?.set(0, R.count, UInt64(4))
    try device?.set(0, R.command, UInt64(1))
    #expect(eventually { memory.arrived == 1 })
    device?.release()
    device = nil
    #expect(watched != nil)
    memory.setClosed(false)
    #expect(eventually { watched == nil })
  }
}
