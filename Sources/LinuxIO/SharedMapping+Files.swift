import Glibc
import SystemPackage

// Between a mapping and another file, without a copy on the way.
extension SharedMapping {
  /// `preadv`: fills ranges of this mapping from a file at `position`. Returns the bytes read, 0 at its
  /// end. Throws the file's error; `EFAULT` outside the mapping, when it isn't writable, and where its
  /// file was truncated.
  public func read(
    _ file: FileDescriptor, at position: Int, into ranges: [ClosedRange<UInt64>]
  ) throws(Errno) -> Int {
    guard writable else { throw .badAddress }
    // Sound: the kernel writes into memory of this object's alone; what a file lacks is an error there.
    let vectors = unsafe try vectors(ranges)
    return try call { unsafe preadv(file.rawValue, vectors, CInt(vectors.count), position) }
  }

  /// `pwritev`: writes ranges of this mapping to a file, as `read` reads it.
  public func write(
    _ ranges: [ClosedRange<UInt64>], to file: FileDescriptor, at position: Int
  ) throws(Errno) -> Int {
    // Sound: as above; the kernel only reads.
    let vectors = unsafe try vectors(ranges)
    return try call { unsafe pwritev(file.rawValue, vectors, CInt(vectors.count), position) }
  }

  private func vectors(_ ranges: [ClosedRange<UInt64>]) throws(Errno) -> [iovec] {
    var vectors = unsafe [iovec]()
    for range in ranges {
      guard range.upperBound < size else { throw .badAddress }
      let count = Int(range.upperBound - range.lowerBound) + 1
      let base = unsafe try pointer(range.lowerBound, count)
      unsafe vectors.append(iovec(iov_base: base, iov_len: count))
    }
    return unsafe vectors
  }
}

/// Fills `bytes` from a file at `position`, and returns how many there were, fewer at its end.
public func read(
  _ file: FileDescriptor, at position: Int, into bytes: inout MutableSpan<UInt8>
) throws(Errno) -> Int {
  // Sound: the kernel writes at most the buffer's size.
  try unsafe bytes.withUnsafeMutableBytes { buffer throws(Errno) in
    try call { unsafe pread(file.rawValue, buffer.baseAddress, buffer.count, position) }
  }
}

/// Writes `bytes` to a file at `position`, and returns how many it took.
public func write(
  _ bytes: Span<UInt8>, to file: FileDescriptor, at position: Int
) throws(Errno) -> Int {
  // Sound: the kernel only reads the buffer.
  try unsafe bytes.withUnsafeBufferPointer { buffer throws(Errno) in
    try call { unsafe pwrite(file.rawValue, buffer.baseAddress, buffer.count, position) }
  }
}
