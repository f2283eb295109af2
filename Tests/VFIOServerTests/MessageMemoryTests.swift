import LinuxIO
import SystemPackage
import Testing
import VFIOCore
import VFIOWire

@testable import VFIOServer

@Suite struct `Memory that a client maps without a descriptor` {
  private let running: Running
  private let edu: EduClient

  /// A server that would wait for an answer longer than any test.
  init() throws {
    running = try Self.server(timeout: 3600)
    edu = try EduClient(try running.socket(EduClient.name))
    try edu.map()
  }

  private static func server(timeout: Int) throws -> Running {
    var configuration = Configuration.builtIn
    configuration.limits.dmaTimeout = timeout
    return try Running(configuration)
  }

  private func nextCommand(_ edu: EduClient) throws -> Reply {
    try #require(try edu.client.nextCommand())
  }

  private func hold(_ edu: EduClient) throws -> Reply {
    try edu.startLoad(16)
    return try nextCommand(edu)
  }

  // MARK: asked and answered

  @Test func `is read by DMA_READ, under the device's address`() throws {
    try edu.startLoad(100, from: EduClient.iova + 5)
    let command = try nextCommand(edu)
    #expect(command.header.command == .dmaRead)
    #expect(command.body == bytes(EduClient.iova + 5, UInt64(100)))
    edu.client.answer(command, command.body + pattern(100))
    try edu.finish()
    #expect(try edu.buffer(100) == pattern(100))
    #expect(try running.faults() == 0)
  }

  /// 16 bytes as the C library has it, 12 as the specification's table, and the header alone as QEMU.
  @Test(arguments: [16, 12, 0])
  func `is written by DMA_WRITE, whose reply may have any of three forms`(_ size: Int) throws {
    try edu.setBuffer(pattern(4096))
    try edu.startStore(4096)
    let command = try nextCommand(edu)
    #expect(command.header.command == .dmaWrite)
    #expect(command.body == bytes(EduClient.iova, UInt64(4096)) + pattern(4096))
    edu.client.answer(command, Array(command.body.prefix(size)))
    try edu.finish()
    #expect(try running.faults() == 0)
  }

  @Test(arguments: [(1024, 1024), (1, 1), (nil, 4096), (0, 1)] as [(Int?, Int)])
  func `is asked for in pieces of the client's max_data_xfer_size`(limit: Int?, piece: Int) throws {
    let running = try Self.server(timeout: 3600)
    let edu = try EduClient(
      try running.socket(EduClient.name), limit.map { "\"max_data_xfer_size\":\($0)" } ?? "")
    try edu.map()
    let count = min(4096, piece * 8)
    try edu.startLoad(UInt64(count))
    for place in stride(from: 0, to: count, by: piece) {
      let command = try nextCommand(edu)
      #expect(command.body == bytes(EduClient.iova + UInt64(place), UInt64(piece)))
      edu.client.answer(command, command.body + pattern(count)[place..<place + piece])
    }
    try edu.finish()
    #expect(try edu.buffer(count) == pattern(count))
  }

  @Test func `is asked for in pieces whose answers this server takes`() throws {
    var configuration = Configuration.builtIn
    configuration.limits.maxDataTransferSize = 4096
    let memory = MessageMemory(try World(configuration).service)
    let requests = ClientRequests(try Socket.pair().0)
    memory.connect(requests, limit: 1 << 30)
    #expect(memory.limit == 4096)
  }

  @Test func `may be answered for once the client's own request was`() throws {
    for _ in 0..<50 {
      let command = try hold(edu)
      try ask(edu.client)
      edu.client.answer(command, command.body + pattern(16))
      try edu.finish()
    }
    #expect(try edu.buffer(16) == pattern(16))
  }

  @Test func `is asked for of several clients at a time, each for its own device`() throws {
    let names = (0..<8).map { "0000:01:0\($0).0" }
    let running = try Running(
      Configuration(
        groups: names.indices.map {
          .init(id: UInt32($0), devices: [.init(names[$0], model: "edu", driver: "vfio-pci")])
        }))
    let clients = try names.map { try EduClient(try running.socket($0)) }
    for client in clients {
      try client.map()
      try client.startLoad(64)
    }
    for (index, client) in clients.enumerated().reversed() {
      let command = try nextCommand(client)
      client.client.answer(command, command.body + [UInt8](repeating: UInt8(index), count: 64))
    }
    for (index, client) in clients.enumerated() {
      try client.finish()
      #expect(try client.buffer(64) == [UInt8](repeating: UInt8(index), count: 64))
    }
  }

  // MARK: faults

  @Test func `that may not be written is not asked for, and faults`() throws {
    try edu.map(0x40_0000, flags: 1)
    try edu.startStore(16, to: 0x40_0000)
    try edu.finish()
    #expect(!edu.client.hasCommand)
    #expect(try running.faults() == 1)
  }

  @Test func `faults where the client answers with an error, and the stream goes on`() throws {
    try edu.setBuffer(pattern(16))
    let command = try hold(edu)
    edu.client.answer(command, error: 5)
    try edu.finish()
    #expect(try edu.buffer(16) == pattern(16))
    #expect(try running.faults() == 1)
  }

