import JSON
import LinuxIO
import SystemPackage
import Testing
import VFIOStream
import VFIOWire

@testable import VFIOServer

/// A record as it was received.
private struct Seen {
  var record: TraceRecord
  /// nil where there is none.
  var header: Header?
  var payload: [UInt8]

  init(_ reply: Reply) throws {
    let record = TraceRecord(reply.body.span)
    self.record = try #require(record)
    #expect(reply.header.command == .traceRecord && reply.header.flags == .noReply)
    let message = Array(reply.body.dropFirst(TraceRecord.size))
    header = message.isEmpty ? nil : Header(message.span)
    payload = Array(message.dropFirst(Header.size))
  }
}

extension Client {
  fileprivate func trace(_ device: String = World.scratch) throws -> Client {
    try Client(call(.trace, text(device)).descriptor)
  }

  /// The next record of a trace; nil at its end.
  fileprivate func nextSeen() throws -> Seen? { try receive().map { try Seen($0) } }

  fileprivate func nextMessage(_ event: TraceRecord.Event) throws -> Seen {
    let seen = try #require(try nextSeen())
    #expect(seen.record.event == event)
    return seen
  }
}

private func read(_ count: UInt32, at offset: UInt64 = 0, region: UInt32 = 0) -> [UInt8] {
  bytes(offset, region, count)
}

extension `A running server` {
  @Suite struct `traces a device` {
    private let server: Running
    private let root: Client

    init() throws {
      server = try Running()
      root = try server.root()
    }

    @Test func `with a copy of each request and of its reply`() throws {
      let trace = try root.trace()
      let device = try server.device()
      try device.call(.regionRead, read(4, at: 0x10))
      for command in [Command.version, .regionRead] {
        let (request, reply) = (try trace.nextMessage(.received), try trace.nextMessage(.sent))
        #expect(request.header?.command == command && reply.header?.command == command)
        #expect(request.header?.flags == [] && reply.header?.flags == .reply)
        #expect(reply.record.time >= request.record.time && request.record.time > 0)
        #expect(reply.record.connection == request.record.connection)
        guard command == .regionRead else { continue }
        #expect(request.payload == read(4, at: 0x10))
        #expect(reply.payload == read(4, at: 0x10) + [0, 0, 0, 0])
      }
      device.close()
      #expect(try trace.nextSeen()?.record.event == .closed)
    }

    @Test func `on connections that were there before, and out of its group`() throws {
      let (container, group) = (try root.openContainer(), try root.openGroup())
      try group.setContainer(container)
      try container.call(.setIOMMU, World.type1v2)
      let device = try group.openDevice()
      try ask(device)
      let trace = try root.trace()
      let second = try group.openDevice()
      try ask(device)
      let version = try trace.nextMessage(.received)
      #expect(version.header?.command == .version)
      _ = try trace.nextMessage(.sent)
      let asked = try trace.nextMessage(.received)
      #expect(asked.header?.command == .deviceGetInfo)
      #expect(asked.record.connection != version.record.connection)
      second.close()
    }

    @Test func `with errors, and with no reply where none was sent`() throws {
      let device = try server.device()
      let trace = try root.trace()
      device.send(message(.regionRead, read(4, region: 1), id: 7))
      device.send(message(.deviceReset, id: 8, flags: .noReply))
      device.send(bytes(UInt16(9), Command.deviceReset.rawValue, UInt32(3), UInt32(0), UInt32(0)))
      _ = try trace.nextMessage(.received)
      let refused = try trace.nextMessage(.sent)
      #expect(refused.header?.error == UInt32(Errno.invalidArgument.rawValue))
      #expect(refused.header?.flags == [.reply, .error] && refused.payload.isEmpty)
      let reset = try trace.nextMessage(.received)
      #expect(reset.header?.flags == .noReply && reset.header?.id == 8)
      let impossible = try trace.nextMessage(.received)
      #expect(impossible.header?.id == 9 && impossible.header?.messageSize == 3)
      #expect(try trace.nextMessage(.sent).header?.id == 9)
      #expect(try trace.nextSeen()?.record.event == .closed)
    }

    @Test func `with how many descriptors a message brought and took`() throws {
      let device = try server.device()
      let trace = try root.trace()
      let info = try device.call(
        .deviceGetRegionInfo,
        bytes(UInt32(64), UInt32(0), UInt32(2), UInt32(0), UInt64(0), UInt64(0)))
      #expect(info.descriptors.count == 1)
      #expect(try trace.nextMessage(.received).record.count == 0)
      #expect(try trace.nextMessage(.sent).record.count == 1)
      let event = try EventFD()
      try device.call(
        .deviceSetIRQs, bytes(UInt32(20), UInt32(0x24), UInt32(2), UInt32(0), UInt32(1)),
        with: [event.descriptor])
      #expect(try trace.nextMessage(.received).record.count == 1)
      #expect(try trace.nextMessage(.sent).record.count == 0)
    }

    @Test func `with the first 256 bytes of a payload, and its whole size`() throws {
      let device = try server.device()
      let trace = try root.trace()
      try device.call(.regionRead, read(4096))
      _ = try trace.nextMessage(.received)
      let reply = try trace.nextMessage(.sent)
      #expect(reply.payload.count == 256)
      #expect(reply.header?.messageSize == UInt32(16 + 16 + 4096))
    }

