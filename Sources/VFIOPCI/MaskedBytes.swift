/// Bytes that the device gives and the client changes where masks allow: configuration space, and
/// the MSI-X table.
struct MaskedBytes {
  private var bytes: [UInt8]
  private var initial: [UInt8]
  private var writable: [UInt8]
  private var clearable: [UInt8]

  init(count: Int) {
    bytes = [UInt8](repeating: 0, count: count)
    initial = bytes
    writable = bytes
    clearable = bytes
  }

  /// Sets a little-endian field: its value at start and after a reset, the bits that a write
  /// changes, and the bits that a written one clears.
  mutating func define<Value: FixedWidthInteger & UnsignedInteger>(
    _ offset: Int, _ value: Value, writable: Value = 0, clearable: Value = 0
  ) {
    self[offset] = value
    for byte in 0..<Value.bitWidth / 8 {
      initial[offset + byte] = UInt8(truncatingIfNeeded: value >> (8 * byte))
      self.writable[offset + byte] = UInt8(truncatingIfNeeded: writable >> (8 * byte))
      self.clearable[offset + byte] = UInt8(truncatingIfNeeded: clearable >> (8 * byte))
    }
  }

  /// A little-endian field as the device itself reads and sets it, without masks.
  subscript<Value: FixedWidthInteger & UnsignedInteger>(offset: Int) -> Value {
    get {
      var value: Value = 0
      for byte in 0..<Value.bitWidth / 8 { value |= Value(bytes[offset + byte]) << (8 * byte) }
      return value
    }
    set {
      for byte in 0..<Value.bitWidth / 8 {
        bytes[offset + byte] = UInt8(truncatingIfNeeded: newValue >> (8 * byte))
      }
    }
  }

  mutating func reset() { bytes = initial }

  /// Everything, as it is.
  var all: [UInt8] { bytes }

  /// Whether these may be the bytes at another time: they differ only where a client writes, or in
  /// `free`, which is the device's own.
  func couldBe(_ other: [UInt8], free: Range<Int> = 0..<0) -> Bool {
    other.count == bytes.count
      && bytes.indices.allSatisfy { place in
        free.contains(place)
          || (bytes[place] ^ other[place]) & ~(writable[place] | clearable[place]) == 0
      }
  }

  mutating func restore(_ other: [UInt8]) { bytes = other }

  /// A client's read; the caller has checked the range.
  func read(at offset: Int, into span: inout MutableSpan<UInt8>) {
    for index in span.indices { span[index] = bytes[offset + index] }
  }

  /// A client's write; the caller has checked the range.
  mutating func write(_ span: Span<UInt8>, at offset: Int) {
    for index in span.indices {
      let place = offset + index
      let value = span[index]
      let mask = writable[place]
      bytes[place] = ((bytes[place] & ~mask) | (value & mask)) & ~(value & clearable[place])
    }
  }
}
