import Dispatch
import Locks
import SystemPackage
import Testing
import VFIOCore

@Suite struct `The bus` {
  @Test func `a device without IOMMU group cannot be plugged, EINVAL`() throws {
    let world = try World()
    let device = BusDevice(name: "edu", iommuGroup: nil, driver: nil)
    #expect(throws: Errno.invalidArgument) { try world.registry.plug(device) }
  }

  @Test func `two devices of a group cannot have one name, EEXIST`() throws {
    let world = try World()
    try world.plug("edu", driver: nil)
    #expect(throws: Errno.fileExists) { try world.plug("edu", driver: nil) }
    #expect(world.group.devices.count == 1)
  }

  @Test func `a device with a driver cannot be unplugged, EBUSY`() throws {
    let world = try World()
    let device = try world.plug("nic", driver: "e1000")
    #expect(throws: Errno.resourceBusy) { try world.registry.unplug(device) }
    try world.registry.unbind(device)
    try world.registry.unplug(device)
    #expect(world.group.devices.isEmpty)
  }

  @Test func `a VFIO device cannot be unplugged, EBUSY`() throws {
    let world = try World()
    let device = try world.plug("edu", driver: nil)
    try world.registry.addDevice(device, operations: TestDevice("edu", log: world.log))
    #expect(throws: Errno.resourceBusy) { try world.registry.unplug(device) }
  }

  @Test func `a device that isn't on the bus cannot be unplugged, ENODEV`() throws {
    let world = try World()
    for group in [world.group, nil] {
      let device = BusDevice(name: "edu", iommuGroup: group, driver: nil)
      #expect(throws: Errno.operationNotSupportedByDevice) { try world.registry.unplug(device) }
    }
  }

  @Test func `a VFIO group is notified of all six: add, bind, bound, unbind, unbound, del`() throws
  {
    let world = try World()
    try world.addDevice("edu")
    let nic = try world.plug("nic", driver: nil)
    try world.registry.bind(nic, to: "e1000")
    try world.registry.unbind(nic)
    try world.registry.unplug(nic)
    #expect(
      world.reports.lines == [
        "device nic added to group 26, driver none",
        "device nic, group 26: binding to driver e1000",
        "device nic, group 26: bound to driver e1000",
        "device nic, group 26: unbinding from driver e1000",
        "device nic, group 26: unbound",
        "device nic deleted from group 26",
      ])
  }

  @Test func `an IOMMU group without VFIO device is not notified`() throws {
    let world = try World()
    let nic = try world.plug("nic", driver: nil)
    try world.registry.bind(nic, to: "e1000")
    try world.registry.unbind(nic)
    try world.registry.unplug(nic)
    #expect(world.reports.lines.isEmpty)
  }

  @Test func `a device with a foreign driver added to a live group is reported`() throws {
    let world = try World()
    try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    try world.plug("nic", driver: "e1000")
    #expect(
      world.reports.lines == ["warning: device nic added to live group 26, driver e1000"])
    #expect(!group.status.contains(.viable))
  }
}

