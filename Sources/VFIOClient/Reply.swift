import LinuxIO
import SystemPackage
import VFIOWire

/// A reply as it came. A field that isn't there is the server's mistake: `EPROTO`.
struct Reply: Sendable {
  var header: Header
  var bytes: [UInt8]
  var descriptors: [Descriptor] = []

  func require(_ size: Int) throws(Errno) {
    guard bytes.count >= size else { throw .protocolError }
  }

  func uint16(at offset: Int) throws(Errno) -> UInt16 {
    try require(offset + 2)
    return bytes.span.uint16(at: offset)
  }

  func uint32(at offset: Int) throws(Errno) -> UInt32 {
    try require(offset + 4)
    return bytes.span.uint32(at: offset)
  }

  func uint64(at offset: Int) throws(Errno) -> UInt64 {
    try require(offset + 8)
    return bytes.span.uint64(at: offset)
  }

  /// What an ioctl returns: the number that its reply begins with.
  func result() throws(Errno) -> Int64 { Int64(bitPattern: try uint64(at: 0)) }

  /// The structure that an ioctl wrote back, behind its result.
  func structure() throws(Errno) -> Reply {
    try require(8)
    return Reply(header: header, bytes: Array(bytes[8...]))
  }

  /// The descriptor that the reply must have brought.
  func descriptor() throws(Errno) -> Descriptor {
    guard let descriptor = descriptors.first else { throw .protocolError }
    return descriptor
  }

  /// The integer of which these bytes are the memory, as a little-endian device has it.
  func value<Value: FixedWidthInteger>(at offset: Int) throws(Errno) -> Value {
    let size = MemoryLayout<Value>.size
    try require(offset + size)
    var value: Value = 0
    for index in (0..<size).reversed() {
      value = value << 8 | Value(truncatingIfNeeded: bytes[offset + index])
    }
    return value
  }

  /// The capabilities of an information structure: each one's number and where its data begin. A link
  /// that doesn't lead on ends the chain.
  func capabilities(from first: UInt32) throws(Errno) -> [(id: UInt16, data: Int)] {
    var found: [(UInt16, Int)] = []
    var offset = Int(first)
    while offset > 0 {
      try require(offset + 8)
      found.append((bytes.span.uint16(at: offset), offset + 8))
      let next = Int(bytes.span.uint32(at: offset + 4))
      guard next > offset else { break }
      offset = next
    }
    return found
  }

  /// The pairs of numbers in a capability that holds `u32 count, u32 reserved`, then `count` of them.
  func pairs(at offset: Int) throws(Errno) -> [(UInt64, UInt64)] {
    let count = Int(try uint32(at: offset))
    var pairs: [(UInt64, UInt64)] = []
    for index in 0..<count {
      let place = offset + 8 + 16 * index
      pairs.append((try uint64(at: place), try uint64(at: place + 8)))
    }
    return pairs
  }
}
