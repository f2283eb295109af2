import Testing
import VFIOClient

extension `The client` {
  @Suite struct `An administrator` {
    @Test func `adds a device by its description`() throws {
      let request = try Peer.playRoot {
        try $0.addDevice(["address": "0000:06:0d.2", "model": "edu"], toGroup: 26)
      }
      #expect(
        request
          == (0x4010, #"{"group":26,"device":{"address":"0000:06:0d.2","model":"edu"}}"#))
    }

    @Test func `removes a device, within whole seconds if told`() throws {
      let request = try Peer.playRoot { try $0.removeDevice(edu) }
      #expect(request == (0x4011, #"{"name":"0000:06:0d.0"}"#))
      let hurried = try Peer.playRoot { try $0.removeDevice(edu, timeout: .milliseconds(1500)) }
      #expect(hurried == (0x4011, #"{"name":"0000:06:0d.0","timeout":2}"#))
    }

    @Test func `binds and unbinds drivers`() throws {
      let bind = try Peer.playRoot { try $0.bindDriver("e1000", to: edu) }
      #expect(bind == (0x4012, #"{"name":"0000:06:0d.0","driver":"e1000"}"#))
      let forced = try Peer.playRoot { try $0.bindDriver("e1000", to: edu, force: true) }
      #expect(forced == (0x4012, #"{"name":"0000:06:0d.0","driver":"e1000","force":true}"#))
      let unbind = try Peer.playRoot { try $0.unbindDriver("vfio-pci", from: edu) }
      #expect(unbind == (0x4013, #"{"name":"0000:06:0d.0","driver":"vfio-pci"}"#))
    }

    @Test func `sees a device come and go`() throws {
      let world = try World()
      let address = "0000:09:00.0"
      try world.vfio.addDevice(["address": .string(address), "model": "edu"], toGroup: 29)
      let group = try #require(try world.vfio.topology().groups.first { $0.id == 29 })
      #expect(group.devices.map(\.address) == [address])
      _ = try Device.connect(to: try #require(group.devices[0].socket)).info()
      try world.vfio.unbindDriver("vfio-pci", from: address)
      #expect(throws: VFIOError.self) { try world.vfio.openGroup(29) }
      try world.vfio.bindDriver("vfio-pci", to: address)
      try world.vfio.openGroup(29).close()
      try world.vfio.removeDevice(address)
      #expect(try !world.vfio.topology().groups.contains { $0.id == 29 })
    }

    @Test func `is told which device isn't there`() throws {
      let world = try World()
      let error = #expect(throws: VFIOError.self) {
        try world.vfio.removeDevice("0000:99:00.0", timeout: .seconds(1))
      }
      #expect(error?.operation == "remove device 0000:99:00.0")
    }
  }
}
