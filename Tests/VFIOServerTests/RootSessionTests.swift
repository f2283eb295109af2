import JSON
import LinuxIO
import SystemPackage
import Testing
import VFIOCore
import VFIOWire

@testable import VFIOServer

@Suite struct `A root socket` {
  private let world: World
  private let root: RootSession

  init() throws {
    world = try World()
    root = try world.root()
  }

  @Test func `opens a container with an empty reply and a descriptor`() throws {
    let reply = try root.call(.openContainer)
    #expect(reply.body.isEmpty)
    guard case .container? = world.service.object(of: try reply.descriptor) else {
      Issue.record("not a container's descriptor")
      return
    }
  }

  @Test func `opens a group with an empty reply and a descriptor`() throws {
    let reply = try root.call(.openGroup, bytes(World.group))
    #expect(reply.body.isEmpty)
    guard case .group(let group)? = world.service.object(of: try reply.descriptor) else {
      Issue.record("not a group's descriptor")
      return
    }
    #expect(group.iommuGroup.id == World.group)
  }

  @Test(arguments: [0, 1, 29, UInt32.max])
  func `fails with ENODEV to open a group that there is not`(_ id: UInt32) {
    #expect(throws: Errno.operationNotSupportedByDevice) { try root.call(.openGroup, bytes(id)) }
  }

  @Test func `fails with EBUSY to open a group that is open`() throws {
    let first = try root.call(.openGroup, bytes(World.group))
    #expect(throws: Errno.resourceBusy) { try root.call(.openGroup, bytes(World.group)) }
    #expect(first.descriptors.count == 1)
  }

  @Test func `fails with EACCES to open a group that its mode denies to the user`() throws {
    let other = try world.root(user: effectiveUser() &+ 1000)
    #expect(throws: Errno.permissionDenied) { try other.call(.openGroup, bytes(World.group)) }
    _ = try other.call(.openContainer)
  }

  @Test(
    arguments: [
      (1000, 0o600, 1000, true), (1000, 0o600, 1001, false), (1000, 0o600, 0, true),
      (1000, 0o000, 0, true), (1000, 0o066, 1000, false), (1000, 0o066, 1001, true),
      (1000, 0o400, 1000, false), (1000, 0o604, 1001, false), (1000, 0o666, 7, true),
    ] as [(UInt32, UInt32, UInt32, Bool)])
  func `needs a group's permission to read and to write`(
    _ owner: UInt32, _ mode: UInt32, _ user: UInt32, _ isAllowed: Bool
  ) throws {
    let world = try World(
      Configuration(groups: [
        .init(
          id: 5, owner: owner, mode: mode,
          devices: [.init(World.scratch, model: "scratch", driver: "vfio-pci")])
      ]))
    let root = try world.root(user: user)
    let reply = try? root.call(.openGroup, bytes(UInt32(5)))
    #expect((reply != nil) == isAllowed)
  }

  @Test func `tells the topology as JSON with its size`() throws {
    let reply = try root.call(.getTopology, bytes(UInt32(4096), UInt32(0)))
    #expect(Int(reply.uint32(at: 0)) == reply.body.count && reply.uint32(at: 4) == 0)
    #expect(reply.body.last == 0)
    let json = JSONReader(try JSONValue(parsing: Array(reply.body[8..<reply.body.count - 1]).span))
    let groups = try json["groups"].elements()
    #expect(try groups.map { try $0["id"].integer(in: 0...99) } == [26, 27, 28])
    #expect(try groups.map { try $0["viable"].bool() } == [true, true, false])
  }

  @Test(arguments: [8, 9, 100] as [UInt32])
  func `tells the size of the topology to those without room for it`(_ argsz: UInt32) throws {
    let all = try root.call(.getTopology, bytes(UInt32(4096), UInt32(0)))
    let reply = try root.call(.getTopology, bytes(argsz, UInt32(0)))
    #expect(reply.body == bytes(UInt32(all.body.count), UInt32(0)))
  }

  @Test(
    arguments: [
      [], bytes(UInt32(8)), bytes(UInt32(7), UInt32(0)), bytes(UInt32(0), UInt32(0)),
      bytes(UInt32(8), UInt32(1)),
    ] as [[UInt8]])
  func `fails with EINVAL to tell the topology to a short or unknown request`(_ body: [UInt8]) {
    #expect(throws: Errno.invalidArgument) { try root.call(.getTopology, body) }
  }