@Suite struct `Binding a driver` {
  @Test func `a device that isn't on the bus fails with ENODEV`() throws {
    let world = try World()
    let device = BusDevice(name: "edu", iommuGroup: world.group, driver: nil)
    #expect(throws: Errno.operationNotSupportedByDevice) {
      try world.registry.bind(device, to: "e1000")
    }
    #expect(device.driver == nil)
  }

  @Test func `a bind that races with a client never puts a foreign driver beside an open device`()
    throws
  {
    let world = try World()
    try world.addDevice("edu")
    let nic = try world.plug("nic", driver: nil)
    for _ in 0..<200 {
      let open = Mutex<OpenDevice?>(nil)
      let group = try world.registry.openGroup(26)
      DispatchQueue.concurrentPerform(iterations: 2) { index in
        do throws(Errno) {
          if index == 0 {
            let container = Container(registry: world.registry)
            try group.setContainer(container)
            try container.setIOMMU(1)
            let device = try group.openDevice("edu")
            open.withLock { $0 = device }
          } else {
            try world.registry.bind(nic, to: "e1000")
          }
        } catch {
          #expect(error == (index == 0 ? .invalidArgument : .resourceBusy))
        }
      }
      let isOpen = open.withLock { $0 != nil }
      #expect(!isOpen || nic.driver == nil)
      open.withLock { $0 = nil }
      group.release()
      if nic.driver != nil { try world.registry.unbind(nic) }
    }
  }

  @Test func `a device that has a driver fails with EBUSY`() throws {
    let world = try World()
    let nic = try world.plug("nic", driver: "e1000")
    #expect(throws: Errno.resourceBusy) { try world.registry.bind(nic, to: "pci-stub") }
    #expect(nic.driver == "e1000")
  }

  @Test func `a foreign driver may be bound in a group that isn't live, which isn't viable then`()
    throws
  {
    let world = try World()
    try world.addDevice("edu")
    let nic = try world.plug("nic", driver: nil)
    let group = try world.registry.openGroup(26)
    try world.registry.bind(nic, to: "e1000")
    #expect(nic.driver == "e1000")
    #expect(group.status == [])
    #expect(!world.group.isQuarantined)
  }

  @Test func `a foreign driver in a live group is refused with EBUSY before any notification`()
    throws
  {
    let world = try World()
    try world.addDevice("edu")
    let nic = try world.plug("nic", driver: nil)
    let (group, _) = try world.openLiveGroup()
    world.reports.clear()
    #expect(throws: Errno.resourceBusy) { try world.registry.bind(nic, to: "e1000") }
    #expect(world.reports.lines.isEmpty)
    #expect(nic.driver == nil)
    #expect(group.status == [.viable, .containerSet])
    try world.registry.bind(nic, to: "pci-stub")
  }

  @Test(arguments: ["pci-stub", "pcieport"])
  func `a whitelisted driver may be bound in a live group`(_ driver: String) throws {
    let world = try World()
    try world.addDevice("edu")
    let nic = try world.plug("nic", driver: nil)
    let (group, _) = try world.openLiveGroup()
    try world.registry.bind(nic, to: driver)
    #expect(group.status == [.viable, .containerSet])
    #expect(!world.group.isQuarantined)
  }

  @Test func `a VFIO driver gives its device away between BIND and BOUND`() throws {
    let world = try World()
    try world.addDevice("edu")
    let nic = try world.plug("nic", driver: nil)
    let (group, _) = try world.openLiveGroup()
    world.reports.clear()
    try world.registry.bind(nic, to: "vfio-pci") { () throws(Errno) in
      #expect(world.reports.lines == ["device nic, group 26: binding to driver vfio-pci"])
      try world.registry.addDevice(nic, operations: TestDevice("nic", log: world.log))
    }
    #expect(world.reports.lines.last == "device nic, group 26: bound to driver vfio-pci")
    #expect(!world.group.isQuarantined)
    let device = try group.openDevice("nic")
    device.release()
  }

  @Test func `a driver whose probe fails isn't bound, and its error is thrown`() throws {
    let world = try World()
    try world.addDevice("edu")
    let nic = try world.plug("nic", driver: nil)
    world.reports.clear()
    #expect(throws: Errno.ioError) {
      try world.registry.bind(nic, to: "vfio-pci") { () throws(Errno) in throw .ioError }
    }
    #expect(nic.driver == nil)
    #expect(world.reports.lines == ["device nic, group 26: binding to driver vfio-pci"])
    try world.registry.bind(nic, to: "e1000")
  }

  @Test func `a VFIO driver cannot be bound to a device without IOMMU group, EINVAL`() throws {
    let world = try World()
    let device = BusDevice(name: "edu", iommuGroup: nil, driver: nil)
    #expect(throws: Errno.invalidArgument) {
      try world.registry.bind(device, to: "vfio-pci") { () throws(Errno) in
        try world.registry.addDevice(device, operations: TestDevice("edu", log: world.log))
      }
    }
    try world.registry.bind(device, to: "e1000")
    #expect(device.driver == "e1000")
  }

  @Test func `during a bind the device cannot be bound or unbound, EBUSY`() throws {
    let world = try World()
    let device = try world.plug("edu", driver: nil)
    try world.registry.bind(device, to: "vfio-pci") { () throws(Errno) in
      #expect(throws: Errno.resourceBusy) { try world.registry.bind(device, to: "e1000") }
      #expect(throws: Errno.resourceBusy) { try world.registry.unbind(device) }
    }
    #expect(device.driver == "vfio-pci")
  }
}

@Suite struct `Unbinding a driver` {
  @Test func `a device without driver fails with ENODEV`() throws {
    let world = try World()
    let nic = try world.plug("nic", driver: nil)
    #expect(throws: Errno.operationNotSupportedByDevice) { try world.registry.unbind(nic) }
  }

  @Test func `a foreign driver is unbound at once, and the group is viable again`() throws {
    let world = try World()
    try world.addDevice("edu")
    let nic = try world.plug("nic", driver: "e1000")
    let group = try world.registry.openGroup(26)
    let completed = Log()
    let removal = try world.registry.unbind(nic) { operations in
      completed.add(operations == nil ? "nothing" : "device")
    }
    #expect(removal == nil)
    #expect(completed.lines == ["nothing"])
    #expect(nic.driver == nil)
    #expect(group.status == .viable)
  }

