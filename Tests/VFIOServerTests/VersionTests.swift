import SystemPackage
import Testing
import VFIOWire

@testable import LinuxIO
@testable import VFIOServer

/// The text of the capabilities that are offered for those proposed.
private func offer(_ proposed: String) throws -> String {
  let world = try World()
  let reply = try RootSession(world.service, world.administration, peer: anyone)
    .call(.version, version01 + text(proposed))
  return String(decoding: reply.body.dropFirst(4), as: UTF8.self)
}

private let anyone = Credentials(process: 1, user: 1000, group: 1000)

@Suite struct `VERSION` {
  private let world: World
  private let root: RootSession

  init() throws {
    world = try World()
    root = RootSession(world.service, world.administration, peer: anyone)
  }

  @Test func `without capabilities is answered without any`() throws {
    #expect(try root.call(.version, version01).body == bytes(UInt16(0), UInt16(1)) + text("{}"))
  }

  @Test(arguments: [(0, 0), (1, 1), (2, 1), (0xFFFF, 1)] as [(UInt16, UInt16)])
  func `agrees on the lower minor version`(_ theirs: UInt16, _ agreed: UInt16) throws {
    let reply = try root.call(.version, bytes(UInt16(0), theirs))
    #expect(reply.body == bytes(UInt16(0), agreed) + text("{}"))
  }

  @Test(arguments: [1, 0xFFFF] as [UInt16])
  func `for another major version fails with EINVAL and ends the connection`(
    _ major: UInt16
  ) throws {
    #expect(throws: Errno.invalidArgument) { try root.call(.version, bytes(major, UInt16(1))) }
    #expect(root.isFinished)
  }

  @Test func `that comes twice fails with EINVAL and the connection goes on`() throws {
    _ = try root.call(.version, version01)
    #expect(throws: Errno.invalidArgument) { try root.call(.version, version01) }
    #expect(throws: Errno.invalidArgument) { try root.call(.version, bytes(UInt16(9), UInt16(9))) }
    #expect(!root.isFinished)
    _ = try root.call(.openContainer)
  }