  @Test(arguments: [0, 1, 2, 3])
  func `fails with EINVAL to open a group by a number cut short`(_ count: Int) {
    #expect(throws: Errno.invalidArgument) {
      try root.call(.openGroup, Array(bytes(World.group).prefix(count)))
    }
  }

  @Test func `makes an external user with the group's number and a token`() throws {
    let (_, _, descriptor) = try world.attachedGroup()
    let reply = try root.call(.getExternalUser, with: [descriptor])
    #expect(reply.body == bytes(World.group))
    #expect(reply.descriptors.count == 1)
  }

  @Test func `fails with EBADF to make an external user without a descriptor`() {
    #expect(throws: Errno.badFileDescriptor) { try root.call(.getExternalUser) }
  }

  @Test func `fails with EINVAL to make an external user of anything but one ready group`() throws {
    let (_, container) = try world.container()
    let (_, alone) = try world.group()
    let (_, _, ready) = try world.attachedGroup(26)
    for descriptors in [[container], [alone], [try Descriptor.null()], [ready, ready]] {
      #expect(throws: Errno.invalidArgument) {
        try root.call(.getExternalUser, with: descriptors)
      }
    }
  }

  @Test(
    arguments: [
      .tokenCheckExtension, .getAPIVersion, .checkExtension, .setIOMMU, .groupGetStatus,
      .containerRead, .regionRead, .dmaMap, Command(rawValue: 0), Command(rawValue: 0x4FFF),
      Command(rawValue: 0xFFFF),
    ] as [Command])
  func `fails with ENOTTY for an operation that it lacks`(_ command: Command) {
    #expect(throws: Errno.inappropriateIOCTLForDevice) {
      try root.call(command, [UInt8](repeating: 0, count: 64))
    }
  }

  @Test func `fails with ETOOMANYREFS to hand out what the client does not collect`() throws {
    let (_, _, descriptor) = try world.attachedGroup()
    #expect(throws: Errno.tooManyReferences) { try root.call(.openContainer, mayHandOut: false) }
    #expect(throws: Errno.tooManyReferences) {
      try root.call(.openGroup, bytes(UInt32(26)), mayHandOut: false)
    }
    #expect(throws: Errno.tooManyReferences) {
      try root.call(.getExternalUser, with: [descriptor], mayHandOut: false)
    }
    _ = try root.call(.openGroup, bytes(UInt32(26)))
  }

  @Test func `fails with EMFILE to hand out more than the connections there may be`() throws {
    var configuration = Configuration.builtIn
    configuration.limits.connections = 3
    let world = try World(configuration)
    let root = try world.root()
    var kept = try (0..<3).map { _ in try root.call(.openContainer) }
    #expect(throws: Errno.tooManyOpenFiles) { try root.call(.openContainer) }
    #expect(throws: Errno.tooManyOpenFiles) { try root.call(.openGroup, bytes(World.group)) }
    // What could not be handed out is not left open.
    kept.removeAll()
    #expect(world.service.registry.groups.allSatisfy { $0.status.isSubset(of: .viable) })
    let group = try world.service.registry.openGroup(World.group)
    group.release()
  }
}

@Suite struct `A token` {
  private let world: World
  private let token: TokenSession

  init() throws {
    world = try World()
    let (_, _, descriptor) = try world.attachedGroup()
    guard case .group(let group)? = world.service.object(of: descriptor) else {
      throw Errno.badFileDescriptor
    }
    token = TokenSession(world.service, try group.externalUser(), number: 1)
  }

  @Test(arguments: [(1, 1), (3, 1), (2, 0), (UInt64.max, 0)] as [(UInt64, Int64)])
  func `answers CHECK_EXTENSION for the container`(_ number: UInt64, _ answer: Int64) throws {
    #expect(try token.call(.tokenCheckExtension, bytes(number)).body == bytes(answer))
  }

  @Test(arguments: 0...7)
  func `fails with EINVAL for a number cut short`(_ count: Int) {
    #expect(throws: Errno.invalidArgument) {
      try token.call(.tokenCheckExtension, [UInt8](repeating: 0, count: count))
    }
  }

  @Test(arguments: [.version, .checkExtension, .openContainer, .groupGetStatus] as [Command])
  func `fails with ENOTTY for an operation that it lacks`(_ command: Command) {
    #expect(throws: Errno.inappropriateIOCTLForDevice) { try token.call(command, version01) }
  }
}
