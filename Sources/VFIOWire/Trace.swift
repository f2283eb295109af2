/// What a record of a trace begins with (TRACE_RECORD): `u64 time, u64 connection, u32 event,
/// u32 count`. The message follows that was seen: its header, and the first bytes of its payload.
public struct TraceRecord: Sendable, Equatable {
  public static let size = 24
  /// Bytes of a message's payload that a record has at most.
  public static let payloadLimit = 256

  public enum Event: UInt32, Sendable {
    /// The server has received the message.
    case received
    /// The server has sent the message.
    case sent
    /// The connection has closed; no message.
    case closed
    /// `count` messages came faster than they were read, and have no records; no message.
    case lost
  }

  /// When: nanoseconds since 1970 (UTC).
  public var time: UInt64
  /// The server's number of the connection; never used again. 0 for `lost`.
  public var connection: UInt64
  public var event: Event
  /// Descriptors that came with the message.
  public var count: UInt32

  public init(time: UInt64, connection: UInt64, event: Event, count: UInt32 = 0) {
    self.time = time
    self.connection = connection
    self.event = event
    self.count = count
  }

  /// Reads the record at the start of `bytes`; nil when there are too few, or the event isn't known.
  public init?(_ bytes: Span<UInt8>) {
    guard bytes.count >= Self.size, let event = Event(rawValue: bytes.uint32(at: 16)) else {
      return nil
    }
    time = bytes.uint64(at: 0)
    connection = bytes.uint64(at: 8)
    self.event = event
    count = bytes.uint32(at: 20)
  }

  /// Writes the record at `offset`, where there are 24 bytes of room.
  public func write(to bytes: inout MutableSpan<UInt8>, at offset: Int) {
    bytes.set(time, at: offset)
    bytes.set(connection, at: offset + 8)
    bytes.set(event.rawValue, at: offset + 16)
    bytes.set(count, at: offset + 20)
  }
}
