import Dispatch
import Locks
import SystemPackage
import Testing
import VFIOCore

@Suite struct `Groups` {
  @Test func `a group appears with its first VFIO device and goes with the last`() throws {
    let world = try World()
    try world.plug("stub", driver: "pci-stub")
    #expect(world.registry.groups.isEmpty)
    let first = try world.addDevice("first")
    let second = try world.addDevice("second")
    #expect(world.registry.groups.map(\.iommuGroup.id) == [26])
    try world.registry.removeDevice(first) { _ in }
    #expect(world.registry.groups.count == 1)
    try world.registry.removeDevice(second) { _ in }
    #expect(world.registry.groups.isEmpty)
  }

  @Test func `an open descriptor keeps a group without devices`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let group = try world.registry.openGroup(26)
    try world.registry.removeDevice(device) { _ in }
    #expect(world.registry.groups.count == 1)
    group.release()
    #expect(world.registry.groups.isEmpty)
  }

  @Test func `an external user keeps a group without devices`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let user = try group.externalUser()
    try world.registry.removeDevice(device) { _ in }
    group.release()
    #expect(world.registry.groups.count == 1)
    user.release()
    #expect(world.registry.groups.isEmpty)
  }

  @Test func `a group's minor is the lowest free number`() throws {
    let world = try World()
    var devices: [BusDevice] = []
    for id: UInt32 in [10, 11, 12] {
      devices.append(try world.addDevice("edu \(id)", in: IOMMUGroup(id: id)))
    }
    #expect(world.registry.groups.map(\.minor) == [0, 1, 2])
    try world.registry.removeDevice(devices[1]) { _ in }
    #expect(world.registry.group(minor: 1) == nil)
    try world.addDevice("edu 13", in: IOMMUGroup(id: 13))
    #expect(world.registry.group(minor: 1)?.iommuGroup.id == 13)
    try world.addDevice("edu 14", in: IOMMUGroup(id: 14))
    #expect(world.registry.group(minor: 3)?.iommuGroup.id == 14)
  }

  @Test func `threads that create a group for one IOMMU group get the same one`() throws {
    let world = try World()
    for _ in 0..<200 {
      let devices = (0..<4).map { BusDevice(name: "\($0)", iommuGroup: world.group, driver: nil) }
      DispatchQueue.concurrentPerform(iterations: devices.count) { index in
        let operations = TestDevice("edu", log: world.log)
        #expect(throws: Never.self) {
          try world.registry.plug(devices[index])
          try world.registry.addDevice(devices[index], operations: operations)
        }
      }
      #expect(world.registry.groups.count == 1)
      #expect(world.registry.groups.first?.minor == 0)
      DispatchQueue.concurrentPerform(iterations: devices.count) { index in
        #expect(throws: Never.self) {
          try world.registry.removeDevice(devices[index]) { _ in }
          try world.registry.unplug(devices[index])
        }
      }
      #expect(world.registry.groups.isEmpty)
    }
  }

  @Test func `a second IOMMU group of the same number fails with EEXIST`() throws {
    let world = try World()
    try world.addDevice("edu")
    #expect(throws: Errno.fileExists) { try world.addDevice("other", in: IOMMUGroup(id: 26)) }
  }
}

@Suite struct `Adding a device` {
  @Test func `a device without IOMMU group fails with EINVAL`() throws {
    let world = try World()
    let device = BusDevice(name: "edu", iommuGroup: nil, driver: nil)
    #expect(throws: Errno.invalidArgument) {
      try world.registry.addDevice(device, operations: TestDevice("edu", log: world.log))
    }
    #expect(world.registry.groups.isEmpty)
  }

  @Test func `a device that isn't on the bus fails with EINVAL`() throws {
    let world = try World()
    let device = BusDevice(name: "edu", iommuGroup: world.group, driver: nil)
    #expect(throws: Errno.invalidArgument) {
      try world.registry.addDevice(device, operations: TestDevice("edu", log: world.log))
    }
    #expect(world.registry.groups.isEmpty)
  }

  @Test func `a device that was added before fails with EBUSY, and is reported`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    #expect(throws: Errno.resourceBusy) {
      try world.registry.addDevice(device, operations: TestDevice("twin", log: world.log))
    }
    #expect(world.reports.lines == ["warning: device edu already exists on group 26"])
    try world.registry.removeDevice(device) { _ in }
    #expect(world.registry.groups.isEmpty)
  }

  @Test func `what a device was added with can be found by the device`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    #expect((world.registry.operations(of: device) as? TestDevice)?.name == "edu")
    try world.registry.removeDevice(device) { _ in }
    #expect(world.registry.operations(of: device) == nil)
  }
}

