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
}