  @Test func `a VFIO driver is unbound when the last descriptor closes`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let open = try group.openDevice("edu")
    world.reports.clear()
    let completed = Log()
    let removal = try world.registry.unbind(device) { operations in
      completed.add((operations as? TestDevice)?.name ?? "?")
    }
    #expect(removal != nil)
    #expect(world.log.lines.last == "edu request")
    #expect(device.driver == "vfio-pci")
    #expect(world.reports.lines == ["device edu, group 26: unbinding from driver vfio-pci"])
    open.release()
    #expect(device.driver == nil)
    #expect(completed.lines == ["edu"])
    #expect(world.reports.lines.last == "device edu, group 26: unbound")
    #expect(group.status == [.viable, .containerSet])
    try world.registry.bind(device, to: "pci-stub")
  }

  @Test func `while a VFIO driver waits another unbind fails with EBUSY`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let open = try group.openDevice("edu")
    try world.registry.unbind(device)
    #expect(throws: Errno.resourceBusy) { try world.registry.unbind(device) }
    #expect(throws: Errno.resourceBusy) { try world.registry.bind(device, to: "e1000") }
    open.release()
    #expect(device.driver == nil)
  }

  @Test func `a device that its driver is removing fails with EBUSY`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let open = try group.openDevice("edu")
    let removal = try world.registry.removeDevice(device) { _ in }
    #expect(throws: Errno.resourceBusy) { try world.registry.unbind(device) }
    #expect(removal.cancel())
    open.release()
    try world.registry.unbind(device)
    #expect(device.driver == nil)
  }

  @Test func `after a cancelled unbind the driver is bound, and can be unbound again`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let open = try group.openDevice("edu")
    let completed = Log()
    let removal = try world.registry.unbind(device) { _ in completed.add("first") }
    #expect(removal?.cancel() == true)
    open.release()
    #expect(device.driver == "vfio-pci")
    try world.registry.unbind(device) { _ in completed.add("second") }
    #expect(device.driver == nil)
    #expect(completed.lines == ["second"])
  }
}

@Suite struct `Quarantine` {
  /// A live group with an open device, into which a foreign driver was forced.
  func quarantinedWorld() throws -> (World, OpenGroup, OpenDevice, nic: BusDevice) {
    let world = try World()
    try world.addDevice("edu")
    let nic = try world.plug("nic", driver: nil)
    let (group, _) = try world.openLiveGroup()
    let device = try group.openDevice("edu")
    world.reports.clear()
    try world.registry.bind(nic, to: "e1000", force: true)
    return (world, group, device, nic)
  }

  @Test func `a foreign driver forced into a live group quarantines it, and is reported`() throws {
    let (world, group, _, nic) = try quarantinedWorld()
    #expect(world.group.isQuarantined)
    #expect(nic.driver == "e1000")
    #expect(
      world.reports.lines == [
        "device nic, group 26: binding to driver e1000",
        "device nic, group 26: bound to driver e1000",
        "warning: group 26 quarantined: driver e1000 bound to device nic while the group is in use",
      ])
    group.release()
  }

  @Test func `force does nothing to a group that isn't live`() throws {
    let world = try World()
    try world.addDevice("edu")
    let nic = try world.plug("nic", driver: nil)
    try world.registry.bind(nic, to: "e1000", force: true)
    #expect(!world.group.isQuarantined)
  }

  @Test func `a VFIO driver that gives nothing away counts as foreign`() throws {
    let world = try World()
    try world.addDevice("edu")
    let nic = try world.plug("nic", driver: nil)
    let (group, _) = try world.openLiveGroup()
    try world.registry.bind(nic, to: "vfio-pci") { () throws(Errno) in }
    #expect(world.group.isQuarantined)
    group.release()
  }

  @Test func `a quarantined group is not viable, so nothing more can be opened`() throws {
    let (world, group, device, nic) = try quarantinedWorld()
    try world.registry.unbind(nic)
    #expect(group.status == .containerSet)
    #expect(throws: Errno.invalidArgument) { try group.openDevice("edu") }
    #expect(throws: Errno.invalidArgument) { try group.externalUser() }
    device.release()
  }

  @Test func `a quarantined group's devices do no DMA`() throws {
    let (world, _, device, _) = try quarantinedWorld()
    let dma = try #require((device.operations as? TestDevice)?.dma)
    #expect(throws: DMAFault(iova: 0x1000, completed: 0)) {
      try dma.write([1].span, to: 0x1000)
    }
    #expect(throws: DMAFault(iova: 0x2000, completed: 0)) {
      var bytes: [UInt8] = [0]
      var span = bytes.mutableSpan
      try dma.read(0x2000, into: &span)
    }
    #expect(world.group.isQuarantined)
  }

  @Test func `it ends when the users have gone and then the foreign driver`() throws {
    let (world, group, device, nic) = try quarantinedWorld()
    group.release()
    device.release()
    #expect(world.group.isQuarantined)
    try world.registry.unbind(nic)
    #expect(!world.group.isQuarantined)
    #expect(try world.registry.openGroup(26).status == .viable)
  }

  @Test func `it ends when the foreign driver has gone and then the last user`() throws {
    let (world, group, device, nic) = try quarantinedWorld()
    try world.registry.unbind(nic)
    device.release()
    #expect(world.group.isQuarantined)
    try group.unsetContainer()
    #expect(!world.group.isQuarantined)
    #expect(group.status == .viable)
  }
}