@Suite struct `Opening a group` {
  @Test func `a group without VFIO devices fails with ENODEV`() throws {
    let world = try World()
    try world.plug("stub", driver: "pci-stub")
    #expect(throws: Errno.operationNotSupportedByDevice) { try world.registry.openGroup(26) }
  }

  @Test func `a group that is open fails with EBUSY`() throws {
    let world = try World()
    try world.addDevice("edu")
    let group = try world.registry.openGroup(26)
    #expect(throws: Errno.resourceBusy) { try world.registry.openGroup(26) }
    group.release()
    #expect(throws: Never.self) { try world.registry.openGroup(26) }
  }

  @Test func `while a device of an earlier opening holds the container it fails with EBUSY`() throws
  {
    let world = try World()
    try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let device = try group.openDevice("edu")
    group.release()
    #expect(throws: Errno.resourceBusy) { try world.registry.openGroup(26) }
    device.release()
    #expect(throws: Never.self) { try world.registry.openGroup(26) }
  }

  @Test func `a failed opening leaves no reference behind`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let group = try world.registry.openGroup(26)
    #expect(throws: Errno.resourceBusy) { try world.registry.openGroup(26) }
    group.release()
    try world.registry.removeDevice(device) { _ in }
    #expect(world.registry.groups.isEmpty)
  }

  @Test func `one of several threads opens the group, the others get EBUSY`() throws {
    let world = try World()
    try world.addDevice("edu")
    let open = Mutex<[OpenGroup]>([])
    let busy = Mutex(0)
    DispatchQueue.concurrentPerform(iterations: 8) { _ in
      do throws(Errno) {
        let group = try world.registry.openGroup(26)
        open.withLock { $0.append(group) }
      } catch {
        #expect(error == .resourceBusy)
        busy.withLock { $0 += 1 }
      }
    }
    #expect(open.withLock { $0.count } == 1)
    #expect(busy.withLock { $0 } == 7)
  }

  @Test func `a second release does nothing, not even to a later opening`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let first = try world.registry.openGroup(26)
    first.release()
    first.release()
    let second = try world.registry.openGroup(26)
    first.release()
    #expect(throws: Errno.resourceBusy) { try world.registry.openGroup(26) }
    second.release()
    #expect(world.registry.groups.count == 1)
    try world.registry.removeDevice(device) { _ in }
    #expect(world.registry.groups.isEmpty)
  }

  @Test func `after its release every operation on a group fails with EBADF`() throws {
    let world = try World()
    try world.addDevice("edu")
    let group = try world.registry.openGroup(26)
    group.release()
    let container = Container(registry: world.registry)
    #expect(throws: Errno.badFileDescriptor) { try group.setContainer(container) }
    #expect(throws: Errno.badFileDescriptor) { try group.unsetContainer() }
    #expect(throws: Errno.badFileDescriptor) { try group.openDevice("edu") }
    #expect(throws: Errno.badFileDescriptor) { try group.externalUser() }
  }
}

@Suite struct `Status and viability` {
  func status(neighbour driver: String?) throws -> GroupStatus {
    let world = try World()
    try world.addDevice("edu")
    try world.plug("neighbour", driver: driver)
    return try world.registry.openGroup(26).status
  }

  @Test func `a group is viable when its devices have VFIO drivers or none`() throws {
    #expect(try status(neighbour: nil) == .viable)
  }

  @Test(arguments: ["pci-stub", "pcieport"])
  func `a whitelisted driver leaves a group viable`(_ driver: String) throws {
    #expect(try status(neighbour: driver) == .viable)
  }

  @Test func `a foreign driver makes a group not viable`() throws {
    #expect(try status(neighbour: "e1000") == [])
  }

  @Test func `a VFIO driver's name doesn't count, only its VFIO device does`() throws {
    #expect(try status(neighbour: "vfio-pci") == [])
  }

  @Test func `a VFIO device of another group's doesn't count`() throws {
    let world = try World()
    try world.addDevice("edu")
    try world.addDevice("other", in: IOMMUGroup(id: 27))
    try world.plug("other", driver: "vfio-pci")
    #expect(try world.registry.openGroup(26).status == [])
    #expect(try world.registry.openGroup(27).status == .viable)
  }

  @Test func `the status tells whether a container is set`() throws {
    let world = try World()
    try world.addDevice("edu")
    let group = try world.registry.openGroup(26)
    #expect(group.status == .viable)
    try group.setContainer(Container(registry: world.registry))
    #expect(group.status == [.viable, .containerSet])
    try group.unsetContainer()
    #expect(group.status == .viable)
  }

  @Test func `the status has the kernel's bits`() {
    #expect(GroupStatus.viable.rawValue == 1)
    #expect(GroupStatus.containerSet.rawValue == 2)
  }
}
