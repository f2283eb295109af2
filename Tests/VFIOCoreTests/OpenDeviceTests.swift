import Dispatch
import SystemPackage
import Testing
import VFIOCore

@Suite struct `GET_DEVICE_FD` {
  @Test func `without a container it fails with EINVAL`() throws {
    let world = try World()
    try world.addDevice("edu")
    let group = try world.registry.openGroup(26)
    #expect(throws: Errno.invalidArgument) { try group.openDevice("edu") }
  }

  @Test func `without an IOMMU driver it fails with EINVAL`() throws {
    let world = try World()
    try world.addDevice("edu")
    let group = try world.registry.openGroup(26)
    try group.setContainer(Container(registry: world.registry))
    #expect(throws: Errno.invalidArgument) { try group.openDevice("edu") }
    #expect(world.log.lines.isEmpty)
  }

  @Test func `in a group that isn't viable it fails with EINVAL`() throws {
    let world = try World()
    try world.addDevice("edu")
    try world.plug("nic", driver: "e1000")
    let (group, _) = try world.openLiveGroup()
    #expect(throws: Errno.invalidArgument) { try group.openDevice("edu") }
  }

  @Test(arguments: ["", "ed", "edu ", "stub", "other"])
  func `a device that VFIO doesn't have in this group fails with ENODEV`(_ name: String) throws {
    let world = try World()
    try world.addDevice("edu")
    try world.plug("stub", driver: "pci-stub")
    try world.addDevice("other", in: IOMMUGroup(id: 27))
    let (group, _) = try world.openLiveGroup()
    #expect(throws: Errno.operationNotSupportedByDevice) { try group.openDevice(name) }
  }

  @Test func `the device's own open error is returned, and the device is no container user`() throws
  {
    let world = try World()
    try world.addDevice("edu", openError: .ioError)
    let (group, _) = try world.openLiveGroup()
    world.log.clear()
    #expect(throws: Errno.ioError) { try group.openDevice("edu") }
    #expect(world.log.lines == ["edu open"])
    try group.unsetContainer()
  }

  @Test func `the device gets its container's IOMMU`() throws {
    let world = try World()
    let busDevice = try world.addDevice("edu")
    let (group, container) = try world.openLiveGroup()
    let device = try group.openDevice("edu")
    #expect(device.name == "edu")
    #expect(device.iommu === container.iommu)
    let operations = try #require(device.operations as? TestDevice)
    #expect(operations === world.registry.operations(of: busDevice))
    let dma = try #require(operations.dma)
    #expect(throws: Never.self) { try dma.write([UInt8]().span, to: 0) }
  }

  @Test func `whether the device keeps its state is passed to it`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    world.log.clear()
    let device = try group.openDevice("edu", keepingState: true)
    #expect(world.log.lines == ["edu open keeping state"])
    device.release()
  }

  @Test func `a device with an IOMMU of its own has another of the container's type`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, container) = try world.openLiveGroup()
    world.log.clear()
    let device = try group.openDevice("edu", ownIOMMU: true)
    #expect(device.iommu !== container.iommu)
    #expect(world.log.lines == ["type1 open 1", "type1 attach 26", "edu open"])
  }

  @Test func `a device's own IOMMU goes with its descriptor, and the container's stays`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, container) = try world.openLiveGroup()
    var device: OpenDevice? = try group.openDevice("edu", ownIOMMU: true)
    #expect(device != nil)
    world.log.clear()
    device = nil
    #expect(world.log.lines == ["edu release", "type1 release"])
    #expect(container.iommu != nil)
  }

  @Test func `a device that doesn't open leaves no IOMMU of its own behind`() throws {
    let world = try World()
    try world.addDevice("edu", openError: .ioError)
    let (group, _) = try world.openLiveGroup()
    world.log.clear()
    #expect(throws: Errno.ioError) { try group.openDevice("edu", ownIOMMU: true) }
    #expect(
      world.log.lines == ["type1 open 1", "type1 attach 26", "edu open", "type1 release"])
  }

  @Test func `a device may be opened again while it is open`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let first = try group.openDevice("edu")
    let second = try group.openDevice("edu")
    first.release()
    #expect(throws: Errno.resourceBusy) { try group.unsetContainer() }
    second.release()
    try group.unsetContainer()
  }

  @Test func `closing the descriptor releases the device before the container`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let device = try group.openDevice("edu")
    group.release()
    world.log.clear()
    device.release()
    #expect(world.log.lines == ["edu release", "type1 detach 26", "type1 release"])
  }

  @Test func `a second release of a device does nothing`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let device = try group.openDevice("edu")
    device.release()
    world.log.clear()
    device.release()
    #expect(world.log.lines.isEmpty)
    try group.unsetContainer()
  }

  @Test func `a failure after the open releases the device`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    world.log.clear()
    func openWithoutDescriptor() throws {
      let device = try group.openDevice("edu")
      #expect(device.name == "edu")
      throw Errno.tooManyOpenFiles
    }
    #expect(throws: Errno.tooManyOpenFiles) { try openWithoutDescriptor() }
    #expect(world.log.lines == ["edu open", "edu release"])
    try group.unsetContainer()
  }

  @Test func `an unset that begins while the device is opening waits, and gets EBUSY`() throws {
    let world = try World()
    let opening = DispatchSemaphore(value: 0)
    try world.addDevice("edu", onOpen: { opening.signal() })
    let (group, container) = try world.openLiveGroup()
    let unset = DispatchSemaphore(value: 0)
    DispatchQueue.global().async {
      opening.wait()
      #expect(throws: Errno.resourceBusy) { try group.unsetContainer() }
      unset.signal()
    }
    let device = try group.openDevice("edu")
    unset.wait()
    #expect(container.iommu === device.iommu)
    device.release()
  }
}

@Suite struct `External users` {
  @Test func `without a container it fails with EINVAL`() throws {
    let world = try World()
    try world.addDevice("edu")
    let group = try world.registry.openGroup(26)
    #expect(throws: Errno.invalidArgument) { try group.externalUser() }
  }

  @Test func `without an IOMMU driver it fails with EINVAL, and is no container user`() throws {
    let world = try World()
    try world.addDevice("edu")
    let group = try world.registry.openGroup(26)
    try group.setContainer(Container(registry: world.registry))
    #expect(throws: Errno.invalidArgument) { try group.externalUser() }
    try group.unsetContainer()
  }

  @Test func `in a group that isn't viable it fails with EINVAL, and is no container user`() throws
  {
    let world = try World()
    try world.addDevice("edu")
    try world.plug("nic", driver: "e1000")
    let (group, _) = try world.openLiveGroup()
    #expect(throws: Errno.invalidArgument) { try group.externalUser() }
    try group.unsetContainer()
  }

  @Test func `an external user gives the IOMMU group's id and the driver's extensions`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let user = try group.externalUser()
    #expect(user.groupID == 26)
    #expect(user.checkExtension(5) == 100)
  }

  @Test func `an external user holds container and group until its release`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, container) = try world.openLiveGroup()
    let user = try group.externalUser()
    group.release()
    #expect(throws: Errno.resourceBusy) { try world.registry.openGroup(26) }
    #expect(container.iommu != nil)
    user.release()
    #expect(container.iommu == nil)
    #expect(throws: Never.self) { try world.registry.openGroup(26) }
  }

  @Test func `a second release of an external user does nothing`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let first = try group.externalUser()
    let second = try group.externalUser()
    first.release()
    first.release()
    #expect(throws: Errno.resourceBusy) { try group.unsetContainer() }
    second.release()
    try group.unsetContainer()
    #expect(world.registry.groups.count == 1)
  }
}
