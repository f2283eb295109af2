import Locks
import SystemPackage
import Testing
import VFIOCore

@Suite struct `SET_IOMMU` {
  @Test func `without a group it fails with EINVAL`() throws {
    let world = try World()
    #expect(throws: Errno.invalidArgument) {
      try Container(registry: world.registry).setIOMMU(1)
    }
  }

  @Test func `with a driver set it fails with EINVAL`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, container) = try world.openLiveGroup()
    #expect(throws: Errno.invalidArgument) { try container.setIOMMU(1) }
    #expect(container.iommu != nil)
    group.release()
  }

  @Test func `a type that no driver reports fails with ENODEV`() throws {
    let world = try World()
    try world.addDevice("edu")
    let container = Container(registry: world.registry)
    let group = try world.registry.openGroup(26)
    try group.setContainer(container)
    #expect(throws: Errno.operationNotSupportedByDevice) { try container.setIOMMU(2) }
    #expect(container.iommu == nil)
  }

  @Test func `the newest driver that reports the type is opened with it`() throws {
    let world = try World(TestDriver("oldest", [3: 1], log: Log()))
    try world.registry.register(TestDriver("middle", [3: 1], log: world.log))
    try world.registry.register(TestDriver("newest", [1: 1, 3: -1], log: world.log))
    try world.addDevice("edu")
    let container = Container(registry: world.registry)
    let group = try world.registry.openGroup(26)
    try group.setContainer(container)
    try container.setIOMMU(3)
    #expect(
      world.log.lines == ["newest check 3", "middle check 3", "middle open 3", "middle attach 26"])
  }

  @Test func `the driver is opened with the limits of the container`() throws {
    let world = try World()
    try world.addDevice("edu")
    let limits = IOMMULimits(apertures: [0...0xFFF], mappings: 3)
    let container = Container(registry: world.registry, limits: limits)
    let group = try world.registry.openGroup(26)
    try group.setContainer(container)
    try container.setIOMMU(1)
    let iommu = try #require(container.iommu as? TestIOMMU)
    #expect(iommu.limits == limits)
  }

  @Test func `the error of the driver's open is returned, and no other driver is tried`() throws {
    let world = try World()
    let full = TestDriver("full", [1: 1], openError: .noMemory, log: world.log)
    try world.registry.register(full)
    try world.addDevice("edu")
    let container = Container(registry: world.registry)
    let group = try world.registry.openGroup(26)
    try group.setContainer(container)
    #expect(throws: Errno.noMemory) { try container.setIOMMU(1) }
    #expect(world.log.lines == ["full check 1", "full open 1"])
    #expect(container.iommu == nil)
  }

  /// A container with groups 26, 27 and 28, put in in this order.
  func containerOfThree(_ world: World) throws -> (Container, [OpenGroup]) {
    let container = Container(registry: world.registry)
    var groups: [OpenGroup] = []
    for id: UInt32 in [26, 27, 28] {
      try world.addDevice("edu \(id)", in: IOMMUGroup(id: id))
      let group = try world.registry.openGroup(id)
      try group.setContainer(container)
      groups.append(group)
    }
    return (container, groups)
  }

  @Test func `all groups of the container attach, the newest first`() throws {
    let world = try World()
    let (container, groups) = try containerOfThree(world)
    world.log.clear()
    try container.setIOMMU(1)
    #expect(
      world.log.lines == [
        "type1 check 1", "type1 open 1", "type1 attach 28", "type1 attach 27", "type1 attach 26",
      ])
    #expect(groups.count == 3)
  }

  @Test
  func `when a group can't attach, the others are detached in reverse and the IOMMU released`()
    throws
  {
    let log = Log()
    let world = try World(TestDriver("type1", [1: 1], refusedGroup: 26, log: log))
    let (container, groups) = try containerOfThree(world)
    #expect(throws: Errno.notPermitted) { try container.setIOMMU(1) }
    #expect(
      log.lines == [
        "type1 check 1", "type1 open 1", "type1 attach 28", "type1 attach 27", "type1 detach 27",
        "type1 detach 28", "type1 release",
      ])
    #expect(container.iommu == nil)
    #expect(groups.count == 3)
  }

  @Test func `after a failed attach it may be tried again`() throws {
    let world = try World()
    let strict = TestDriver("strict", [1: 1], refusedGroup: 26, log: world.log)
    try world.registry.register(strict)
    let (container, groups) = try containerOfThree(world)
    #expect(throws: Errno.notPermitted) { try container.setIOMMU(1) }
    world.registry.unregister(strict)
    try container.setIOMMU(1)
    #expect(container.iommu != nil)
    #expect(groups.count == 3)
  }
}

