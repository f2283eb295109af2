import Testing
import VFIOClient

extension `The client` {
  @Suite struct `A group` {
    let world: World
    init() throws { world = try World() }

    @Test func `that isn't there is ENODEV, one that is open EBUSY`() throws {
      let error = #expect(throws: VFIOError.self) { _ = try world.vfio.openGroup(99) }
      #expect(error?.errno == .operationNotSupportedByDevice)
      #expect(error?.operation == "open group 99")
      let group = try world.vfio.openGroup(26)
      #expect(errno { () throws(VFIOError) in try world.vfio.openGroup(26) } == .resourceBusy)
      group.close()
      #expect(try world.vfio.openGroup(26).id == 26)
    }

    @Test func `tells whether it is viable and has a container`() throws {
      #expect(try world.vfio.openGroup(28).status() == [])
      let (container, group) = try world.group(26)
      #expect(try group.status() == [.viable, .containerSet])
      try group.unsetContainer()
      #expect(try group.status() == [.viable])
      container.close()
    }

    @Test func `can't leave its container while a device is open`() throws {
      let (_, group) = try world.group(26)
      let device = try group.openDevice(edu)
      #expect(errno { () throws(VFIOError) in try group.unsetContainer() } == .resourceBusy)
      device.close()
      try group.unsetContainer()
    }

    @Test func `without a container opens no device`() throws {
      let group = try world.vfio.openGroup(26)
      let error = #expect(throws: VFIOError.self) { _ = try group.openDevice(edu) }
      #expect(error?.description == "open device 0000:06:0d.0 of group 26: invalid argument")
    }

    @Test func `opens no device that it hasn't got`() throws {
      let (_, group) = try world.group(26)
      #expect(
        errno { () throws(VFIOError) in try group.openDevice(scratch) }
          == .operationNotSupportedByDevice)
    }

    @Test func `can be adopted by its descriptor`() throws {
      let group = try world.vfio.openGroup(26)
      let copy = Group(adopting: try group.descriptor().duplicate(), id: 26)
      group.close()
      #expect(try copy.status() == .viable)
      #expect(errno { () throws(VFIOError) in try world.vfio.openGroup(26) } == .resourceBusy)
    }

    @Test func `held by an external user stays in its container`() throws {
      let (container, group) = try world.group(26)
      let user = try world.vfio.externalUser(of: group)
      #expect(user.groupID == 26)
      #expect(try user.checkExtension(.type1v2) == 1)
      container.close()
      group.close()
      #expect(errno { () throws(VFIOError) in try world.vfio.openGroup(26) } == .resourceBusy)
      user.close()
      #expect(try world.vfio.openGroup(26).status() == .viable)
    }

    @Test func `without an IOMMU has no external user`() throws {
      let group = try world.vfio.openGroup(26)
      let error = #expect(throws: VFIOError.self) { _ = try world.vfio.externalUser(of: group) }
      #expect(error == VFIOError(operation: "hold group 26", errno: .invalidArgument))
    }
  }

  @Suite struct `The root` {
    let world: World
    init() throws { world = try World() }

    @Test func `describes the groups and devices of the server`() throws {
      let (container, group) = try world.group(26)
      let topology = try world.vfio.topology()
      #expect(topology.groups.map(\.id) == [26, 27, 28])
      #expect(topology.groups.map(\.isViable) == [true, true, false])
      #expect(topology.groups.map(\.isContainerSet) == [true, false, false])
      let first = topology.groups[0].devices
      #expect(first.map(\.address) == [edu, "0000:06:0d.1"])
      #expect(first.map(\.model) == ["edu", nil])
      #expect(first[1].driver == "pci-stub" && first[1].socket == nil)
      #expect(first[0].socket?.hasSuffix("devices/\(edu).sock") == true)
      withExtendedLifetime((container, group)) {}
    }

    @Test func `that isn't there is named in the error`() {
      let error = #expect(throws: VFIOError.self) { _ = try VFIO.connect(directory: "/nowhere") }
      #expect(error?.description == "connect to /nowhere/vfio.sock: no such file or directory")
    }

    @Test func `whose server has gone fails with ECONNRESET, again and again`() throws {
      let container = try world.vfio.openContainer()
      world.stop()
      for _ in 0..<3 {
        #expect(errno { () throws(VFIOError) in try container.apiVersion() } == .connectionReset)
      }
    }
  }
}