    @Test func `to each who asked, and not to one who has closed`() throws {
      let (first, second) = (try root.trace(), try root.trace())
      let device = try server.device()
      for trace in [first, second] {
        #expect(try trace.nextMessage(.received).header?.command == .version)
      }
      first.close()
      try ask(device)
      _ = try second.nextMessage(.sent)
      #expect(try second.nextMessage(.received).header?.command == .deviceGetInfo)
    }

    @Test func `and nothing of another device`() throws {
      let trace = try root.trace()
      try ask(try server.device("0000:06:0d.0"))
      let device = try server.device()
      #expect(try trace.nextMessage(.received).record.connection > 0)
      _ = try trace.nextMessage(.sent)
      try ask(device)
      #expect(try trace.nextMessage(.received).header?.command == .deviceGetInfo)
    }

    @Test func `until it is removed, after the last record`() throws {
      let trace = try root.trace()
      let device = try server.device()
      device.close()
      try root.call(.removeDevice, text("{\"name\": \"\(World.scratch)\"}"))
      _ = (try trace.nextMessage(.received), try trace.nextMessage(.sent))
      #expect(try trace.nextSeen()?.record.event == .closed)
      #expect(try trace.nextSeen() == nil)
      #expect(throws: Errno.operationNotSupportedByDevice) { try root.trace() }
    }

    @Test func `also while its driver is unbound and bound again`() throws {
      let trace = try root.trace()
      try root.call(.unbindDriver, text("{\"name\": \"\(World.scratch)\"}"))
      try root.call(
        .bindDriver, text("{\"name\": \"\(World.scratch)\", \"driver\": \"vfio-pci\"}"))
      _ = try server.device()
      #expect(try trace.nextMessage(.received).header?.command == .version)
    }

    @Test func `which waits for no tracer, and counts what one has lost`() throws {
      let device = try server.device()
      let trace = try root.trace()
      let count = 10_000
      for _ in 0..<count { try device.call(.regionRead, read(1024)) }
      var (seen, lost) = (0, 0)
      while seen + lost < 2 * count {
        let record = try #require(try trace.nextSeen()).record
        if record.event == .lost { lost += Int(record.count) } else { seen += 1 }
      }
      #expect(lost > 0 && seen > 1000 && seen + lost == 2 * count)
      try ask(device)
      #expect(try trace.nextMessage(.received).header?.command == .deviceGetInfo)
    }

    @Test func `and lives on when its tracer sends what it likes`() throws {
      let trace = try root.trace()
      trace.send([UInt8](repeating: 0xFF, count: 64))
      let device = try server.device()
      try ask(device)
    }
  }

  @Test func `traces a device whose connection shares the control loop`() throws {
    let groups = (0..<50).map { number in
      Configuration.Group(
        id: UInt32(number),
        devices: [.init("0000:01:\(hex2(number)).0", model: "edu", driver: "vfio-pci")])
    }
    let server = try Running(Configuration(groups: groups))
    let root = try server.root()
    var devices: [Client] = []
    for group in groups {
      let device = try server.device(group.devices[0].address)
      try ask(device)
      devices.append(device)
    }
    let trace = try root.trace("0000:01:31.0")
    try ask(try #require(devices.last))
    #expect(try trace.nextMessage(.received).header?.command == .deviceGetInfo)
    #expect(try trace.nextMessage(.sent).header?.command == .deviceGetInfo)
  }

  private func hex2(_ number: Int) -> String {
    number < 16 ? "0\(String(number, radix: 16))" : String(number, radix: 16)
  }

  @Test func `describes a device in use, which doesn't notice`() throws {
    let server = try Running()
    let (root, device) = (try server.root(), try server.device())
    try device.call(
      .regionWrite, bytes(UInt64(4), UInt32(7), UInt32(2)) + bytes(UInt16(7)))
    let reply = try root.call(.getDevice, text(World.scratch))
    #expect(reply.body.last == 0)
    let body = Array(reply.body.dropLast())
    let json = try JSONValue(parsing: body.span)
    let config = try device.call(.regionRead, read(256, region: 7)).body.dropFirst(16)
    let digits = config.map { byte in hex2(Int(byte)) }.joined()
    #expect(json["config"] == .string(digits) && digits.hasPrefix("34127a5c0700"))
    guard case .array(let regions)? = json["regions"] else {
      Issue.record("no regions")
      return
    }
    #expect(
      regions.compactMap { $0["index"] } == [0, 2, 4, 7] && regions[1]["size"] == 0x20_0000)
    #expect(regions[1]["mappable"] == [[0x1000, 0x20_0000]])
  }
}

@Suite struct `Whoever isn't the administrator` {
  @Test(arguments: [Command.trace, .getDevice])
  func `may not look into a device`(_ command: Command) throws {
    let world = try World()
    let other = try world.root(user: effectiveUser() &+ 1000)
    #expect(throws: Errno.notPermitted) { try other.call(command, text(World.scratch)) }
  }
}
