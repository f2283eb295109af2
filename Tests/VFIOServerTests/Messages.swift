import LinuxIO
import SystemPackage
import VFIOStream
import VFIOWire

@testable import VFIOServer

/// The bytes of integers one after another: a structure without holes.
func bytes<each Field: FixedWidthInteger>(_ field: repeat each Field) -> [UInt8] {
  var all: [UInt8] = []
  for field in repeat each field {
    for index in 0..<field.bitWidth / 8 {
      all.append(UInt8(truncatingIfNeeded: field >> (8 * index)))
    }
  }
  return all
}

/// A string with its NUL.
func text(_ string: String) -> [UInt8] { Array(string.utf8) + [0] }

/// The result of an ioctl that returns 0.
let zero = bytes(Int64(0))

/// A reply without its header.
struct Reply {
  var header: Header
  var body: [UInt8]
  var descriptors: [Descriptor] = []

  func uint32(at offset: Int) -> UInt32 { body.span.uint32(at: offset) }

  /// The only descriptor that it brought.
  var descriptor: Descriptor {
    get throws(Errno) {
      guard descriptors.count == 1, let first = descriptors.first else { throw .badFileDescriptor }
      return first
    }
  }
}

extension Session {
  /// Answers one message, without a socket.
  @discardableResult
  func call(
    _ command: Command, _ body: [UInt8] = [], with descriptors: [Descriptor] = [],
    from sender: Credentials? = nil, mayHandOut: Bool = true
  ) throws(Errno) -> Reply {
    let header = Header(
      id: 1, command: command, messageSize: UInt32(Header.size + body.count))
    var output = Output()
    output.begin(replyTo: header)
    try handle(
      Request(header: header, descriptors: descriptors, sender: sender, mayHandOut: mayHandOut),
      body.span, &output)
    output.finish()
    let (range, descriptors) = output.next
    return try output.withBytes(range) { bytes throws(Errno) in
      Reply(
        header: Header(bytes), body: (Header.size..<bytes.count).map { bytes[$0] },
        descriptors: descriptors)
    }
  }
}

/// A message as it travels.
func message(
  _ command: Command, _ body: [UInt8] = [], id: UInt16 = 1, flags: Header.Flags = []
) -> [UInt8] {
  bytes(
    id, command.rawValue, UInt32(Header.size + body.count), flags.rawValue, UInt32(0)) + body
}

extension Command {
  static let iommuGetInfo = Command(rawValue: 0x3B70)
  static let iommuMapDMA = Command(rawValue: 0x3B71)
}

/// VERSION's body for 0.1, without capabilities.
let version01 = bytes(UInt16(0), UInt16(1))
