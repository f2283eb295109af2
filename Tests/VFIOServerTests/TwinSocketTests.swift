import LinuxIO
import SystemPackage
import Testing
import VFIOStream
import VFIOWire

@testable import VFIOServer

private let twinSocket = "\"twin_socket\":{\"supported\":true}"

@Suite struct `The second socket of a device's client` {
  private let running: Running
  private let edu: EduClient
  private let twin: Client

  init() throws {
    var configuration = Configuration.builtIn
    configuration.limits.dmaTimeout = 3600
    running = try Running(configuration)
    edu = try EduClient(try running.socket(EduClient.name), twinSocket)
    twin = try #require(edu.twin)
    try edu.map()
  }

  private func proposal(_ capability: String) -> [UInt8] {
    version01 + text("{\"capabilities\":{\(capability)}}")
  }

  @Test func `comes with the reply to VERSION, which tells its place`() throws {
    let client = try running.socket()
    let reply = try client.call(.version, proposal(twinSocket))
    #expect(reply.descriptors.count == 1)
    let answer = String(decoding: reply.body.dropFirst(4).dropLast(), as: UTF8.self)
    #expect(
      answer.filter { $0 != " " && $0 != "\n" }
        == #"{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}"#)
  }

  @Test(arguments: ["\"twin_socket\":{\"supported\":false}", "\"twin_socket\":{}", ""])
  func `comes only to one who asks for it`(_ capability: String) throws {
    let reply = try running.socket().call(.version, proposal(capability))
    #expect(reply.descriptors.isEmpty)
    #expect(!String(decoding: reply.body, as: UTF8.self).contains("twin_socket"))
  }

  @Test func `is not offered on the root socket`() throws {
    let root = try Client(path: "\(running.directory.path)/vfio.sock")
    #expect(try root.call(.version, proposal(twinSocket)).descriptors.isEmpty)
  }

  @Test func `has the server's commands, and the first socket has none`() throws {
    try edu.startLoad(16)
    let read = try #require(try twin.nextCommand())
    #expect(read.header.command == .dmaRead)
    twin.answer(read, read.body + pattern(16))
    try edu.finish()
    try edu.startStore(16)
    let write = try #require(try twin.nextCommand())
    #expect(write.header.command == .dmaWrite && write.data == pattern(16))
    twin.answer(write)
    try edu.finish()
    #expect(!edu.client.hasCommand)
    #expect(try running.faults() == 0)
  }

  @Test func `is where an answer counts`() throws {
    try edu.startLoad(16)
    let command = try #require(try twin.nextCommand())
    edu.client.answer(command, command.body + [UInt8](repeating: 1, count: 16))
    #expect(try edu.isCopying)
    twin.answer(command, command.body + pattern(16))
    try edu.finish()
    #expect(try edu.buffer(16) == pattern(16))
  }

  @Test func `refuses commands with ENOTSUP, and goes on`() throws {
    for command in [.version, .dmaMap, .regionRead, .dmaRead] as [Command] {
      #expect(throws: Errno.notSupported) { try twin.call(command, version01) }
    }
    try edu.startLoad(16)
    let command = try #require(try twin.nextCommand())
    twin.answer(command, command.body + pattern(16))
    try edu.finish()
  }

  @Test func `may close, which faults, and the first one goes on`() throws {
    try edu.startLoad(16)
    #expect(try twin.nextCommand() != nil)
    twin.close()
    try edu.finish()
    try edu.startLoad(16)
    try edu.finish()
    #expect(!edu.client.hasCommand)
    #expect(try running.faults() == 2)
  }

  @Test func `closes with the first one`() throws {
    try edu.startLoad(16)
    #expect(try twin.nextCommand() != nil)
    edu.client.close()
    #expect(try twin.receive() == nil)
    let next = try EduClient(try running.socket(EduClient.name), twinSocket)
    try next.setBuffer([1])
  }

  @Test func `is not asked any more after the reply to an unmap`() throws {
    for _ in 0..<100 {
      try edu.startLoad(16)
      try edu.unmap()
      let asked = twin.unreadInput
      try edu.finish()
      #expect(twin.unreadInput == asked)
      _ = twin.skip(asked)
      try edu.map()
    }
  }

  @Test func `that can't be made ends a VERSION with EMFILE, and the device is free`() throws {
    var configuration = Configuration.builtIn
    configuration.limits.connections = 1
    let running = try Running(configuration)
    let client = try running.socket()
    #expect(throws: Errno.tooManyOpenFiles) { try client.call(.version, proposal(twinSocket)) }
    #expect(try client.receive() == nil)
    var next = try? running.device()
    // Its connection counts until it has closed.
    for _ in 0..<10_000 where next == nil { next = try? running.device() }
    try ask(try #require(next))
  }

  @Test func `is not given to one whose later VERSION doesn't ask for it`() throws {
    var version = Version()
    var reply = Output()
    let limits = Configuration.Limits()
    let (plain, asking) = (version01, proposal("\"max_data_xfer_size\":7,\(twinSocket)"))
    #expect(throws: Errno.invalidArgument) {
      try version.negotiate(asking.span, limits, mayTwin: true, &reply) { () throws(Errno) in
        throw .invalidArgument
      }
    }
    try version.negotiate(plain.span, limits, mayTwin: true, &reply)
    #expect(!version.hasTwin)
    #expect(version.peer.maxDataTransferSize == 1 << 20)
  }

  @Test func `leaves no descriptor behind`() throws {
    let daemon = try Daemon()
    let root = try daemon.root()
    try root.call(.getTopology, bytes(UInt32(8), UInt32(0)))
    let before = daemon.descriptors
    for round in 0..<20 {
      let edu = try EduClient(try daemon.socket(EduClient.name), twinSocket)
      let twin = try #require(edu.twin)
      try edu.map()
      try edu.startLoad(16)
      #expect(try twin.nextCommand() != nil)
      if round % 2 == 0 { twin.close() } else { edu.client.close() }
    }
    #expect(try daemon.comes(to: before, root))
  }
}
