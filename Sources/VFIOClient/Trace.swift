import LinuxIO
import Locks
import SystemPackage
import VFIOStream
import VFIOWire

/// A live log of a device's messages, in both directions, on whichever of its connections. It begins
/// with messages that are handled after it was opened, and ends when the device is removed.
///
/// The server drops what isn't read in time, and says how much: the device waits for nobody.
public final class Trace: Sendable {
  /// What was seen.
  public struct Event: Sendable, Equatable {
    /// When: nanoseconds since 1970 (UTC).
    public var time: UInt64
    /// The server's number of the connection, 0 for `lost`.
    public var connection: UInt64
    public var kind: Kind
  }

  public enum Kind: Sendable, Equatable {
    case message(Message)
    /// The connection has closed.
    case closed
    /// So many messages were dropped here.
    case lost(UInt32)
  }

  /// A message of vfio-user.
  public struct Message: Sendable, Equatable {
    public var isFromClient: Bool
    public var id: UInt16
    public var command: UInt16
    /// Bytes of the whole message, its header of 16 included.
    public var size: UInt32
    /// The header's.
    public var flags: UInt32
    /// The errno of an error reply; nil for other messages.
    public var errno: Errno?
    /// What follows the header; its beginning when it is longer than 256 bytes.
    public var payload: [UInt8]
    /// How many descriptors came with it.
    public var descriptors: UInt32

    public var isReply: Bool { flags & Header.Flags.type.rawValue == Header.Flags.reply.rawValue }
    /// The sender wants no reply.
    public var wantsNoReply: Bool { flags & Header.Flags.noReply.rawValue != 0 }
  }

  private let socket: Socket
  private let input = Mutex(Input(limit: 1 << 16, descriptorLimit: 0))

  init(_ socket: Socket) { self.socket = socket }

  /// Waits until something is seen, and returns all that has arrived; nothing once the trace has ended.
  public func next() throws(VFIOError) -> [Event] {
    try naming("read a trace") { () throws(Errno) in
      try input.withLock { input throws(Errno) in
        while true {
          let events = try Self.take(&input)
          if !events.isEmpty { return events }
          let received = try input.withRoom { room throws(Errno) in
            try socket.receive(into: &room, wait: true)
          }
          guard let received, received.count > 0 else { return [] }
          input.received(received.count, descriptors: [], truncated: false)
        }
      }
    }
  }

  /// Ends the trace: whoever waits in `next` returns.
  public func end() { socket.shutdown() }

  private static func take(_ input: inout Input) throws(Errno) -> [Event] {
    var events: [Event] = []
    while true {
      switch input.next() {
      case .incomplete: return events
      case .impossible: throw .protocolError
      case .message(let header, let body, _, _):
        guard header.command == .traceRecord else { continue }
        let bytes = input.bytes
        events.append(try Event(bytes.span.extracting(body)))
      }
    }
  }
}

extension Trace.Event {
  init(_ bytes: Span<UInt8>) throws(Errno) {
    guard let record = TraceRecord(bytes) else { throw .protocolError }
    (time, connection) = (record.time, record.connection)
    switch record.event {
    case .closed: kind = .closed
    case .lost: kind = .lost(record.count)
    case .received, .sent:
      guard bytes.count >= TraceRecord.size + Header.size else { throw .protocolError }
      let header = Header(bytes, at: TraceRecord.size)
      kind = .message(
        Trace.Message(
          isFromClient: record.event == .received, id: header.id,
          command: header.command.rawValue, size: header.messageSize,
          flags: header.flags.rawValue,
          errno: header.flags.contains(.error)
            ? Errno(rawValue: CInt(truncatingIfNeeded: header.error)) : nil,
          payload: (TraceRecord.size + Header.size..<bytes.count).map { bytes[$0] },
          descriptors: record.count))
    }
  }
}

extension VFIO {
  /// Begins a live log of a device's messages. For the administrator: `EPERM` for others. `ENODEV` when
  /// there is no such device, `EMFILE` when the server has as many traces as it may.
  public func trace(_ device: String) throws(VFIOError) -> Trace {
    try connection.call(.trace, "trace \(device)") { output in
      output.append(Array(device.utf8) + [0])
    } decode: { reply throws(Errno) in
      Trace(Socket(try reply.descriptor()))
    }
  }
}
