import SystemPackage
import Testing
import VFIOCore

@testable import VFIOPCI

/// Raises the message whose number is written.
private struct Messages: PCIDevice {
  static let identity = PCIIdentity(vendor: 1, device: 2, revision: 3, classCode: 0)
  static let interrupts = Interrupts(
    intx: true, msi: 4, msix: MSIX(vectors: 4, bar: 1, table: 0, pending: 0x800))
  static let bars: [BAR<Messages>] = [
    .registers(0, size: 16) {
      Doorbell(0x0) { (_, vector: UInt32, bus) in bus.raise(Int(vector)) }
    }
  ]
}

/// MSI's capability is at 0x40, MSI-X's behind its 24 bytes.
@Suite struct `Masks of messages` {
  private let device: PCIFunction
  private let trigger = Trigger()
  private let msi: UInt64 = 0x40
  private let msix: UInt64 = 0x58

  init() throws { device = try PCIFunction(Messages(), memory: noMemory) }

  private func set(
    _ index: UInt32, _ action: InterruptRequest.Action, _ data: InterruptRequest.Data,
    start: UInt32 = 0
  ) throws {
    try device.setInterrupts(
      InterruptRequest(index: index, start: start, count: 1, action: action, data: data))
  }

  private func raise(_ vector: UInt32) throws { try device.set(0, 0, vector) }

  @Test func `are in the capability of several MSI, one bit each`() throws {
    #expect(try device.get(7, msi) == UInt32(0x0184_5805))
    try device.set(7, msi + 16, UInt32.max)
    #expect(try device.get(7, msi + 16) == UInt32(0xF))
    try device.set(7, msi + 20, UInt32.max)
    #expect(try device.get(7, msi + 20) == UInt32(0))
    #expect(try device.get(7, msix) == UInt32(0x0003_0011))
  }

  @Test func `come with a number of messages in use, which is at most the number that there is`()
    throws
  {
    try device.set(7, msi + 2, UInt16(0xFFFF))
    #expect(try device.get(7, msi + 2) == UInt16(0x01A5))
    try device.set(7, msi + 2, UInt16(0x10))
    #expect(try device.get(7, msi + 2) == UInt16(0x0194))
  }

  @Test func `hold an MSI back in configuration space, where it shows as pending`() throws {
    try device.setInterrupts(
      InterruptRequest(
        index: 1, start: 0, count: 2, action: .trigger, data: .triggers([nil, trigger])))
    try device.set(7, msi + 16, UInt8(0b10))
    try raise(1)
    #expect(trigger.count == 0)
    #expect(try device.get(7, msi + 20) == UInt32(0b10))
    try device.set(7, msi + 16, UInt8(0))
    #expect(trigger.count == 1)
    #expect(try device.get(7, msi + 20) == UInt32(0))
  }

  @Test func `of an MSI are the same by request and in configuration space`() throws {
    try set(1, .trigger, .triggers([trigger]))
    try set(1, .mask, .none)
    #expect(try device.get(7, msi + 16) == UInt32(1))
    // A write beside them leaves them alone.
    try device.set(7, msi + 17, UInt8(0))
    try device.set(7, 4, UInt16(2))
    try raise(0)
    #expect(trigger.count == 0)
    try device.set(7, msi + 16, UInt32(0))
    #expect(trigger.count == 1)
    try device.reset()
    #expect(try device.get(7, msi + 16) == UInt32(0))
  }

  @Test func `of MSI-X have one for the function, in its capability`() throws {
    try set(2, .trigger, .triggers([trigger]), start: 3)
    try device.set(7, msix + 2, UInt16(0xC000))
    try raise(3)
    #expect(trigger.count == 0)
    #expect(try device.get(1, 0x800) == UInt8(0b1000))
    try device.set(7, msix + 2, UInt16(0x8000))
    #expect(trigger.count == 1)
    #expect(try device.get(1, 0x800) == UInt8(0))
  }

  @Test func `of MSI-X are in its table, and by request`() throws {
    try set(2, .trigger, .triggers([trigger]), start: 3)
    try set(2, .mask, .none, start: 3)
    #expect(try device.get(1, 3 * 16 + 12) == UInt32(1))
    try raise(3)
    try device.set(1, 3 * 16 + 12, UInt32(0))
    #expect(trigger.count == 1)
  }

  @Test func `of a function's reset are gone`() throws {
    try set(2, .trigger, .triggers([trigger]))
    try device.set(7, msix + 2, UInt16(0xC000))
    try raise(0)
    try device.reset()
    try raise(0)
    #expect(trigger.count == 1)
  }

  @Test func `of INTx end when the client signals its event`() throws {
    let event = Trigger()
    try set(0, .trigger, .triggers([trigger]))
    try raise(0)
    try set(0, .unmask, .triggers([event]))
    event.ring()
    #expect(trigger.count == 2)
    // INTx isn't in use: its event isn't taken.
    try device.setInterrupts(
      InterruptRequest(index: 0, start: 0, count: 0, action: .trigger, data: .none))
    #expect(throws: Errno.invalidArgument) { try set(0, .unmask, .triggers([Trigger()])) }
    event.ring()
    #expect(trigger.count == 2)
  }
}
