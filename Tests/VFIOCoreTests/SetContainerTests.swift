import Dispatch
import Locks
import SystemPackage
import Testing
import VFIOCore

@Suite struct `SET_CONTAINER` {
  @Test func `with a container set it fails with EINVAL`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, container) = try world.openLiveGroup()
    #expect(throws: Errno.invalidArgument) { try group.setContainer(container) }
    #expect(throws: Errno.invalidArgument) {
      try group.setContainer(Container(registry: world.registry))
    }
    #expect(world.log.lines.filter { $0.hasPrefix("type1 attach") } == ["type1 attach 26"])
  }

  @Test func `a group that isn't viable may have a container`() throws {
    let world = try World()
    try world.addDevice("edu")
    try world.plug("nic", driver: "e1000")
    let group = try world.registry.openGroup(26)
    try group.setContainer(Container(registry: world.registry))
    #expect(group.status == .containerSet)
  }

  @Test func `the group attaches to a driver that is set already`() throws {
    let world = try World()
    try world.addDevice("edu")
    try world.addDevice("other", in: IOMMUGroup(id: 27))
    let (group, container) = try world.openLiveGroup()
    world.log.clear()
    let other = try world.registry.openGroup(27)
    try other.setContainer(container)
    #expect(world.log.lines == ["type1 attach 27"])
    group.release()
  }

  @Test func `the driver's error is returned, and the container stays unset`() throws {
    let log = Log()
    let world = try World(TestDriver("type1", [1: 1], refusedGroup: 27, log: log))
    try world.addDevice("edu")
    try world.addDevice("other", in: IOMMUGroup(id: 27))
    let (group, container) = try world.openLiveGroup()
    let other = try world.registry.openGroup(27)
    #expect(throws: Errno.notPermitted) { try other.setContainer(container) }
    #expect(other.status == .viable)
    #expect(throws: Errno.invalidArgument) { try other.unsetContainer() }
    try other.setContainer(Container(registry: world.registry))
    group.release()
    #expect(log.lines.suffix(2) == ["type1 detach 26", "type1 release"])
  }

  @Test func `one of several threads sets its container, the others get EINVAL`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (first, container) = try world.openLiveGroup()
    first.release()
    #expect(container.iommu == nil)
    for _ in 0..<100 {
      let group = try world.registry.openGroup(26)
      let set = Mutex(0)
      DispatchQueue.concurrentPerform(iterations: 4) { _ in
        do throws(Errno) {
          try group.setContainer(Container(registry: world.registry))
          set.withLock { $0 += 1 }
        } catch {
          #expect(error == .invalidArgument)
        }
      }
      #expect(set.withLock { $0 } == 1)
      group.release()
    }
  }
}

@Suite struct `UNSET_CONTAINER` {
  @Test func `without a container it fails with EINVAL`() throws {
    let world = try World()
    try world.addDevice("edu")
    let group = try world.registry.openGroup(26)
    #expect(throws: Errno.invalidArgument) { try group.unsetContainer() }
  }

  @Test func `while a device is open it fails with EBUSY`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let device = try group.openDevice("edu")
    #expect(throws: Errno.resourceBusy) { try group.unsetContainer() }
    device.release()
    try group.unsetContainer()
    #expect(group.status == .viable)
  }

  @Test func `while an external user holds the group it fails with EBUSY`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let user = try group.externalUser()
    #expect(throws: Errno.resourceBusy) { try group.unsetContainer() }
    user.release()
    try group.unsetContainer()
  }

  @Test func `the last group out releases the driver, and another may be set`() throws {
    let world = try World()
    try world.addDevice("edu")
    try world.addDevice("other", in: IOMMUGroup(id: 27))
    let (group, container) = try world.openLiveGroup()
    let other = try world.registry.openGroup(27)
    try other.setContainer(container)
    world.log.clear()
    try group.unsetContainer()
    #expect(world.log.lines == ["type1 detach 26"])
    #expect(container.iommu != nil)
    try other.unsetContainer()
    #expect(world.log.lines == ["type1 detach 26", "type1 detach 27", "type1 release"])
    #expect(container.iommu == nil)
    #expect(throws: Errno.invalidArgument) { try container.setIOMMU(1) }
    try group.setContainer(container)
    try container.setIOMMU(1)
    #expect(container.iommu != nil)
  }

  @Test
  func `an unset that races with the opening of a device gets EBUSY or comes too early for it`()
    throws
  {
    let world = try World()
    try world.addDevice("edu")
    for _ in 0..<200 {
      let (group, container) = try world.openLiveGroup()
      let device = Mutex<OpenDevice?>(nil)
      let isUnset = Mutex(false)
      DispatchQueue.concurrentPerform(iterations: 2) { index in
        do throws(Errno) {
          if index == 0 {
            let open = try group.openDevice("edu")
            device.withLock { $0 = open }
          } else {
            try group.unsetContainer()
            isUnset.withLock { $0 = true }
          }
        } catch {
          #expect(error == (index == 0 ? .invalidArgument : .resourceBusy))
        }
      }
      let isOpen = device.withLock { $0 != nil }
      #expect(isOpen != isUnset.withLock { $0 })
      #expect((container.iommu != nil) == isOpen)
      device.withLock { $0 = nil }
      group.release()
    }
  }
}
