import SystemPackage
import Testing
import VFIOCore

@Suite struct `IOMMU drivers` {
  let log = Log()
  let registry = Registry()

  @Test func `registering a driver twice fails with EINVAL`() throws {
    let driver = TestDriver("type1", [1: 1], log: log)
    try registry.register(driver)
    #expect(throws: Errno.invalidArgument) { try registry.register(driver) }
    #expect(registry.iommuDrivers.count == 1)
  }

  @Test func `a driver can be registered again after it was unregistered`() throws {
    let driver = TestDriver("type1", [1: 1], log: log)
    try registry.register(driver)
    registry.unregister(driver)
    #expect(registry.iommuDrivers.isEmpty)
    try registry.register(driver)
    #expect(registry.iommuDrivers.count == 1)
  }

  @Test func `unregistering a driver that isn't registered does nothing`() throws {
    try registry.register(TestDriver("type1", [1: 1], log: log))
    registry.unregister(TestDriver("type1", [1: 1], log: log))
    #expect(registry.iommuDrivers.count == 1)
  }

  @Test func `drivers are asked newest first`() throws {
    try registry.register(TestDriver("old", [:], log: log))
    try registry.register(TestDriver("new", [:], log: log))
    _ = Container(registry: registry).checkExtension(1)
    #expect(log.lines == ["new check 1", "old check 1"])
  }

  @Test func `a driver in use lives on after it is unregistered, until the last group leaves`()
    throws
  {
    let world = try World()
    weak let kept = world.registry.iommuDrivers.first
    try world.addDevice("edu")
    let (group, container) = try world.openLiveGroup()
    for driver in world.registry.iommuDrivers { world.registry.unregister(driver) }
    #expect(kept != nil)
    #expect(container.checkExtension(1) == 100)
    try group.unsetContainer()
    #expect(kept == nil)
  }

  @Test func `an unregistered driver serves no further container`() throws {
    let world = try World()
    for driver in world.registry.iommuDrivers { world.registry.unregister(driver) }
    try world.addDevice("edu")
    let group = try world.registry.openGroup(26)
    let container = Container(registry: world.registry)
    try group.setContainer(container)
    #expect(throws: Errno.operationNotSupportedByDevice) { try container.setIOMMU(1) }
  }
}

@Suite struct `Asking drivers` {
  @Test func `a driver that is asked may register and unregister others`() throws {
    let log = Log()
    let registry = Registry()
    let other = TestDriver("other", [:], log: log)
    let driver = TestDriver(
      "type1", [:],
      onCheck: {
        registry.unregister(other)
        #expect(throws: Never.self) { try registry.register(other) }
      }, log: log)
    try registry.register(driver)
    #expect(Container(registry: registry).checkExtension(1) == 0)
    #expect(registry.iommuDrivers.map(\.name) == ["other", "type1"])
    registry.unregister(driver)
  }
}

@Suite struct `CHECK_EXTENSION` {
  let log = Log()
  let registry = Registry()

  @Test func `without drivers the answer is 0`() {
    #expect(Container(registry: registry).checkExtension(1) == 0)
  }

  @Test func `the first positive answer of the registered drivers counts`() throws {
    try registry.register(TestDriver("oldest", [1: 3], log: log))
    try registry.register(TestDriver("middle", [1: 2], log: log))
    try registry.register(TestDriver("newest", [1: 0], log: log))
    #expect(Container(registry: registry).checkExtension(1) == 2)
    #expect(log.lines == ["newest check 1", "middle check 1"])
  }

  @Test func `without a positive answer the last one counts`() throws {
    try registry.register(TestDriver("old", [1: -22], log: log))
    try registry.register(TestDriver("new", [1: 0], log: log))
    #expect(Container(registry: registry).checkExtension(1) == -22)
  }

  @Test func `with a driver set only its IOMMU is asked`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, container) = try world.openLiveGroup()
    world.log.clear()
    #expect(container.checkExtension(9) == 100)
    #expect(world.log.lines.isEmpty)
    try group.unsetContainer()
    #expect(container.checkExtension(9) == 0)
    #expect(world.log.lines == ["type1 detach 26", "type1 release", "type1 check 9"])
  }
}
