import JSON
import VFIOClient

/// What is shown of a trace: the messages that were asked for, each with what its reply took.
struct TraceLog {
  /// Commands to show; all when empty.
  let commands: Set<String>
  /// Regions to show accesses of; all messages when empty.
  let regions: Set<UInt64>
  let isJSON: Bool

  /// A request whose reply is to come. Replies come in the order of requests.
  private struct Request {
    var id: UInt16
    var time: UInt64
    var isShown: Bool
  }
  private struct Sender: Hashable {
    var connection: UInt64
    var isClient: Bool
  }
  private var waiting: [Sender: [Request]] = [:]

  init(commands: Set<String> = [], regions: Set<UInt64> = [], isJSON: Bool = false) {
    self.commands = commands
    self.regions = regions
    self.isJSON = isJSON
  }

  /// What an event is shown as; nil when it isn't.
  mutating func line(_ event: Trace.Event) -> String? {
    switch event.kind {
    case .lost(let count):
      // Whose replies were among them isn't known.
      waiting = [:]
      return isJSON
        ? JSONValue.object([time(event), JSONMember("lost", .integer(Int128(count)))]).text
        : "\(clock(event.time))  \(count) messages lost: they came faster than they were read"
    case .closed:
      for isClient in [true, false] {
        waiting[Sender(connection: event.connection, isClient: isClient)] = nil
      }
      guard commands.isEmpty, regions.isEmpty else { return nil }
      return isJSON
        ? JSONValue.object([time(event), connection(event), JSONMember("closed", true)]).text
        : "\(clock(event.time))  #\(event.connection) closed"
    case .message(let message):
      let fields = DecodedField.fields(of: message)
      var isShown = wants(message, fields)
      var latency: UInt64?
      if message.isReply {
        if let request = takeRequest(of: message, on: event.connection) {
          isShown = request.isShown
          latency = event.time >= request.time ? event.time - request.time : 0
        }
      } else if !message.wantsNoReply {
        waiting[Sender(connection: event.connection, isClient: message.isFromClient), default: []]
          .append(Request(id: message.id, time: event.time, isShown: isShown))
      }
      guard isShown else { return nil }
      return isJSON
        ? json(event, message, fields, latency).text : text(event, message, fields, latency)
    }
  }

  private mutating func takeRequest(of reply: Trace.Message, on connection: UInt64) -> Request? {
    let sender = Sender(connection: connection, isClient: !reply.isFromClient)
    guard let first = waiting[sender]?.first, first.id == reply.id else { return nil }
    waiting[sender]?.removeFirst()
    return first
  }

  private func wants(_ message: Trace.Message, _ fields: [DecodedField]) -> Bool {
    guard commands.isEmpty || commands.contains(MessageLayout.name(of: message.command)) else {
      return false
    }
    return regions.isEmpty
      || fields.contains { field in
        guard case .region = field.style, case .number(let index) = field.value else {
          return false
        }
        return regions.contains(index)
      }
  }

  // MARK: for people

  private func text(
    _ event: Trace.Event, _ message: Trace.Message, _ fields: [DecodedField], _ latency: UInt64?
  ) -> String {
    var words = [
      clock(event.time) + " ", "#\(event.connection)", message.isFromClient ? ">" : "<",
      MessageLayout.name(of: message.command),
    ]
    if message.isReply { words.append("reply") }
    words += fields.map(\.text)
    if let errno = message.errno { words.append(errno.name) }
    if message.wantsNoReply { words.append("no-reply") }
    if message.descriptors > 0 { words.append("descriptors=\(message.descriptors)") }
    if message.isCut { words.append("(\(message.size) bytes)") }
    if let latency { words.append("(\(microseconds(latency)) us)") }
    return words.joined(separator: " ")
  }

  /// The time of day (UTC).
  private func clock(_ time: UInt64) -> String {
    let seconds = time / 1_000_000_000
    let fields = [seconds / 3600 % 24, seconds / 60 % 60, seconds % 60].map { padded($0, 2) }
    return "\(fields.joined(separator: ":")).\(padded(time / 1000 % 1_000_000, 6))"
  }

  private func microseconds(_ time: UInt64) -> String { "\(time / 1000).\(time / 100 % 10)" }

  private func padded(_ number: UInt64, _ digits: Int) -> String {
    String(repeating: "0", count: max(0, digits - "\(number)".count)) + "\(number)"
  }

  // MARK: for programs

  private func json(
    _ event: Trace.Event, _ message: Trace.Message, _ fields: [DecodedField], _ latency: UInt64?
  ) -> JSONValue {
    var members = [
      time(event), connection(event),
      JSONMember("from", message.isFromClient ? "client" : "server"),
      JSONMember("type", message.isReply ? "reply" : "request"),
      JSONMember("command", .string(MessageLayout.name(of: message.command))),
      JSONMember("number", .integer(Int128(message.command))),
      JSONMember("id", .integer(Int128(message.id))),
      JSONMember("size", .integer(Int128(message.size))),
      JSONMember("no_reply", .bool(message.wantsNoReply)),
      JSONMember("errno", message.errno.map { .string($0.name) } ?? nil),
      JSONMember("descriptors", .integer(Int128(message.descriptors))),
      JSONMember("fields", .object(fields.map(\.json))),
      JSONMember("cut", .bool(message.isCut)),
    ]
    if let latency { members.append(JSONMember("latency", .integer(Int128(latency)))) }
    return .object(members)
  }

  private func time(_ event: Trace.Event) -> JSONMember {
    JSONMember("time", .integer(Int128(event.time)))
  }

  private func connection(_ event: Trace.Event) -> JSONMember {
    JSONMember("connection", .integer(Int128(event.connection)))
  }
}

extension Trace.Message {
  /// Only the beginning of the payload was seen.
  var isCut: Bool { payload.count + 16 < Int(size) }
}