@Suite struct `Container operations` {
  @Test func `the API version is 0`() { #expect(Container.apiVersion == 0) }

  @Test func `when the last group leaves during an operation, the IOMMU is released after it`()
    throws
  {
    let log = Log()
    let leave = Mutex<(@Sendable () -> Void)?>(nil)
    let driver = TestDriver(
      "type1", [1: 1], onOperation: { leave.withLock { $0 }?() }, log: log)
    let world = try World(driver)
    try world.addDevice("edu")
    let (group, container) = try world.openLiveGroup()
    leave.withLock { $0 = { group.release() } }
    log.clear()
    _ = try container.operation(0x3B70, [UInt8]().span, NoMemory())
    #expect(log.lines == ["type1 detach 26", "type1 operation", "type1 release"])
    #expect(container.iommu == nil)
    leave.withLock { $0 = nil }
  }

  @Test func `without a driver every operation fails with EINVAL`() throws {
    let container = Container(registry: try World().registry)
    var bytes: [UInt8] = [0]
    #expect(throws: Errno.invalidArgument) {
      try container.operation(0x3B70, [UInt8]().span, NoMemory())
    }
    #expect(throws: Errno.invalidArgument) { try container.write([UInt8]().span, at: 0) }
    #expect(throws: Errno.invalidArgument) { try container.mmap(at: 0, size: 4096) }
    #expect(throws: Errno.invalidArgument) {
      var span = bytes.mutableSpan
      try container.read(at: 0, into: &span)
    }
  }

  @Test func `an operation that the core doesn't know goes to the driver untouched`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, container) = try world.openLiveGroup()
    let argument: [UInt8] = [1, 2, 3]
    let result = try container.operation(0x3B70, argument.span, NoMemory())
    #expect(result == OperationResult(value: 7, structure: [1, 2, 3]))
    #expect(throws: Errno.inappropriateIOCTLForDevice) {
      try container.operation(0x3BFF, argument.span, NoMemory())
    }
    group.release()
  }

  @Test func `read, write and mmap go to a driver that has them`() throws {
    let world = try World()
    try world.registry.register(TestFileDriver(log: world.log))
    try world.addDevice("edu")
    let (group, container) = try world.openLiveGroup()
    var bytes: [UInt8] = [0, 0]
    do {
      var span = bytes.mutableSpan
      try container.read(at: 5, into: &span)
    }
    #expect(bytes == [5, 5])
    try container.write(bytes.span, at: 9)
    #expect(try container.mmap(at: 4096, size: 8192).size == 8192)
    #expect(world.log.lines == ["write [5, 5] at 9", "mmap 8192 at 4096"])
    group.release()
  }

  @Test func `read, write and mmap fail with EINVAL where the driver has none`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, container) = try world.openLiveGroup()
    var bytes: [UInt8] = [0]
    #expect(throws: Errno.invalidArgument) { try container.write(bytes.span, at: 0) }
    #expect(throws: Errno.invalidArgument) { try container.mmap(at: 0, size: 4096) }
    #expect(throws: Errno.invalidArgument) {
      var span = bytes.mutableSpan
      try container.read(at: 0, into: &span)
    }
    group.release()
  }
}
