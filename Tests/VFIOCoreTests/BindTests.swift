import Dispatch
import Locks
import SystemPackage
import Testing
import VFIOCore

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
