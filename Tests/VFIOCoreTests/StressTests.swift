import Dispatch
import Locks
import SystemPackage
import Testing
import VFIOCore

@Suite struct `Many threads` {
  /// Every thread acts as a client or as the administrator, as its own random numbers have it; none
  /// of them knows of the others, so each call may meet any state.
  @Test(arguments: 1...4 as ClosedRange<UInt64>)
  func `clients and an administrator at once leave nothing in use`(_ seed: UInt64) throws {
    let world = try World()
    let groups = [world.group, IOMMUGroup(id: 27)]
    let devices = try groups.flatMap { group in
      try ["edu", "nic"].map { name in
        try world.addDevice("\(name) \(group.id)", in: group)
      }
    }
    let shared = Container(registry: world.registry)
    DispatchQueue.concurrentPerform(iterations: 6) { thread in
      var random = SplitMix(state: seed << 32 | UInt64(thread))
      for _ in 0..<1000 {
        if thread < 4 {
          useDevice(of: world.registry, sharing: shared, &random)
        } else {
          rebind(devices.randomElement(using: &random), in: world, &random)
        }
      }
    }
    #expect(shared.iommu == nil)
    #expect(groups.allSatisfy { !$0.isQuarantined || $0.devices.contains { $0.driver == "e1000" } })
    for device in devices {
      if device.driver != nil { try world.registry.unbind(device) }
      #expect(device.driver == nil)
      try world.registry.unplug(device)
    }
    #expect(groups.allSatisfy { !$0.isQuarantined })
    #expect(world.registry.groups.isEmpty)
    let calls = world.log.lines
    func count(_ suffix: String) -> Int { calls.count { $0.hasSuffix(suffix) } }
    #expect(count("type1 open 1") == count("type1 release"))
    #expect(count("type1 attach 26") == count("type1 detach 26"))
    #expect(count("type1 attach 27") == count("type1 detach 27"))
    for device in devices {
      #expect(count("\(device.name) open") == count("\(device.name) release"))
    }
    #expect(count("edu 26 open") > 0)
  }

  /// A client that takes a group, goes as far as it gets, and closes in any order.
  func useDevice(of registry: Registry, sharing shared: Container, _ random: inout SplitMix) {
    let id = UInt32.random(in: 26...27, using: &random)
    guard let group = try? registry.openGroup(id) else { return }
    let container = Bool.random(using: &random) ? shared : Container(registry: registry)
    try? group.setContainer(container)
    try? container.setIOMMU(1)
    let device = try? group.openDevice(Bool.random(using: &random) ? "edu \(id)" : "nic \(id)")
    let user = try? group.externalUser()
    _ = group.status
    _ = container.checkExtension(1)
    try? group.unsetContainer()
    var closes: [() -> Void] = [
      { group.release() }, { device?.release() }, { user?.release() }, { group.release() },
    ]
    closes.shuffle(using: &random)
    for close in closes { close() }
  }

  /// An administrator who gives a device another driver, or thinks better of it.
  func rebind(_ device: BusDevice?, in world: World, _ random: inout SplitMix) {
    guard let device else { return }
    let registry = world.registry
    if let removal = try? registry.unbind(device), Bool.random(using: &random) {
      _ = removal.cancel()
    }
    switch Int.random(in: 0..<4, using: &random) {
    case 0:
      try? registry.bind(device, to: "e1000", force: Bool.random(using: &random))
    case 1:
      try? registry.bind(device, to: "pci-stub")
    default:
      try? registry.bind(device, to: "vfio-pci") { () throws(Errno) in
        try registry.addDevice(device, operations: TestDevice(device.name, log: world.log))
      }
    }
  }
}

/// Random numbers that are the same in every run.
struct SplitMix: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var mixed = (state ^ (state >> 30)) &* 0xBF58_476D_1CE4_E5B9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
    return mixed ^ (mixed >> 31)
  }
}
