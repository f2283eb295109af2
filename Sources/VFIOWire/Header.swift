/// The 16 bytes before every message, on every socket, in host byte order (vfio-user, 'Header').
public struct Header: Sendable, Equatable {
  public static let size = 16

  /// The sender's own number for the message, echoed in the reply.
  public var id: UInt16
  public var command: Command
  /// Bytes of the whole message, this header included.
  public var messageSize: UInt32
  public var flags: Flags
  /// A positive errno in a reply with `Flags.error`.
  public var error: UInt32

  public struct Flags: OptionSet, Sendable {
    public let rawValue: UInt32
    @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Bits 0–3 are the type: 0 a command, 1 a reply.
    public static let type = Flags(rawValue: 0xF)
    public static let reply = Flags(rawValue: 1)
    /// The sender wants no reply, not even to an error.
    public static let noReply = Flags(rawValue: 0x10)
    public static let error = Flags(rawValue: 0x20)
  }

  public init(
    id: UInt16, command: Command, messageSize: UInt32, flags: Flags = [], error: UInt32 = 0
  ) {
    self.id = id
    self.command = command
    self.messageSize = messageSize
    self.flags = flags
    self.error = error
  }

  /// Reads the header at `offset`, where 16 bytes must be.
  public init(_ bytes: Span<UInt8>, at offset: Int = 0) {
    id = bytes.load(at: offset)
    command = Command(rawValue: bytes.load(at: offset + 2))
    messageSize = bytes.load(at: offset + 4)
    flags = Flags(rawValue: bytes.load(at: offset + 8))
    error = bytes.load(at: offset + 12)
  }
}

extension Span where Element == UInt8 {
  /// The integer at `offset`, host byte order. The caller has checked that it is there.
  @inlinable public func load<Integer: FixedWidthInteger>(
    _ type: Integer.Type = Integer.self, at offset: Int
  ) -> Integer {
    var value: Integer = 0
    for index in 0..<Integer.bitWidth / 8 {
      value |= Integer(truncatingIfNeeded: self[offset + index]) << (8 * index)
    }
    return value.littleEndianInMemory
  }
}

extension FixedWidthInteger {
  /// `self` was put together with its lowest byte first; the same bytes as this host orders them.
  @inlinable var littleEndianInMemory: Self { Self(littleEndian: self) }
}
