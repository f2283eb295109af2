import SystemPackage
import Testing
import VFIOCore

/// As `TestDriver`, for groups without an IOMMU and extension 8.
private final class NoIOMMUTestDriver: IOMMUDriver {
  let name = "noiommu"
  let isForGroupsWithoutIOMMU = true
  private let driver: TestDriver

  init(log: Log) { driver = TestDriver("noiommu", [8: 1], log: log) }

  func checkExtension(_ number: UInt64) -> Int64 { driver.checkExtension(number) }
  func open(_ type: UInt64, _ limits: IOMMULimits) throws(Errno) -> any IOMMU {
    try driver.open(type, limits)
  }
}

/// With a type1 driver, one for groups without an IOMMU, group 26 that has an IOMMU, and two that don't.
@Suite struct `A group without an IOMMU` {
  private let world: World
  private let container: Container

  init() throws {
    world = try World()
    try world.registry.register(NoIOMMUTestDriver(log: world.log))
    try world.addDevice("real")
    try world.addDevice("bare", in: IOMMUGroup(id: 40, hasIOMMU: false))
    try world.addDevice("naked", in: IOMMUGroup(id: 41, hasIOMMU: false))
    container = Container(registry: world.registry)
  }

  private func open(_ id: UInt32) throws(Errno) -> OpenGroup {
    try world.registry.openGroup(id, asAdministrator: true)
  }

  @Test func `fails with EPERM to open for anyone but an administrator, even while it is open`()
    throws
  {
    #expect(throws: Errno.notPermitted) { try world.registry.openGroup(40) }
    let group = try open(40)
    #expect(throws: Errno.notPermitted) { try world.registry.openGroup(40) }
    #expect(throws: Errno.resourceBusy) { try open(40) }
    group.release()
    try open(40).release()
  }

  @Test func `fails with ENODEV to open without a device, whoever asks`() {
    #expect(throws: Errno.operationNotSupportedByDevice) { try world.registry.openGroup(42) }
  }

  @Test func `has the status of any group`() throws {
    let group = try open(40)
    #expect(group.status == .viable)
    try group.setContainer(container)
    #expect(group.status == [.viable, .containerSet])
  }

  @Test func `fails with EPERM to join groups that have an IOMMU, and they to join it`() throws {
    let (real, bare) = (try open(26), try open(40))
    try real.setContainer(container)
    #expect(throws: Errno.notPermitted) { try bare.setContainer(container) }
    #expect(bare.status == .viable)
    try real.unsetContainer()
    try bare.setContainer(container)
    #expect(throws: Errno.notPermitted) { try real.setContainer(container) }
    let naked = try open(41)
    try naked.setContainer(container)
  }

  @Test func `makes its container ask drivers for groups without an IOMMU alone`() throws {
    #expect(container.checkExtension(8) == 1)
    #expect(container.checkExtension(1) == 1)
    let group = try open(40)
    try group.setContainer(container)
    world.log.clear()
    #expect(container.checkExtension(8) == 1)
    #expect(container.checkExtension(1) == 0)
    #expect(world.log.lines == ["noiommu check 8", "noiommu check 1"])
    group.release()
  }

  @Test func `isn't what other containers ask drivers for`() throws {
    let group = try open(26)
    try group.setContainer(container)
    world.log.clear()
    #expect(container.checkExtension(8) == 0)
    #expect(world.log.lines == ["type1 check 8"])
    group.release()
  }

  @Test func `takes drivers of its kind alone, which others never do: ENODEV`() throws {
    let (real, bare) = (try open(26), try open(40))
    try bare.setContainer(container)
    #expect(throws: Errno.operationNotSupportedByDevice) { try container.setIOMMU(1) }
    try container.setIOMMU(8)
    #expect(container.checkExtension(8) == 100)
    let other = Container(registry: world.registry)
    try real.setContainer(other)
    #expect(throws: Errno.operationNotSupportedByDevice) { try other.setIOMMU(8) }
    try other.setIOMMU(1)
  }

  @Test func `joins another of its kind where the driver is set`() throws {
    let (bare, naked, real) = (try open(40), try open(41), try open(26))
    try bare.setContainer(container)
    try container.setIOMMU(8)
    #expect(throws: Errno.notPermitted) { try real.setContainer(container) }
    try naked.setContainer(container)
    #expect(world.log.lines.suffix(2) == ["noiommu attach 40", "noiommu attach 41"])
  }

  @Test func `lets its devices be opened`() throws {
    let group = try open(40)
    try group.setContainer(container)
    #expect(throws: Errno.invalidArgument) { try group.openDevice("bare") }
    try container.setIOMMU(8)
    #expect(try group.openDevice("bare").name == "bare")
  }

  @Test func `fails with EPERM to have an external user, once it has a container`() throws {
    let group = try open(40)
    #expect(throws: Errno.invalidArgument) { try group.externalUser() }
    try group.setContainer(container)
    #expect(throws: Errno.notPermitted) { try group.externalUser() }
    try container.setIOMMU(8)
    #expect(throws: Errno.notPermitted) { try group.externalUser() }
  }
}
