import LinuxIO
import SystemPackage
import Testing
import VFIOCore
import VFIOWire

@testable import VFIOServer

@Suite struct `A group's socket` {
  private let world: World
  private let container: ContainerSession
  private let containerDescriptor: Descriptor
  private let group: GroupSession

  init() throws {
    world = try World()
    (container, containerDescriptor) = try world.container()
    (group, _) = try world.group()
  }

  private func status() throws -> UInt32 {
    try group.call(.groupGetStatus, bytes(UInt32(8), UInt32(0))).uint32(at: 12)
  }

  @Test(arguments: [8, 9, UInt32.max])
  func `tells its status with the argsz that it was given`(_ argsz: UInt32) throws {
    let reply = try group.call(.groupGetStatus, bytes(argsz, UInt32(7)))
    #expect(reply.body == zero + bytes(argsz, UInt32(1)))
  }

  @Test func `tells whether a container is set`() throws {
    _ = try group.call(.groupSetContainer, with: [containerDescriptor])
    #expect(try status() == 3)
    #expect(try group.call(.groupUnsetContainer).body == zero)
    #expect(try status() == 1)
  }

  @Test func `tells that a group with a foreign driver is not viable`() throws {
    let (group, _) = try world.group(28)
    let reply = try group.call(.groupGetStatus, bytes(UInt32(8), UInt32(0)))
    #expect(reply.body == zero + bytes(UInt32(8), UInt32(0)))
  }

  @Test(arguments: [[], bytes(UInt32(8)), bytes(UInt32(7), UInt32(0))] as [[UInt8]])
  func `fails with EINVAL to tell its status to a short request`(_ body: [UInt8]) {
    #expect(throws: Errno.invalidArgument) { try group.call(.groupGetStatus, body) }
  }

  @Test func `takes a container by its descriptor`() throws {
    #expect(try group.call(.groupSetContainer, with: [containerDescriptor]).body == zero)
  }

  @Test func `knows a container by any copy of its descriptor`() throws {
    let copy = try Descriptor(duplicating: containerDescriptor.borrowed)
    #expect(try group.call(.groupSetContainer, with: [copy]).body == zero)
  }

  @Test func `fails with EBADF to take a container without a descriptor`() {
    #expect(throws: Errno.badFileDescriptor) { try group.call(.groupSetContainer) }
  }

  @Test func `fails with EINVAL to take what is not one container of this server`() throws {
    let (_, other) = try world.group(26)
    let (_, foreign) = try World().container()
    for descriptors in [
      [other], [foreign], [try Descriptor.null()], [try Socket.pair().0.descriptor],
      [containerDescriptor, containerDescriptor],
    ] {
      #expect(throws: Errno.invalidArgument) {
        try group.call(.groupSetContainer, with: descriptors)
      }
    }
  }

  @Test func `fails with EINVAL to take a container when it has one`() throws {
    _ = try group.call(.groupSetContainer, with: [containerDescriptor])
    #expect(throws: Errno.invalidArgument) {
      try group.call(.groupSetContainer, with: [containerDescriptor])
    }
    // As the kernel has it, also before it looks at the descriptor.
    #expect(throws: Errno.invalidArgument) { try group.call(.groupSetContainer) }
  }

  @Test func `fails with EINVAL to leave a container when it has none`() {
    #expect(throws: Errno.invalidArgument) { try group.call(.groupUnsetContainer) }
  }

  @Test func `fails with EBUSY to leave its container while a device is open`() throws {
    let (group, _, _) = try world.attachedGroup(26)
    let device = try group.call(.groupGetDeviceFD, text("0000:06:0d.0"))
    #expect(throws: Errno.resourceBusy) { try group.call(.groupUnsetContainer) }
    #expect(device.descriptors.count == 1)
  }

  @Test func `opens a device with the result 0 and a descriptor`() throws {
    let (group, _, _) = try world.attachedGroup(26)
    let reply = try group.call(.groupGetDeviceFD, text("0000:06:0d.0"))
    #expect(reply.body == zero && reply.descriptors.count == 1)
    // A device is no object that other operations take.
    #expect(world.service.object(of: try reply.descriptor) == nil)
  }

  @Test(arguments: [
    "", "0000:06:0d.1", "0000:07:00.0", "nothing", String(repeating: "x", count: 4095),
  ])
  func `fails with ENODEV to open a device that it does not give`(_ name: String) throws {
    let (group, _, _) = try world.attachedGroup(26)
    #expect(throws: Errno.operationNotSupportedByDevice) {
      try group.call(.groupGetDeviceFD, text(name))
    }
  }

  @Test(
    arguments: [
      [], Array("0000:07:00.0".utf8), text("0000:07:00.0") + [0], [0x80, 0], [0, 0],
      [UInt8](repeating: 0x78, count: 4096) + [0],
    ] as [[UInt8]])
  func `fails with EINVAL for a name that is not one string with its NUL`(_ name: [UInt8]) throws {
    let (group, _, _) = try world.attachedGroup(26)
    #expect(throws: Errno.invalidArgument) { try group.call(.groupGetDeviceFD, name) }
  }

  @Test func `fails with EINVAL to open a device without container, driver or viability`() throws {
    #expect(throws: Errno.invalidArgument) {
      try group.call(.groupGetDeviceFD, text(World.scratch))
    }
    _ = try group.call(.groupSetContainer, with: [containerDescriptor])
    #expect(throws: Errno.invalidArgument) {
      try group.call(.groupGetDeviceFD, text(World.scratch))
    }
    let (unviable, _, _) = try world.attachedGroup(28)
    #expect(throws: Errno.invalidArgument) {
      try unviable.call(.groupGetDeviceFD, text("0000:08:00.0"))
    }
  }

  @Test func `fails with ETOOMANYREFS to open a device for one who does not collect`() throws {
    let (group, _, _) = try world.attachedGroup(26)
    #expect(throws: Errno.tooManyReferences) {
      try group.call(.groupGetDeviceFD, text("0000:06:0d.0"), mayHandOut: false)
    }
    #expect(try group.call(.groupUnsetContainer).body == zero)
  }

  @Test(
    arguments: [
      .version, .getAPIVersion, .checkExtension, .setIOMMU, .openGroup, .containerRead,
      .deviceGetInfo, Command(rawValue: 0), Command(rawValue: 0x3B6B), Command(rawValue: 0xFFFF),
    ] as [Command])
  func `fails with ENOTTY for an operation that it lacks`(_ command: Command) {
    #expect(throws: Errno.inappropriateIOCTLForDevice) {
      try group.call(command, [UInt8](repeating: 0, count: 64))
    }
  }

  @Test func `fails with EBADF after it has closed`() throws {
    group.close()
    #expect(throws: Errno.badFileDescriptor) {
      try group.call(.groupSetContainer, with: [containerDescriptor])
    }
    try world.service.registry.openGroup(World.group).release()
  }
}
