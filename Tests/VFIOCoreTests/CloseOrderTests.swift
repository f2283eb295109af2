import Testing
import VFIOCore

/// What a client closes.
enum Descriptor: String, CaseIterable {
  case container, group, device, token

  /// All 24 orders of the four.
  static let orders: [[Descriptor]] = permutations(of: allCases)

  private static func permutations(of items: [Descriptor]) -> [[Descriptor]] {
    items.isEmpty
      ? [[]]
      : items.flatMap { first in
        permutations(of: items.filter { $0 != first }).map { [first] + $0 }
      }
  }
}

@Suite struct `Closing` {
  /// All four descriptors of one client, each held by this value alone.
  struct Client {
    var container: Container?
    var group: OpenGroup?
    var device: OpenDevice?
    var token: ExternalUser?

    init(_ world: World) throws {
      let (group, container) = try world.openLiveGroup()
      self.group = group
      self.container = container
      device = try group.openDevice("edu")
      token = try group.externalUser()
    }

    mutating func close(_ descriptor: Descriptor, explicitly: Bool) {
      switch descriptor {
      case .container:
        container = nil
      case .group:
        if explicitly { group?.release() }
        group = nil
      case .device:
        if explicitly { device?.release() }
        device = nil
      case .token:
        if explicitly { token?.release() }
        token = nil
      }
    }
  }

  @Test(arguments: Descriptor.orders, [true, false])
  func `in any order, the last user of the container takes the group out of it`(
    _ order: [Descriptor], explicitly: Bool
  ) throws {
    let world = try World()
    try world.addDevice("edu")
    var client = try Client(world)
    weak let container = client.container
    var users: Set<Descriptor> = [.group, .device, .token]
    world.log.clear()
    for descriptor in order {
      client.close(descriptor, explicitly: explicitly)
      users.remove(descriptor)
      let isReleased = world.log.lines.contains("type1 release")
      #expect(isReleased == users.isEmpty, "after \(descriptor)")
    }
    #expect(world.log.lines == ["edu release", "type1 detach 26", "type1 release"])
    #expect(container == nil)
    let group = try world.registry.openGroup(26)
    #expect(group.status == .viable)
  }

  @Test(arguments: Descriptor.orders)
  func `in any order, a group without driver goes with its last reference`(
    _ order: [Descriptor]
  ) throws {
    let world = try World()
    let device = try world.addDevice("edu")
    var client = try Client(world)
    try world.registry.removeDevice(device) { _ in }
    var references: Set<Descriptor> = [.group, .device, .token]
    for descriptor in order {
      client.close(descriptor, explicitly: true)
      references.remove(descriptor)
      #expect(world.registry.groups.isEmpty == references.isEmpty, "after \(descriptor)")
    }
  }

  @Test func `closing a group that has no container leaves nothing behind`() throws {
    let world = try World()
    try world.addDevice("edu")
    try world.registry.openGroup(26).release()
    #expect(world.log.lines.isEmpty)
    let (group, container) = try world.openLiveGroup()
    try group.unsetContainer()
    #expect(container.iommu == nil)
  }

  @Test func `closing a group that was never given a driver leaves its container`() throws {
    let world = try World()
    try world.addDevice("edu")
    weak var kept: Container?
    let group = try world.registry.openGroup(26)
    do {
      let container = Container(registry: world.registry)
      kept = container
      try group.setContainer(container)
    }
    #expect(kept != nil)
    group.release()
    #expect(kept == nil)
  }
}