  @Test(arguments: [0, 1, 2, 3])
  func `shorter than its two numbers fails with EINVAL and may be tried again`(
    _ count: Int
  ) throws {
    #expect(throws: Errno.invalidArgument) {
      try root.call(.version, Array(version01.prefix(count)))
    }
    #expect(!root.isFinished)
    _ = try root.call(.version, version01)
  }

  @Test(arguments: [.openContainer, .openGroup, .getTopology, .getExternalUser] as [Command])
  func `must come before anything else on the root socket`(_ command: Command) throws {
    #expect(throws: Errno.invalidArgument) { try root.call(command, bytes(UInt64(64))) }
    #expect(!root.isFinished)
  }

  @Test(arguments: 2...18 as ClosedRange<UInt16>)
  func `must come before anything else on a device socket`(_ command: UInt16) throws {
    let device = world.socket()
    #expect(throws: Errno.invalidArgument) {
      try device.call(Command(rawValue: command), [UInt8](repeating: 0, count: 64))
    }
    #expect(!device.isFinished)
    _ = try device.call(.version, version01)
  }

  @Test func `offers what the client proposed and nothing else`() throws {
    #expect(try offer("{}") == "{}\0")
    #expect(try offer(#"{"capabilities":{}}"#) == #"{"capabilities":{}}"# + "\0")
    #expect(
      try offer(#"{"capabilities":{"max_msg_fds":1,"unheard_of":[1,{"a":null}]}}"#)
        == #"{"capabilities":{"max_msg_fds":16}}"# + "\0")
    #expect(
      try offer(#"{"capabilities":{"pgsizes":1,"max_dma_maps":1,"max_data_xfer_size":1}}"#)
        == #"{"capabilities":{"pgsizes":4096,"max_dma_maps":65535,"max_data_xfer_size":1048576}}"#
        + "\0")
  }

  @Test(arguments: [(16, 16), (17, 17), (253, 200), (Int.max, 200), (0, 16)])
  func `tells of more descriptors and mappings than QEMU takes only who proposes more`(
    _ theirs: Int, _ answer: Int
  ) throws {
    var configuration = Configuration.builtIn
    configuration.limits.messageDescriptors = 200
    configuration.limits.mappings = 1 << 20
    let world = try World(configuration)
    let device = world.socket()
    let proposal = "{\"capabilities\":{\"max_msg_fds\":\(theirs),\"max_dma_maps\":\(theirs)}}"
    let reply = try device.call(.version, version01 + text(proposal))
    let mappings = theirs == .max ? 1 << 20 : 65535
    #expect(
      Array(reply.body.dropFirst(4))
        == text("{\"capabilities\":{\"max_msg_fds\":\(answer),\"max_dma_maps\":\(mappings)}}"))
    device.close()
  }

  @Test func `offers no second socket`() throws {
    #expect(
      try offer(#"{"capabilities":{"twin_socket":{"supported":true}}}"#)
        == #"{"capabilities":{}}"# + "\0")
  }

  @Test(arguments: [
    #"{}"#, #"{"pgsize":4096}"#, #"{"pgsize":8192}"#,
    #"{"pgsize":4096,"max_bitmap_size":268435456}"#,
  ])
  func `offers migration, with the size of a dirty page`(_ proposed: String) throws {
    #expect(
      try offer(#"{"capabilities":{"migration":\#(proposed)}}"#)
        == #"{"capabilities":{"migration":{"pgsize":4096}}}"# + "\0")
  }

  @Test func `offers several writes in one message to those who can send them`() throws {
    #expect(
      try offer(#"{"capabilities":{"write_multiple":true}}"#)
        == #"{"capabilities":{"write_multiple":true}}"# + "\0")
    #expect(
      try offer(#"{"capabilities":{"write_multiple":false}}"#) == #"{"capabilities":{}}"# + "\0")
  }

  @Test(arguments: [
    #"{"capabilities":{"migration":true}}"#, #"{"capabilities":{"migration":{"pgsize":"4k"}}}"#,
    #"{"capabilities":{"max_msg_fds":"many"}}"#, #"{"capabilities":{"max_msg_fds":-1}}"#,
    #"{"capabilities":{"max_dma_maps":1.5}}"#, #"{"capabilities":{"max_data_xfer_size":null}}"#,
    #"{"capabilities":{"pgsizes":18446744073709551616}}"#,
    #"{"capabilities":{"write_multiple":1}}"#, #"{"capabilities":{"twin_socket":true}}"#,
    #"{"capabilities":{"twin_socket":{"supported":"yes"}}}"#, #"{"capabilities":[]}"#,
    #"{"capabilities":7}"#, "[]", "null", "7", "{", "{}}", #"{"capabilities":"#, "",
    String(repeating: "[", count: 10_000), #"{"a":"# + String(repeating: "[", count: 60_000),
  ])
  func `with capabilities of the wrong form fails with EINVAL and may be tried again`(
    _ json: String
  ) throws {
    #expect(throws: Errno.invalidArgument) {
      try root.call(.version, version01 + text(json))
    }
    #expect(!root.isFinished)
    _ = try root.call(.version, version01)
  }

  @Test(
    arguments: [
      Array("{}".utf8), Array("{}\0 ".utf8), Array("{}\0\0".utf8),
      [0x7B, 0x22, 0xFF, 0x22, 0x7D, 0],
      [0xFF], [0xC0, 0x80, 0],
    ] as [[UInt8]])
  func `with text that is no UTF-8 up to one NUL fails with EINVAL`(_ json: [UInt8]) {
    #expect(throws: Errno.invalidArgument) { try root.call(.version, version01 + json) }
  }

  @Test func `raises the limit of a message's size`() throws {
    #expect(root.messageLimit == 64 << 10)
    _ = try root.call(.version, version01)
    #expect(root.messageLimit == 16 + 16 + (1 << 20))
  }
}
