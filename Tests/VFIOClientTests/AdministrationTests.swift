import Testing
import VFIOClient

extension `The client` {
  @Suite struct `An administrator` {
    @Test func `adds a device by its description`() throws {
      let text = #"{"group": 26, "address": "0000:06:0d.2", "model": "edu"}"#
      let request = try Peer.playRoot { try $0.addDevice(text) }
      #expect(request == (0x4010, text))
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

    @Test func `is told which device isn't there`() throws {
      let world = try World()
      let error = #expect(throws: VFIOError.self) {
        try world.vfio.removeDevice("0000:99:00.0", timeout: .seconds(1))
      }
      #expect(error?.operation == "remove device 0000:99:00.0")
    }
  }
}
