import JSON
import Testing

@testable import VFIOClient
@testable import vfioctl

private func little(_ number: UInt64, _ size: Int) -> [UInt8] {
  (0..<size).map { UInt8(truncatingIfNeeded: number >> (8 * $0)) }
}

/// A message as a trace has it.
private func event(
  _ command: UInt16, _ payload: [UInt8] = [], reply: Bool = false, fromClient: Bool? = nil,
  id: UInt16 = 1, flags: UInt32 = 0, errno: Errno? = nil, at time: UInt64 = 0,
  on connection: UInt64 = 5, size: UInt32? = nil
) -> Trace.Event {
  Trace.Event(
    time: time, connection: connection,
    kind: .message(
      Trace.Message(
        isFromClient: fromClient ?? !reply, id: id, command: command,
        size: size ?? UInt32(16 + payload.count), flags: flags | (reply ? 1 : 0), errno: errno,
        payload: payload, descriptors: 0)))
}

private func access(_ count: UInt64, region: UInt64 = 0) -> [UInt8] {
  little(0x10, 8) + little(region, 4) + little(count, 4)
}

/// A log, with each line as it is asked for.
private final class Log {
  private var log: TraceLog
  init(_ log: TraceLog = TraceLog()) { self.log = log }
  func line(_ event: Trace.Event) -> String? { log.line(event) }
}

@Suite struct `A trace's log` {
  private let log = Log()

  @Test func `has the time of day, the connection, the way, the command and its fields`() {
    let time: UInt64 = (86_400 + 3_600 * 13 + 60 * 2 + 3) * 1_000_000_000 + 4_005_000
    #expect(
      log.line(event(9, access(4), at: time))
        == "13:02:03.004005  #5 > region-read offset=0x10 region=bar0 count=4")
  }

  @Test func `has with a reply how long its request took`() throws {
    _ = log.line(event(9, access(4), id: 1, at: 1_000))
    _ = log.line(event(9, access(4), id: 2, at: 2_000))
    let first = try #require(log.line(event(9, [], reply: true, id: 1, errno: .ioError, at: 3_500)))
    #expect(first.hasSuffix("#5 < region-read reply EIO (2.5 us)"))
    let second = try #require(log.line(event(9, access(4), reply: true, id: 2, at: 4_000)))
    #expect(second.hasSuffix("count=4 (2.0 us)"))
  }

  @Test func `tells the requests of client and server apart`() throws {
    _ = log.line(event(10, access(4), id: 7, at: 1_000))
    let dma = little(0x2000, 8) + little(64, 8)
    let request = try #require(log.line(event(11, dma, fromClient: false, id: 7, at: 2_000)))
    #expect(request.hasSuffix("#5 < dma-read address=0x2000 count=64"))
    let reply = try #require(
      log.line(event(11, dma + [1, 2], reply: true, fromClient: true, id: 7, at: 5_000)))
    #expect(reply.hasSuffix("#5 > dma-read reply address=0x2000 count=64 data=0x0201 (3.0 us)"))
    let last = try #require(log.line(event(10, access(4), reply: true, id: 7, at: 9_000)))
    #expect(last.hasSuffix("(8.0 us)"))
  }

  @Test func `gives no time to a reply whose request may be lost`() throws {
    _ = log.line(event(9, access(4), at: 1_000))
    let lost = log.line(Trace.Event(time: 1_500, connection: 0, kind: .lost(12)))
    #expect(lost?.hasSuffix("12 messages lost: they came faster than they were read") == true)
    let reply = try #require(log.line(event(9, access(4), reply: true, at: 2_000)))
    #expect(reply.hasSuffix("count=4"))
  }

  @Test func `gives no time to a reply of another connection, or after one closed`() {
    _ = log.line(event(9, access(4), at: 1_000, on: 5))
    #expect(log.line(event(9, access(4), reply: true, on: 6))?.hasSuffix("us)") == false)
    _ = log.line(Trace.Event(time: 1_500, connection: 5, kind: .closed))
    #expect(log.line(event(9, access(4), reply: true, on: 5))?.hasSuffix("us)") == false)
  }

  @Test func `doesn't wait for the reply to a request that wants none`() throws {
    let posted = try #require(log.line(event(13, id: 1, flags: 0x10, at: 1_000)))
    #expect(posted.hasSuffix("device-reset no-reply"))
    _ = log.line(event(13, id: 2, at: 2_000))
    #expect(log.line(event(13, reply: true, id: 2, at: 3_000))?.hasSuffix("(1.0 us)") == true)
  }

  @Test func `keeps the reply of a request that it shows, also an error`() {
    let log = Log(TraceLog(regions: [2]))
    #expect(log.line(event(9, access(4, region: 2))) != nil)
    #expect(log.line(event(9, reply: true, errno: .invalidArgument)) != nil)
    #expect(log.line(event(9, access(4, region: 1))) == nil)
    #expect(log.line(event(9, reply: true, errno: .invalidArgument)) == nil)
    #expect(log.line(event(13)) == nil)
  }

  @Test func `says of a message that was cut how long it is`() {
    let line = log.line(event(10, access(4096) + [UInt8](repeating: 7, count: 240), size: 4128))
    #expect(line?.hasSuffix("data=07070707070707070707070707070707... (4128 bytes)") == true)
  }

  @Test(
    arguments: [
      (9, [1, 2, 3], "rest=010203"), (9, access(4) + [1], "count=4 rest=0x01"),
      (77, [1, 2], "command-77 rest=0x0201"),
      (2, little(32, 4) + little(7, 4), "flags=read|write|0x4"),
      (8, little(20, 4) + little(0x24, 4) + little(9, 4), "flags=eventfd|trigger index=9"),
      (16, little(8, 4) + little(0x20005, 4), "flags=set|0x5"),
      (13, [], "device-reset"),
    ] as [(UInt16, [UInt8], String)])
  func `shows a message that isn't whole, or isn't known, as far as it goes`(
    _ command: UInt16, _ payload: [UInt8], _ end: String
  ) {
    #expect(log.line(event(command, payload))?.hasSuffix(end) == true)
  }

  @Test func `is JSON for programs`() throws {
    let log = Log(TraceLog(isJSON: true))
    let text = try #require(
      log.line(event(8, little(20, 4) + little(0x60, 4) + [1], flags: 0x10, at: 9)))
    let json = try JSONValue(parsing: Array(text.utf8).span)
    #expect(json["time"] == 9 && json["connection"] == 5 && json["no_reply"] == true)
    #expect(json["from"] == "client" && json["type"] == "request")
    #expect(json["command"] == "device-set-irqs" && json["number"] == 8)
    #expect(json["errno"] == .null && json["cut"] == false && json["latency"] == nil)
    #expect(
      json["fields"] == ["argsz": 20, "flags": ["trigger", "0x40"], "rest": "01"])
  }

  @Test func `has a name for each command of vfio-user, and no two the same`() {
    #expect(Set(MessageLayout.names).count == MessageLayout.all.count)
    #expect(MessageLayout.all.keys.sorted() == Array(1...13) + Array(15...18))
  }
}
