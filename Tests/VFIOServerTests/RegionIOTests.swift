import Dispatch
import LinuxIO
import SystemPackage
import Testing
import VFIOCore
import VFIOWire

@testable import VFIOServer

/// Where a `doorbell` has its doorbells: one at 4 for any value, and one at 8 for each of eight values.
private let doorbells: UInt32 = 0
private let group: UInt32 = 29
private let name = "0000:09:00.0"
private let configuration = Configuration(groups: [
  .init(id: group, devices: [.init(name, model: "doorbell", driver: "vfio-pci")])
])

/// A VERSION that takes this many descriptors in a message.
private func version(takingDescriptors count: Int) -> [UInt8] {
  version01 + text("{\"capabilities\":{\"max_msg_fds\":\(count)}}")
}

@Suite struct `Doorbells by eventfd` {
  private let world: World
  private let device: DeviceSession

  init() throws {
    world = try World(configuration)
    device = world.socket(name, group: group)
    try device.call(.version, version(takingDescriptors: 16))
  }

  private func ask(
    _ device: DeviceSession, region: UInt32 = doorbells, argsz: UInt32 = 4096, flags: UInt32 = 0,
    count: UInt32 = 0, mayHandOut: Bool = true
  ) throws(Errno) -> Reply {
    try device.call(
      .deviceGetRegionIOFDs, bytes(argsz, flags, region, count), mayHandOut: mayHandOut)
  }

  /// How often the doorbell at 4 was rung.
  private func rings(_ device: DeviceSession) throws -> UInt32 {
    try device.call(.regionRead, bytes(UInt64(0), doorbells, UInt32(4))).uint32(at: 16)
  }

  private func record(
    _ offset: UInt64, size: UInt64, fd: UInt32, value: UInt64? = nil
  ) -> [UInt8] {
    bytes(offset, size, fd, UInt32(0), UInt32(value == nil ? 0 : 1), UInt32(0), value ?? 0)
  }

  @Test func `are told with their sizes and values, and an eventfd each`() throws {
    let reply = try ask(device)
    var expected = bytes(UInt32(16 + 9 * 40), UInt32(0), doorbells, UInt32(9))
    expected += record(4, size: 4, fd: 0)
    for value in 0..<8 as Range<UInt64> {
      expected += record(8, size: 4, fd: UInt32(value) + 1, value: value)
    }
    #expect(reply.body == expected)
    #expect(reply.descriptors.count == 9)
    for descriptor in reply.descriptors { _ = try EventFD(checking: descriptor) }
  }

  @Test(arguments: [16, 16 + 9 * 40 - 1] as [UInt32])
  func `without room for all of them are counted only`(_ argsz: UInt32) throws {
    let reply = try ask(device, argsz: argsz, mayHandOut: false)
    #expect(reply.body == bytes(UInt32(16 + 9 * 40), UInt32(0), doorbells, UInt32(9)))
    #expect(reply.descriptors.isEmpty)
  }

  @Test(arguments: [4, 7] as [UInt32])
  func `are none in a region without any`(_ region: UInt32) throws {
    let reply = try ask(device, region: region)
    #expect(reply.body == bytes(UInt32(16), UInt32(0), region, UInt32(0)))
    #expect(reply.descriptors.isEmpty)
  }

  @Test(arguments: [1, 3, 5, 6, 8, 9, UInt32.max])
  func `fail with EINVAL of a region that the device lacks`(_ region: UInt32) {
    #expect(throws: Errno.invalidArgument) { try ask(device, region: region) }
  }

