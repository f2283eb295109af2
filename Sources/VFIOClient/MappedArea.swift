import LinuxIO
import SystemPackage

/// A part of a region that is in this process's memory, so that an access is no message.
///
/// Offsets count from the region's beginning. The device's owner may take the memory away; what
/// is tried then fails with `EFAULT`.
public struct MappedArea: Sendable {
  /// Where in the region the area begins.
  public let offset: UInt64
  public let size: UInt64
  public let isWritable: Bool
  /// For errors.
  private let name: String
  private let mapping: SharedMapping
  /// Where in the mapping the region begins.
  private let start: UInt64

  init(
    _ name: String, _ mapping: SharedMapping, offset: UInt64, size: UInt64, at start: UInt64,
    isWritable: Bool
  ) {
    self.name = name
    self.mapping = mapping
    self.offset = offset
    self.size = size
    self.start = start
    self.isWritable = isWritable
  }

  /// The integer at `offset`, in one access of its own size where it is aligned.
  ///
  /// `EINVAL` outside the area.
  public func load<Value: FixedWidthInteger>(
    _ type: Value.Type = Value.self, at offset: UInt64
  ) throws(VFIOError) -> Value {
    let size = MemoryLayout<Value>.size
    return try naming("load \(size) bytes at \(hex(offset)) of \(name)") { () throws(Errno) in
      Value(littleEndian: try mapping.load(at: try place(of: offset, size)))
    }
  }

  /// Stores an integer at `offset`, in one access of its own size where it is aligned.
  ///
  /// `EINVAL` outside the area, `EACCES` where it may only be read.
  public func store<Value: FixedWidthInteger>(
    _ value: Value, at offset: UInt64
  ) throws(VFIOError) {
    let size = MemoryLayout<Value>.size
    try naming("store \(size) bytes at \(hex(offset)) of \(name)") { () throws(Errno) in
      guard isWritable else { throw .permissionDenied }
      try mapping.store(value.littleEndian, at: try place(of: offset, size))
    }
  }

  /// Copies `count` bytes from `offset`. `EINVAL` outside the area.
  public func read(at offset: UInt64, count: Int) throws(VFIOError) -> [UInt8] {
    try naming("read \(count) bytes at \(hex(offset)) of \(name)") { () throws(Errno) in
      let place = try place(of: offset, count)
      var bytes = [UInt8](repeating: 0, count: count)
      var span = bytes.mutableSpan
      try mapping.read(at: place, into: &span)
      return bytes
    }
  }

  /// Copies bytes to `offset`. `EINVAL` outside the area, `EACCES` where it may only be read.
  public func write(_ bytes: [UInt8], at offset: UInt64) throws(VFIOError) {
    try naming("write \(bytes.count) bytes at \(hex(offset)) of \(name)") { () throws(Errno) in
      guard isWritable else { throw .permissionDenied }
      try mapping.write(bytes.span, at: try place(of: offset, bytes.count))
    }
  }

  /// Where in the mapping an access is.
  private func place(of offset: UInt64, _ count: Int) throws(Errno) -> UInt64 {
    guard offset >= self.offset, offset - self.offset <= size, let count = UInt64(exactly: count),
      count <= size - (offset - self.offset)
    else { throw .invalidArgument }
    return start + offset
  }
}
