import SystemPackage
import Testing
import VFIOCore

@testable import VFIOPCI

private let intx: UInt32 = 0
private let msi: UInt32 = 1
private let msix: UInt32 = 2
private let error: UInt32 = 3
private let request: UInt32 = 4

@Suite struct InterruptTests {
  private var lines = InterruptLines(
    Interrupts(
      intx: true, msi: 4, msix: MSIX(vectors: 8, bar: 4, table: 0, pending: 0x800)))
  private let trigger = Trigger()

  @Test func `each kind tells its flags and count`() throws {
    #expect(try lines.information(intx) == InterruptInformation(flags: 7, count: 1))
    #expect(try lines.information(msi) == InterruptInformation(flags: 11, count: 4))
    #expect(try lines.information(msix) == InterruptInformation(flags: 3, count: 8))
    #expect(try lines.information(error) == InterruptInformation(flags: 9, count: 1))
    #expect(try lines.information(request) == InterruptInformation(flags: 9, count: 1))
    #expect(throws: Errno.invalidArgument) { try lines.information(5) }
    #expect(throws: Errno.invalidArgument) { try lines.information(.max) }
  }

  @Test func `a kind that the function lacks has count 0 and takes no trigger`() throws {
    var lines = InterruptLines(Interrupts())
    for index in [intx, msi, msix] {
      #expect(try lines.information(index).count == 0)
      #expect(throws: Errno.invalidArgument) {
        try lines.set(index, .trigger, .triggers([trigger]))
      }
    }
  }

  @Test(
    arguments: [
      (0, 9), (8, 1), (8, 0), (7, 2), (.max, 1), (1, .max), (.max, .max), (2, .max - 1),
    ] as [(UInt32, UInt32)])
  mutating func `a range beyond the vectors, or beyond 2^32, fails with EINVAL`(
    _ start: UInt32, _ count: UInt32
  ) {
    for data in [.none, .bools([true]), .triggers([trigger])] as [InterruptRequest.Data] {
      #expect(throws: Errno.invalidArgument) {
        try lines.set(msix, .trigger, data, start: start, count: count)
      }
    }
  }

  @Test mutating func `an empty range that begins beyond the vectors fails with EINVAL`() throws {
    try lines.set(msix, .trigger, .triggers([trigger]))
    try lines.set(msix, .trigger, .triggers([]), start: 7, count: 0)
    #expect(throws: Errno.invalidArgument) {
      try lines.set(msix, .trigger, .triggers([]), start: 8, count: 0)
    }
  }

  @Test mutating func `data that are fewer than the count fail with EINVAL`() {
    #expect(throws: Errno.invalidArgument) {
      try lines.set(msix, .trigger, .triggers([trigger]), count: 2)
    }
    #expect(throws: Errno.invalidArgument) {
      try lines.set(msix, .trigger, .bools([]), count: 1)
    }
  }

  @Test func `a function without a pin never asserts INTx`() {
    var lines = InterruptLines(Interrupts(msi: 1))
    lines.raise(0)
    #expect(!lines.isAsserted)
  }

  // MARK: INTx

  @Test mutating func `INTx signals when it is asserted, and masks itself`() throws {
    try lines.set(intx, .trigger, .triggers([trigger]))
    lines.raise(0)
    #expect(trigger.count == 1)
    lines.lower()
    lines.raise(0)
    #expect(trigger.count == 1)
  }

  @Test mutating func `unmasking INTx signals again only while it is asserted`() throws {
    try lines.set(intx, .trigger, .triggers([trigger]))
    lines.raise(0)
    try lines.set(intx, .unmask, .none)
    #expect(trigger.count == 2)
    lines.lower()
    try lines.set(intx, .unmask, .bools([true]))
    #expect(trigger.count == 2)
    lines.raise(0)
    #expect(trigger.count == 3)
  }

  @Test mutating func `a masked INTx signals when it is unmasked`() throws {
    try lines.set(intx, .trigger, .triggers([trigger]))
    try lines.set(intx, .mask, .none)
    lines.raise(0)
    #expect(trigger.count == 0)
    try lines.set(intx, .unmask, .bools([false]))
    #expect(trigger.count == 0)
    try lines.set(intx, .unmask, .none)
    #expect(trigger.count == 1)
  }

  @Test mutating func `INTx that was asserted before it had a trigger signals when it gets one`()
    throws
  {
    lines.raise(0)
    #expect(lines.isAsserted)
    try lines.set(intx, .trigger, .triggers([trigger]))
    #expect(trigger.count == 1)
  }

  @Test mutating func `a disabled INTx is silent, and signals when it is enabled`() throws {
    try lines.set(intx, .trigger, .triggers([trigger]))
    lines.disableINTx(true)
    lines.raise(0)
    try lines.set(intx, .unmask, .none)
    try lines.set(intx, .trigger, .none)
    #expect(trigger.count == 0)
    lines.disableINTx(false)
    #expect(trigger.count == 1)
  }

  @Test mutating func `INTx is masked only while in use, one at a time`() throws {
    #expect(throws: Errno.invalidArgument) { try lines.set(intx, .mask, .none) }
    #expect(throws: Errno.invalidArgument) { try lines.set(intx, .unmask, .none) }
    try lines.set(intx, .trigger, .triggers([trigger]))
    #expect(throws: Errno.invalidArgument) { try lines.set(intx, .mask, .none, count: 0) }
    #expect(throws: Errno.invalidArgument) { try lines.set(intx, .unmask, .bools([]), count: 0) }
  }

  @Test mutating func `an event unmasks INTx, until it is taken away or another one comes`() throws
  {
    let event = Trigger()
    try lines.set(intx, .trigger, .triggers([trigger]))
    try lines.set(intx, .unmask, .triggers([event]))
    lines.raise(0)
    lines.unmask(by: Trigger())
    #expect(trigger.count == 1)
    lines.unmask(by: event)
    #expect(trigger.count == 2)
    try lines.set(intx, .unmask, .triggers([nil]))
    lines.unmask(by: event)
    #expect(trigger.count == 2)
  }

  @Test mutating func `a second event that unmasks fails with EBUSY`() throws {
    try lines.set(intx, .trigger, .triggers([trigger]))
    try lines.set(intx, .unmask, .triggers([Trigger()]))
    #expect(throws: Errno.resourceBusy) { try lines.set(intx, .unmask, .triggers([Trigger()])) }
    try lines.set(intx, .unmask, .triggers([nil]))
    try lines.set(intx, .unmask, .triggers([Trigger()]))
  }

  @Test mutating func `disabling INTx takes away the event that unmasks it`() throws {
    let event = Trigger()
    try lines.set(intx, .trigger, .triggers([trigger]))
    try lines.set(intx, .unmask, .triggers([event]))
    try lines.set(intx, .trigger, .none, count: 0)
    try lines.set(intx, .trigger, .triggers([trigger]))
    lines.raise(0)
    lines.unmask(by: event)
    #expect(trigger.count == 1)
  }

  @Test mutating func `an event that masks INTx, or masks or unmasks a message, fails with ENOTTY`()
    throws
  {
    try lines.set(intx, .trigger, .triggers([trigger]))
    #expect(throws: Errno.inappropriateIOCTLForDevice) {
      try lines.set(intx, .mask, .triggers([Trigger()]))
    }
    try lines.set(intx, .trigger, .none, count: 0)
    try lines.set(msix, .trigger, .triggers([trigger]))
    for action in [.mask, .unmask] as [InterruptRequest.Action] {
      #expect(throws: Errno.inappropriateIOCTLForDevice) {
        try lines.set(msix, action, .triggers([Trigger()]))
      }
    }
  }

  @Test mutating func `INTx that was disabled while masked comes back unmasked`() throws {
    try lines.set(intx, .trigger, .triggers([trigger]))
    try lines.set(intx, .mask, .none)
    try lines.set(intx, .trigger, .none, count: 0)
    try lines.set(intx, .trigger, .triggers([trigger]))
    lines.raise(0)
    #expect(trigger.count == 1)
  }

  @Test mutating func `a client finds INTx unmasked, however the last one left it`() throws {
    try lines.set(intx, .trigger, .triggers([trigger]))
    try lines.set(intx, .mask, .none)
    lines.removeTriggers()
    try lines.set(intx, .trigger, .triggers([trigger]))
    lines.raise(0)
    #expect(trigger.count == 1)
  }

  // MARK: Messages

  @Test(arguments: [msi, msix])
  mutating func `a message signals its own vector's trigger, each time`(_ kind: UInt32) throws {
    let other = Trigger()
    try lines.set(kind, .trigger, .triggers([other, trigger]), count: 2)
    lines.raise(1)
    lines.raise(1)
    #expect(trigger.count == 2)
    #expect(other.count == 0)
    #expect(!lines.isAsserted)
  }

  @Test mutating func `vectors are added one at a time after an empty first one`() throws {
    try lines.set(msix, .trigger, .triggers([nil]))
    try lines.set(msix, .trigger, .triggers([trigger]), start: 3)
    lines.raise(3)
    #expect(trigger.count == 1)
  }

  @Test mutating func `a replaced trigger is silent`() throws {
    let new = Trigger()
    try lines.set(msix, .trigger, .triggers([trigger]))
    try lines.set(msix, .trigger, .triggers([new]))
    lines.raise(0)
    #expect(trigger.count == 0)
    #expect(new.count == 1)
  }

  @Test mutating func `a replaced trigger is let go`() throws {
    var trigger: Trigger? = Trigger()
    weak let watched = trigger
    try lines.set(msix, .trigger, .triggers([trigger]))
    trigger = nil
    #expect(watched != nil)
    try lines.set(msix, .trigger, .triggers([nil]))
    #expect(watched == nil)
  }

  @Test mutating func `an MSI-X vector without a trigger is pending, and signals when it gets one`()
    throws
  {
    try lines.set(msix, .trigger, .triggers([trigger]))
    lines.raise(5)
    #expect(lines.vectors.bytes[0x800] == UInt8(1 << 5))
    try lines.set(msix, .trigger, .triggers([trigger]), start: 5)
    #expect(trigger.count == 1)
    #expect(lines.vectors.bytes[0x800] == UInt8(0))
  }

  @Test
  mutating func `the first trigger of an MSI-X vector unmasks it in the table, as the kernel does`()
    throws
  {
    #expect(lines.vectors.bytes[12] == UInt32(1))
    lines.write([0xFF, 0xFF, 0xFF, 0xFF].span, toVectorsAt: 12)
    lines.write([0xFF].span, toVectorsAt: 0x800)
    #expect(lines.vectors.bytes[12] == UInt32(1))
    #expect(lines.vectors.bytes[0x800] == UInt8(0))
    try lines.set(msix, .trigger, .triggers([trigger]))
    #expect(lines.vectors.bytes[12] == UInt32(0))
    lines.raise(0)
    #expect(trigger.count == 1)
    try lines.set(msix, .trigger, .triggers([nil]))
    #expect(lines.vectors.bytes[12] == UInt32(1))
  }

  @Test mutating func `an MSI-X vector that is masked in the table waits in the pending bits`()
    throws
  {
    try lines.set(msix, .trigger, .triggers([Trigger(), trigger]), count: 2)
    lines.write([1].span, toVectorsAt: 16 + 12)
    lines.raise(1)
    lines.raise(1)
    #expect(trigger.count == 0)
    #expect(lines.vectors.bytes[0x800] == UInt8(0b10))
    lines.write([0].span, toVectorsAt: 16 + 12)
    #expect(trigger.count == 1)
    #expect(lines.vectors.bytes[0x800] == UInt8(0))
  }

  @Test mutating func `another trigger for a masked MSI-X vector leaves it masked`() throws {
    try lines.set(msix, .trigger, .triggers([Trigger()]))
    lines.write([1].span, toVectorsAt: 12)
    try lines.set(msix, .trigger, .triggers([trigger]))
    lines.raise(0)
    #expect(trigger.count == 0)
    lines.write([0].span, toVectorsAt: 12)
    #expect(trigger.count == 1)
  }

  @Test
  mutating func `MSI-X's function mask holds all vectors back, and each vector's mask its own`()
    throws
  {
    let other = Trigger()
    try lines.set(msix, .trigger, .triggers([trigger, other]), count: 2)
    try lines.set(msix, .mask, .none, start: 1)
    lines.maskMessages(0, function: true)
    lines.raise(0)
    lines.raise(1)
    #expect(trigger.count == 0 && other.count == 0)
    lines.maskMessages(0, function: false)
    #expect(trigger.count == 1 && other.count == 0)
    try lines.set(msix, .unmask, .none, start: 1)
    #expect(other.count == 1)
  }

  @Test(arguments: [msi, msix])
  mutating func `a request masks messages, which wait and come when they are unmasked`(
    _ kind: UInt32
  ) throws {
    let triggers = (0..<4).map { _ in Trigger() }
    try lines.set(kind, .trigger, .triggers(triggers), count: 4)
    try lines.set(kind, .mask, .none, start: 1, count: 2)
    for vector in 0..<4 { lines.raise(vector) }
    #expect(triggers.map(\.count) == [1, 0, 0, 1])
    try lines.set(kind, .unmask, .bools([false, true]), start: 1, count: 2)
    #expect(triggers.map(\.count) == [1, 0, 1, 1])
    try lines.set(kind, .unmask, .none, count: 4)
    #expect(triggers.map(\.count) == [1, 1, 1, 1])
    for vector in 0..<4 { lines.raise(vector) }
    #expect(triggers.map(\.count) == [2, 2, 2, 2])
  }

  @Test(arguments: [msi, msix])
  mutating func `masking a message of a kind that isn't in use, or none, fails with EINVAL`(
    _ kind: UInt32
  ) throws {
    for action in [.mask, .unmask] as [InterruptRequest.Action] {
      #expect(throws: Errno.invalidArgument) { try lines.set(kind, action, .none) }
    }
    try lines.set(kind, .trigger, .triggers([trigger]))
    #expect(throws: Errno.invalidArgument) { try lines.set(kind, .mask, .none, count: 0) }
    #expect(throws: Errno.invalidArgument) { try lines.set(kind, .mask, .bools([]), count: 0) }
  }

  @Test(arguments: [msi, msix])
  mutating func `a kind that was disabled while masked comes back unmasked`(_ kind: UInt32) throws {
    try lines.set(kind, .trigger, .triggers([trigger]))
    try lines.set(kind, .mask, .none)
    try lines.set(kind, .trigger, .none, count: 0)
    try lines.set(kind, .trigger, .triggers([trigger]))
    lines.raise(0)
    #expect(trigger.count == 1)
  }

  @Test(arguments: [msi, msix])
  mutating func `a reset unmasks the messages that have triggers, and drops those that wait`(
    _ kind: UInt32
  ) throws {
    try lines.set(kind, .trigger, .triggers([trigger]))
    try lines.set(kind, .mask, .none)
    lines.raise(0)
    lines.reset()
    #expect(trigger.count == 0)
    #expect(lines.pendingMessages == 0 && lines.vectors.bytes[0x800] == UInt8(0))
    lines.raise(0)
    #expect(trigger.count == 1)
  }

  @Test mutating func `MSI vectors are taken into use as a set, which doesn't grow`() throws {
    try lines.set(msi, .trigger, .triggers([trigger, nil]), count: 2)
    try lines.set(msi, .trigger, .triggers([trigger]), start: 1)
    #expect(throws: Errno.invalidArgument) {
      try lines.set(msi, .trigger, .triggers([Trigger()]), start: 2)
    }
    try lines.set(msi, .trigger, .none, count: 0)
    try lines.set(msi, .trigger, .triggers([trigger]), start: 2)
  }

  // MARK: All kinds

  @Test(arguments: [(intx, msi), (intx, msix), (msi, intx), (msi, msix), (msix, intx), (msix, msi)])
  mutating func `one kind is refused while another is in use, and taken once it is disabled`(
    _ first: UInt32, _ second: UInt32
  ) throws {
    try lines.set(first, .trigger, .triggers([trigger]))
    #expect(throws: Errno.invalidArgument) {
      try lines.set(second, .trigger, .triggers([trigger]))
    }
    #expect(throws: Errno.invalidArgument) { try lines.set(second, .trigger, .none, count: 0) }
    try lines.set(first, .trigger, .none, count: 0)
    try lines.set(second, .trigger, .triggers([trigger]))
  }

  @Test(arguments: [intx, msi, msix])
  mutating func `disabling takes all triggers away`(_ kind: UInt32) throws {
    try lines.set(kind, .trigger, .triggers([trigger]))
    try lines.set(kind, .trigger, .none, count: 0)
    lines.raise(0)
    #expect(trigger.count == 0)
    #expect(throws: Errno.invalidArgument) { try lines.set(kind, .trigger, .none, count: 0) }
  }

  @Test mutating func `disabling must start at vector 0`() throws {
    try lines.set(msix, .trigger, .triggers([trigger]))
    #expect(throws: Errno.invalidArgument) {
      try lines.set(msix, .trigger, .none, start: 1, count: 0)
    }
  }

  @Test(arguments: [intx, msi, msix])
  mutating func `a trigger action without an event loops back to the client`(_ kind: UInt32) throws
  {
    #expect(throws: Errno.invalidArgument) { try lines.set(kind, .trigger, .none) }
    try lines.set(kind, .trigger, .triggers([trigger]))
    try lines.set(kind, .trigger, .none)
    #expect(trigger.count == 1)
    try lines.set(kind, .trigger, .bools([true]))
    #expect(trigger.count == 2)
    try lines.set(kind, .trigger, .bools([false]))
    #expect(trigger.count == 2)
  }

  @Test mutating func `looping back a range reaches exactly its vectors`() throws {
    let triggers = (0..<8).map { _ in Trigger() }
    try lines.set(msix, .trigger, .triggers(triggers), count: 8)
    try lines.set(msix, .trigger, .none, start: 2, count: 3)
    try lines.set(msix, .trigger, .bools([true, false, true]), start: 5, count: 3)
    #expect(triggers.map(\.count) == [0, 0, 1, 1, 1, 1, 0, 1])
  }

  @Test(arguments: [error, request])
  mutating func `ERR and REQ are set beside the others, loop back and are taken away`(
    _ kind: UInt32
  ) throws {
    try lines.set(msix, .trigger, .triggers([Trigger()]))
    #expect(throws: Errno.invalidArgument) { try lines.set(kind, .trigger, .none) }
    try lines.set(kind, .trigger, .triggers([trigger]))
    try lines.set(kind, .trigger, .none)
    try lines.set(kind, .trigger, .bools([true]))
    try lines.set(kind, .trigger, .bools([false]))
    #expect(trigger.count == 2)
    #expect(throws: Errno.invalidArgument) {
      try lines.set(kind, .trigger, .triggers([]), count: 0)
    }
    #expect(throws: Errno.invalidArgument) { try lines.set(kind, .trigger, .bools([]), count: 0) }
    #expect(throws: Errno.inappropriateIOCTLForDevice) { try lines.set(kind, .mask, .none) }
    try lines.set(kind, .trigger, .none, count: 0)
    #expect(throws: Errno.invalidArgument) { try lines.set(kind, .trigger, .none) }
  }

  @Test mutating func `a request for the device signals REQ`() throws {
    lines.request()
    try lines.set(request, .trigger, .triggers([trigger]))
    lines.request()
    #expect(trigger.count == 1)
  }

  @Test mutating func `a reset deasserts INTx and keeps triggers`() throws {
    try lines.set(intx, .trigger, .triggers([trigger]))
    try lines.set(intx, .mask, .none)
    lines.raise(0)
    lines.reset()
    #expect(!lines.isAsserted)
    try lines.set(intx, .unmask, .none)
    #expect(trigger.count == 0)
    lines.raise(0)
    #expect(trigger.count == 1)
  }
}
