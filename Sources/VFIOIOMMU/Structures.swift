import SystemPackage

extension Span where Element == UInt8 {
  /// The field of a structure at a byte offset, in host byte order; `EINVAL` when the structure ends
  /// before it.
  func field<Field: FixedWidthInteger & UnsignedInteger>(
    at offset: Int, as type: Field.Type = Field.self
  ) throws(Errno) -> Field {
    let size = Field.bitWidth / 8
    guard count >= size, offset <= count - size else { throw .invalidArgument }
    var value: Field = 0
    for index in 0..<size {
      value |= Field(self[offset + index]) << Field(8 * index)
    }
    return Field(littleEndian: value)
  }

  /// A copy of a part of a structure; `EINVAL` when the structure ends before it does.
  func bytes(_ range: Range<Int>) throws(Errno) -> [UInt8] {
    guard range.lowerBound >= 0, range.upperBound <= count else { throw .invalidArgument }
    return range.map { self[$0] }
  }
}

extension [UInt8] {
  /// Appends a field of a structure in host byte order.
  mutating func append<Field: FixedWidthInteger & UnsignedInteger>(field: Field) {
    let value = field.littleEndian
    for index in 0..<Field.bitWidth / 8 {
      append(UInt8(truncatingIfNeeded: value >> Field(8 * index)))
    }
  }
}
