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
