import SystemPackage

/// Memory that a DMA mapping refers to: a shared file, another process, or a peer reached by
/// messages. Everything is copied; nothing ever points into it, because its owner may change or
/// truncate it at any time.
public protocol DMAMemory: AnyObject, Sendable {
  /// Copies `bytes.count` bytes from `offset` of this memory.
  ///
  /// Throws `EFAULT` when the memory is gone or too short (a truncated file, a process that ended).
  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno)

  /// Copies `bytes` to `offset` of this memory; throws as `read` does.
  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno)

  /// Changes the integer at `offset`, which is aligned, in one step, and returns what it was. Throws
  /// `ENOTSUP` where the memory can't, as `read` does, and `EFAULT` for memory that can't be written.
  func update(at offset: UInt64, _ operation: AtomicOperation) throws(Errno) -> UInt64

  /// `preadv` and `pwritev` between ranges of this memory and a file at `position`. They return the bytes
  /// moved, which may be fewer than the ranges have, and 0 at the file's end. They throw the file's error, and
  /// `EFAULT` when nothing could be moved because of this memory.
  func read(
    _ file: FileDescriptor, at position: Int, into ranges: [ClosedRange<UInt64>]
  ) throws(Errno) -> Int
  func write(
    _ ranges: [ClosedRange<UInt64>], to file: FileDescriptor, at position: Int
  ) throws(Errno) -> Int

  /// Present where a copy waits for an answer.
  var remote: (any RemoteMemory)? { get }
}

extension DMAMemory {
  public func update(at offset: UInt64, _ operation: AtomicOperation) throws(Errno) -> UInt64 {
    throw .notSupported
  }
  public func read(
    _ file: FileDescriptor, at position: Int, into ranges: [ClosedRange<UInt64>]
  ) throws(Errno) -> Int {
    throw .notSupported
  }
  public func write(
    _ ranges: [ClosedRange<UInt64>], to file: FileDescriptor, at position: Int
  ) throws(Errno) -> Int {
    throw .notSupported
  }
  public var remote: (any RemoteMemory)? { nil }
}

/// Memory that is copied by asking the peer who has it. The peer may answer late or never, so every
/// copy is a transfer that can be cancelled.
public protocol RemoteMemory: DMAMemory {
  /// Bytes that one transfer copies at most; more than 0.
  var limit: Int { get }
  /// A transfer that isn't on its way yet. It serves one `read` or `write`, which waits.
  func begin() -> any RemoteTransfer
}

public protocol RemoteTransfer: DMAMemory {
  /// Makes `read` or `write` fail, now or when it is called, and returns at once. The peer is asked for
  /// nothing afterwards.
  func cancel()
}

/// What a device does to an integer in client memory in one step; the AtomicOps of PCI Express.
public enum AtomicOperation: Sendable {
  case add32(UInt32)
  case add64(UInt64)
  case swap32(UInt32)
  case swap64(UInt64)
  /// Stores `new` where `expected` was.
  case compareAndSwap32(expected: UInt32, new: UInt32)
  case compareAndSwap64(expected: UInt64, new: UInt64)

  /// Bytes of the integer.
  public var size: Int {
    switch self {
    case .add32, .swap32, .compareAndSwap32: 4
    case .add64, .swap64, .compareAndSwap64: 8
    }
  }
}

/// Memory of the server's own that clients may map, such as a device's BAR.
public protocol MappableMemory: DMAMemory {
  /// Size in bytes, a multiple of the page size.
  var size: UInt64 { get }
  /// What a client maps; borrowed, and valid as long as this object lives.
  var descriptor: FileDescriptor { get }
  /// Fresh memory of the same size and content, which the holders of this one's descriptor cannot
  /// see.
  func copy() throws(Errno) -> any MappableMemory
}

extension MappableMemory {
  /// Copies everything to memory that is as large.
  public func copy(to other: any DMAMemory) throws(Errno) {
    var piece = [UInt8](repeating: 0, count: 1 << 16)
    var offset: UInt64 = 0
    while offset < size {
      let range = 0..<Int(min(UInt64(piece.count), size - offset))
      var all = piece.mutableSpan
      var part = all._mutatingExtracting(range)
      try read(at: offset, into: &part)
      try other.write(piece.span.extracting(range), at: offset)
      offset += UInt64(range.count)
    }
  }
}

/// Makes the memory of a device's BARs: `size` zero bytes. Throws `ENOMEM` or `ENOSPC`.
public typealias MemoryFactory =
  @Sendable (_ size: UInt64) throws(Errno) -> any MappableMemory

/// What a map request brought with it: the descriptor of a file, or the identity of the sender's
/// process. An IOMMU driver asks it for memory once its own checks have passed.
public protocol MemorySource {
  /// Memory that covers `address ..< address + size`; a mapping's own offsets start at `address`.
  ///
  /// Throws `EACCES` for a read-only file that is to be writable, `EINVAL` for one that is too short
  /// or not memory, `EFAULT` for a process's range that cannot be reached.
  func memory(at address: UInt64, size: UInt64, writable: Bool) throws(Errno) -> any DMAMemory

  /// Where its memory is from; nil when nothing that `memory` gave from there is in use any more.
  /// Says nothing of what can be reached now.
  func origin() throws(Errno) -> MemoryOrigin?
}

/// The file, or else the object, that memory belongs to: equal for all requests that bring the same.
public enum MemoryOrigin: Hashable, Sendable {
  case file(device: UInt64, inode: UInt64)
  case object(ObjectIdentifier)
}