  @Test(
    arguments: [
      [],
      bytes(EduClient.iova + 1, UInt64(16)) + pattern(16),
      bytes(EduClient.iova, UInt64(15)) + pattern(16),
      bytes(EduClient.iova, UInt64.max) + pattern(16),
      bytes(EduClient.iova, UInt64(16)) + pattern(15),
      bytes(EduClient.iova, UInt64(16)) + pattern(17),
      bytes(EduClient.iova, UInt64(16)),
    ] as [[UInt8]])
  func `faults where a DMA_READ is answered with anything else`(_ answer: [UInt8]) throws {
    try edu.setBuffer([UInt8](repeating: 9, count: 16))
    let command = try hold(edu)
    edu.client.answer(command, answer)
    try edu.finish()
    #expect(try edu.buffer(16) == [UInt8](repeating: 9, count: 16))
    #expect(try running.faults() == 1)
  }

  @Test(
    arguments: [
      bytes(EduClient.iova + 1, UInt64(16)), bytes(EduClient.iova, UInt64(17)),
      bytes(EduClient.iova, UInt32(15)), bytes(EduClient.iova, UInt64(16), UInt8(0)),
      bytes(EduClient.iova),
    ] as [[UInt8]])
  func `faults where a DMA_WRITE is answered with anything else`(_ answer: [UInt8]) throws {
    try edu.startStore(16)
    edu.client.answer(try nextCommand(edu), answer)
    try edu.finish()
    #expect(try running.faults() == 1)
  }

  @Test func `faults where the client doesn't answer in time, and drops a late answer`() throws {
    let running = try Self.server(timeout: 1)
    let edu = try EduClient(try running.socket(EduClient.name))
    try edu.map()
    let late = try hold(edu)
    try edu.finish()
    #expect(try running.faults() == 1)
    let command = try hold(edu)
    edu.client.answer(late, late.body + [UInt8](repeating: 1, count: 16))
    edu.client.answer(command, command.body + pattern(16))
    try edu.finish()
    #expect(try edu.buffer(16) == pattern(16))
    #expect(try running.faults() == 1)
  }

  @Test func `is never waited for by this client's other requests, nor by other clients`() throws {
    let command = try hold(edu)
    let other = try running.device()
    let root = try running.root()
    for _ in 0..<100 {
      #expect(try edu.isCopying)
      try ask(other)
      try root.call(.getTopology, bytes(UInt32(8), UInt32(0)))
    }
    edu.client.answer(command, error: 5)
    try edu.finish()
  }

  @Test func `faults at once where too many devices wait for their clients`() throws {
    let world = try World()
    let (ours, theirs) = try Socket.pair()
    let requests = ClientRequests(ours)
    let memory = MessageMemory(world.service)
    memory.connect(requests, limit: 4096)
    for _ in 0..<128 { world.service.clientWaits.wait() }
    var page = [UInt8](repeating: 0, count: 16)
    var span = page.mutableSpan
    #expect(throws: Errno.badAddress) {
      try memory.begin().read(at: 0, into: &span)
    }
    #expect(!theirs.hasInput)
    for _ in 0..<128 { world.service.clientWaits.signal() }
  }

  // MARK: unmapped meanwhile

  @Test(arguments: [false, true])
  func `faults at once when it is unmapped, and isn't asked for any more`(all: Bool) throws {
    try edu.setBuffer(pattern(16))
    let command = try hold(edu)
    if all {
      try edu.client.call(.dmaUnmap, bytes(UInt32(24), UInt32(2), UInt64(0), UInt64(0)))
    } else {
      try edu.unmap()
    }
    try edu.finish()
    edu.client.answer(command, command.body + [UInt8](repeating: 1, count: 16))
    try edu.startLoad(16)
    try edu.finish()
    #expect(!edu.client.hasCommand)
    #expect(try running.faults() == 2)
  }

  @Test func `that stays while other memory is unmapped is waited for`() throws {
    try edu.map(0x40_0000)
    let command = try hold(edu)
    try edu.unmap(0x40_0000)
    edu.client.answer(command, command.body + pattern(16))
    try edu.finish()
    #expect(try edu.buffer(16) == pattern(16))
    #expect(try running.faults() == 0)
  }

  @Test func `faults at once when its client closes, and the next one has the device`() throws {
    _ = try hold(edu)
    edu.client.close()
    let next = try EduClient(try running.socket(EduClient.name))
    try next.setBuffer(pattern(100))
    #expect(try next.buffer(100) == pattern(100))
    #expect(try running.faults() == 1)
  }

  @Test func `keeps nobody waiting whose client closes with more behind a stop than is put aside`()
    throws
  {
    let root = try running.root()
    _ = try hold(edu)
    let stop = bytes(UInt32(16), UInt32(0x2_0002), UInt32(1), UInt32(0))
    edu.client.queue(message(.deviceFeature, stop))
    for _ in 0..<20 {
      edu.client.queue(message(.deviceGetInfo, bytes(UInt32(16), UInt32(0), UInt64(0))))
    }
    edu.client.sendMore()
    edu.client.close()
    try root.call(.getTopology, bytes(UInt32(8), UInt32(0)))
    _ = try EduClient(try running.socket(EduClient.name))
  }

  @Test func `does not keep the server from stopping`() throws {
    _ = try hold(edu)
    running.server.stop()
    #expect(try edu.client.receive() == nil)
  }
}
