import SystemPackage
import Testing
import VFIOCore

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
