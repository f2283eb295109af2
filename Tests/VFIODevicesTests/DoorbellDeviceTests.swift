import SystemPackage
import Testing
import VFIOCore
import VFIOPCI

@testable import VFIODevices

@Suite struct DoorbellDeviceTests {
  private let doorbell: any DeviceOperations

  init() throws {
    doorbell = try DeviceModels.make("doorbell", DeviceOptions(), memory: Memory.make)
    try doorbell.open(ClientMemory([]).dma, keepingState: false)
  }

  @Test func `BAR 0 has doorbells, and counts one of them until a reset`() throws {
    #expect(try doorbell.region(0).size == 4096)
    for value in [0, 7, UInt32.max] { try doorbell.set(0, 4, value) }
    #expect(try doorbell.get(0, 0) == UInt32(3))
    try doorbell.reset()
    #expect(try doorbell.get(0, 0) == UInt32(0))
    #expect(
      try doorbell.ioEvents(0)
        == [IOEvent(offset: 4, size: 4)]
        + (0..<8).map { IOEvent(offset: 8, size: 4, value: $0) })
  }

  @Test
  func `a doorbell raises the MSI-X vector that is written, or INTx, and another lowers that`()
    throws
  {
    let triggers = (0..<8).map { _ in Trigger() }
    try doorbell.trigger(2, .triggers(triggers), count: 8)
    for vector in [3, 8, UInt32.max] { try doorbell.set(0, 8, vector) }
    #expect(triggers.map(\.count) == [0, 0, 0, 1, 0, 0, 0, 0])
    try doorbell.trigger(2, .none, count: 0)
    try doorbell.set(0, 8, UInt32(0))
    #expect(try doorbell.get(7, 6) == UInt16(0x0018))
    try doorbell.set(0, 0xC, UInt32(0))
    #expect(try doorbell.get(7, 6) == UInt16(0x0010))
  }

  @Test func `registers whose decoding is off fail with EIO`() throws {
    try doorbell.set(7, 4, UInt16(0x0001))
    #expect(throws: Errno.ioError) { try doorbell.bytes(0, 0, 4) }
    #expect(throws: Errno.ioError) { try doorbell.set(0, 4, UInt32(1)) }
  }
}
