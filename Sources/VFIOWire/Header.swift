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
    id = bytes.uint16(at: offset)
    command = Command(rawValue: bytes.uint16(at: offset + 2))
    messageSize = bytes.uint32(at: offset + 4)
    flags = Flags(rawValue: bytes.uint32(at: offset + 8))
    error = bytes.uint32(at: offset + 12)
  }

  /// Writes the header at `offset`, where there are 16 bytes of room.
  public func write(to bytes: inout MutableSpan<UInt8>, at offset: Int) {
    bytes.set(id, at: offset)
    bytes.set(command.rawValue, at: offset + 2)
    bytes.set(messageSize, at: offset + 4)
    bytes.set(flags.rawValue, at: offset + 8)
    bytes.set(error, at: offset + 12)
  }
}

// Integers of host byte order at any offset. The caller has checked that they are there; one that isn't
// is a bug, and traps.
extension Span where Element == UInt8 {
  public func uint16(at offset: Int) -> UInt16 {
    UInt16(littleEndian: UInt16(self[offset]) | UInt16(self[offset + 1]) << 8)
  }

  public func uint32(at offset: Int) -> UInt32 {
    UInt32(
      littleEndian: UInt32(self[offset]) | UInt32(self[offset + 1]) << 8
        | UInt32(self[offset + 2]) << 16 | UInt32(self[offset + 3]) << 24)
  }

  public func uint64(at offset: Int) -> UInt64 {
    let (low, high) = (
      UInt32(littleEndian: uint32(at: offset)), UInt32(littleEndian: uint32(at: offset + 4))
    )
    return UInt64(littleEndian: UInt64(low) | UInt64(high) << 32)
  }
}

extension Span where Element == UInt8 {
  /// A copy, for what outlives the message.
  public var array: [UInt8] {
    var array: [UInt8] = []
    array.reserveCapacity(count)
    for index in indices { array.append(self[index]) }
    return array
  }
}

extension FixedWidthInteger {
  /// The integer as it stands in a message.
  public var messageBytes: [UInt8] {
    let value = littleEndian
    return (0..<Self.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
  }
}

extension MutableSpan where Element == UInt8 {
  public mutating func set(_ value: UInt16, at offset: Int) {
    let value = value.littleEndian
    self[offset] = UInt8(truncatingIfNeeded: value)
    self[offset + 1] = UInt8(truncatingIfNeeded: value >> 8)
  }

  public mutating func set(_ value: UInt32, at offset: Int) {
    let value = value.littleEndian
    self[offset] = UInt8(truncatingIfNeeded: value)
    self[offset + 1] = UInt8(truncatingIfNeeded: value >> 8)
    self[offset + 2] = UInt8(truncatingIfNeeded: value >> 16)
    self[offset + 3] = UInt8(truncatingIfNeeded: value >> 24)
  }

  public mutating func set(_ value: UInt64, at offset: Int) {
    let value = value.littleEndian
    set(UInt32(truncatingIfNeeded: value).littleEndian, at: offset)
    set(UInt32(truncatingIfNeeded: value >> 32).littleEndian, at: offset + 4)
  }
}
