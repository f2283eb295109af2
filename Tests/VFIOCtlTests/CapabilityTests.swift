import Testing
import VFIOClient

@testable import vfioctl

/// Configuration space with a list of capabilities, each at its place.
private func config(_ capabilities: [(Int, [UInt8])], size: Int = 256) -> ConfigSpace {
  var bytes = [UInt8](repeating: 0, count: size)
  bytes[0x06] = 0x10
  var link = 0x34
  for (place, capability) in capabilities {
    bytes[link] = UInt8(place)
    bytes.replaceSubrange(place..<place + capability.count, with: capability)
    link = place + 1
  }
  return ConfigSpace(bytes: bytes)
}

@Suite struct `Configuration space` {
  @Test func `shows power management with its state`() {
    let space = config([(0x40, [0x01, 0, 0x03, 0x02, 0x0B, 0x01])])
    #expect(space.capabilities.map(\.title) == ["Power Management version 3"])
    #expect(
      space.capabilities[0].lines == [
        "Flags: DSI- D1+ D2-", "Status: D3 NoSoftRst+ PME-Enable+ PME-",
      ])
  }

  @Test func `shows PCI Express with its payloads and its link`() {
    var express = [UInt8](repeating: 0, count: 20)
    express.replaceSubrange(0..<10, with: [0x10, 0, 0x02, 0, 0x01, 0, 0, 0x10, 0x20, 0x20])
    express[12] = 0x43  // speed 3, x4
    express[18] = 0x11  // speed 1, x1
    let space = config([(0x40, express)])
    #expect(space.capabilities[0].title == "Express version 2, Endpoint, MSI 00")
    let lines = space.capabilities[0].lines
    #expect(lines[0] == "Device capabilities: MaxPayload 256 bytes ExtTag- RBE- FLReset+")
    #expect(lines[1].hasPrefix("Device control: MaxPayload 256 bytes, MaxReadReq 512 bytes "))
    #expect(lines[2] == "Link: speed code 1 of 3, width x1 of x4")
  }

  @Test func `shows a vendor's bytes`() {
    let space = config([(0x50, [0x09, 0, 0x06, 0xAA, 0xBB, 0xCC])])
    #expect(space.capabilities[0].title == "Vendor Specific: Len=06")
    #expect(space.capabilities[0].lines == ["090006aabbcc"])
  }

  @Test func `shows the masks of MSI that has them`() {
    var msi = [UInt8](repeating: 0, count: 24)
    msi.replaceSubrange(0..<4, with: [0x05, 0, 0xA7, 0x01])
    msi[16] = 0x02
    let space = config([(0x40, msi)])
    #expect(space.capabilities[0].title == "MSI: Enable+ Count=4/8 Maskable+ 64bit+")
    #expect(space.capabilities[0].lines[1] == "Masking: 00000002  Pending: 00000000")
  }

  @Test func `names capabilities that it doesn't decode`() {
    let space = config([(0x40, [0x12, 0]), (0x48, [0x7F, 0])])
    #expect(space.capabilities.map(\.title) == ["SATA HBA", "Capability 0x7f"])
  }

  @Test func `shows extended capabilities`() {
    var space = config([], size: 4096).bytes
    space.replaceSubrange(0x100..<0x104, with: [0x01, 0, 0x02, 0x14])
    space.replaceSubrange(0x140..<0x144, with: [0x34, 0x12, 0x01, 0])
    let capabilities = ConfigSpace(bytes: space).capabilities
    #expect(
      capabilities.map(\.title) == [
        "Advanced Error Reporting, version 2", "Extended capability 0x1234, version 1",
      ])
    #expect(capabilities.map(\.offset) == [0x100, 0x140])
  }

  @Test func `ends where its list leads in a circle`() {
    var bytes = config([(0x40, [0x01, 0]), (0x48, [0x05, 0])]).bytes
    bytes[0x49] = 0x40
    #expect(ConfigSpace(bytes: bytes).capabilities.map(\.offset) == [0x40, 0x48])
    bytes = [UInt8](repeating: 0, count: 4096)
    bytes.replaceSubrange(0x100..<0x104, with: [0x01, 0, 0x01, 0x10])
    #expect(ConfigSpace(bytes: bytes).capabilities.map(\.offset) == [0x100])
  }

  @Test(arguments: 0...255)
  func `is shown whatever is in it, and however little of it there is`(_ byte: UInt8) {
    for count in [0, 1, 0x34, 0x35, 0x41, 0x44, 0xFF, 0x100, 0x102, 0x104, 0x1000] {
      let space = ConfigSpace(bytes: [UInt8](repeating: byte, count: count))
      #expect(!space.identity.isEmpty && !space.control.isEmpty && !space.state.isEmpty)
      #expect(space.capabilities.count <= 3)
      _ = space.interrupt
    }
  }
}