  @Test func `fail with EINVAL for a short request or argsz, flags or a count`() {
    #expect(throws: Errno.invalidArgument) { try ask(device, argsz: 15) }
    #expect(throws: Errno.invalidArgument) { try ask(device, flags: 1) }
    #expect(throws: Errno.invalidArgument) { try ask(device, count: 1) }
    #expect(throws: Errno.invalidArgument) {
      try device.call(.deviceGetRegionIOFDs, bytes(UInt32(4096), UInt32(0), doorbells))
    }
  }

  @Test func `fail with ETOOMANYREFS for one who does not collect`() {
    #expect(throws: Errno.tooManyReferences) { try ask(device, mayHandOut: false) }
  }

  @Test(arguments: [(0, 0), (1, 1), (8, 8), (9, 9), (253, 9)])
  func `are as many as the client takes descriptors`(_ taken: Int, _ given: Int) throws {
    let world = try World(configuration)
    let device = world.socket(name, group: group)
    try device.call(.version, version(takingDescriptors: taken))
    let reply = try ask(device)
    #expect(reply.uint32(at: 0) == UInt32(16 + 40 * given))
    #expect(reply.uint32(at: 12) == UInt32(given))
    #expect(reply.body.count == 16 + 40 * given)
    #expect(reply.descriptors.count == given)
    device.close()
  }

  @Test func `are one for a client that says nothing of descriptors`() throws {
    let world = try World(configuration)
    let reply = try ask(try world.device(name, group: group))
    #expect(reply.uint32(at: 12) == 1 && reply.descriptors.count == 1)
  }

  @Test func `ring the device once signalled`() throws {
    let bell = try EventFD(checking: try ask(device).descriptors[0])
    // A bell with a value and an interrupt tell when the one before was heard.
    let interrupt = try EventFD()
    try device.call(
      .deviceSetIRQs, bytes(UInt32(20), UInt32(0x24), UInt32(2), UInt32(5), UInt32(1)),
      with: [interrupt.descriptor])
    let five = try EventFD(checking: try ask(device).descriptors[1 + 5])
    bell.signal()
    five.signal()
    #expect(interrupt.takeCountWhenThere() == 1)
    #expect(try rings(device) == 1)
    #expect(bell.takeCount() == nil)
  }

  @Test func `are the same when they are asked for again`() throws {
    let first = try EventFD(checking: try ask(device).descriptors[0])
    let second = try EventFD(checking: try ask(device).descriptors[0])
    try holdUpLoop {
      first.signal()
      #expect(second.takeCount() == 1)
      first.signal()
      device.close()
    }
    #expect(try rings(try world.device(name, group: group)) == 1)
  }

  @Test func `ring for what was signalled before the client closed, and never afterwards`() throws {
    let bell = try EventFD(checking: try ask(device).descriptors[0])
    try holdUpLoop {
      bell.signal()
      device.close()
      bell.signal()
    }
    let next = world.socket(name, group: group)
    try next.call(.version, version(takingDescriptors: 16))
    let five = try EventFD(checking: try ask(next).descriptors[1 + 5])
    let interrupt = try EventFD()
    try next.call(
      .deviceSetIRQs, bytes(UInt32(20), UInt32(0x24), UInt32(2), UInt32(5), UInt32(1)),
      with: [interrupt.descriptor])
    five.signal()
    #expect(interrupt.takeCountWhenThere() == 1)
    #expect(try rings(next) == 1)
  }

  /// Does `body` while the loop is busy with something else, so that it hears no bell.
  private func holdUpLoop(_ body: () throws -> Void) throws {
    let (begun, done) = (EventFD.made, DispatchSemaphore(value: 0))
    let other = EventFD.made
    let listening = try world.service.events.listen(to: other) {
      begun.signal()
      done.wait()
    }
    other.signal()
    #expect(begun.takeCountWhenThere() == 1)
    defer { done.signal() }
    try body()
    withExtendedLifetime(listening) {}
  }

  @Test func `do nothing while the BAR's decoding is off`() throws {
    let bell = try EventFD(checking: try ask(device).descriptors[0])
    try device.call(.regionWrite, bytes(UInt64(4), UInt32(7), UInt32(2)) + [0, 0])
    bell.signal()
    device.close()
    let next = try world.device(name, group: group)
    try next.call(.regionWrite, bytes(UInt64(4), UInt32(7), UInt32(2)) + [2, 0])
    #expect(try rings(next) == 0)
  }
}

@Suite struct `An eventfd that unmasks INTx` {
  private let world: World
  private let device: DeviceSession
  private let interrupt = EventFD.made
  private let unmask = EventFD.made

  init() throws {
    world = try World(configuration)
    device = try world.device(name, group: group)
    try set(0x24, with: [interrupt.descriptor])
    // A write to 8 raises the interrupt, and one to 0xC lowers it.
    try device.call(.regionWrite, bytes(UInt64(8), doorbells, UInt32(4), UInt32(0)))
    #expect(interrupt.takeCountWhenThere() == 1)
  }

  private func set(_ flags: UInt32, with descriptors: [Descriptor] = []) throws(Errno) {
    try device.call(
      .deviceSetIRQs, bytes(UInt32(20), flags, UInt32(0), UInt32(0), UInt32(1)), with: descriptors)
  }

  @Test func `lets it come again when the client signals it`() throws {
    try set(0x14, with: [unmask.descriptor])
    for _ in 0..<3 {
      unmask.signal()
      #expect(interrupt.takeCountWhenThere() == 1)
    }
    #expect(unmask.takeCount() == nil)
  }

  @Test func `counts when it was signalled before`() throws {
    unmask.signal()
    try set(0x14, with: [unmask.descriptor])
    #expect(interrupt.takeCountWhenThere() == 1)
  }

  @Test func `does nothing once it is taken away`() throws {
    let next = EventFD.made
    try set(0x14, with: [unmask.descriptor])
    #expect(throws: Errno.resourceBusy) { try set(0x14, with: [next.descriptor]) }
    try set(0x14)
    try set(0x14, with: [next.descriptor])
    unmask.signal()
    next.signal()
    #expect(interrupt.takeCountWhenThere() == 1)
    #expect(unmask.takeCount() == 1)
  }
}
