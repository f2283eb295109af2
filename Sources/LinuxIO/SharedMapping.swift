import CLinux
import Glibc
import SystemPackage

/// A file mapped into this process, reached by guarded copies alone: its owner may truncate it at
/// any time, which makes copies fail with `EFAULT` and nothing worse.
public final class SharedMapping: Sendable {
  public let size: UInt64
  let writable: Bool
  private let address: UInt
  private let slot: CInt

  /// Maps `size` bytes from the start of `file`.
  public init(_ file: Descriptor, size: UInt64, writable: Bool) throws(Errno) {
    guard let length = Int(exactly: size), length > 0 else { throw .invalidArgument }
    // Sound: a fresh mapping of this object's own, released in deinit.
    let base = unsafe mmap(
      nil, length, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, file.rawValue, 0)
    guard let base = unsafe base, unsafe base != MAP_FAILED else {
      throw Errno(rawValue: errno)
    }
    slot = unsafe clinux_guard_add(base, length, clinux_page_size(file.rawValue))
    address = UInt(bitPattern: base)
    self.size = size
    self.writable = writable
    if slot < 0 {
      unsafe munmap(base, length)
      throw .noMemory
    }
  }

  deinit {
    // Sound: nobody holds this object, so nobody copies; the range is the one mapped in init.
    if slot >= 0 {
      clinux_guard_remove(slot)
      unsafe munmap(UnsafeMutableRawPointer(bitPattern: address), Int(size))
    }
  }

  /// A copy met a page that the file no longer has; later copies fail too.
  public var isPoisoned: Bool { clinux_guard_poisoned(slot) }

  /// Copies from `offset`. Throws `EFAULT` outside the mapping or when the file was truncated.
  public func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    let source = unsafe try pointer(offset, bytes.count)
    // Sound: both ranges are valid for their length, and the mapping's faults are caught.
    unsafe bytes.withUnsafeMutableBytes { buffer in
      if let base = buffer.baseAddress { unsafe clinux_copy(base, source, buffer.count) }
    }
    if isPoisoned { throw .badAddress }
  }

  /// Copies to `offset`, as `read` does. Throws `EFAULT` too when the mapping isn't writable.
  public func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {
    guard writable else { throw .badAddress }
    let target = unsafe try pointer(offset, bytes.count)
    // Sound: as above, and the mapping is writable.
    unsafe bytes.withUnsafeBufferPointer { buffer in
      if let base = buffer.baseAddress { unsafe clinux_copy(target, base, buffer.count) }
    }
    if isPoisoned { throw .badAddress }
  }

  func pointer(_ offset: UInt64, _ count: Int) throws(Errno) -> UnsafeMutableRawPointer {
    guard offset <= size, UInt64(count) <= size - offset, !isPoisoned,
      let pointer = unsafe UnsafeMutableRawPointer(bitPattern: address + UInt(offset))
    else { throw .badAddress }
    return unsafe pointer
  }
}

/// Memory of this process's own that others may map: a memfd whose size is sealed.
public func makeMemoryFile(_ name: String, size: UInt64) throws(Errno) -> Descriptor {
  guard let length = Int(exactly: size) else { throw .noMemory }
  // Sound: the name outlives the call.
  let file = Descriptor(owning: try call { unsafe clinux_memfd(name) })
  try call { ftruncate(file.rawValue, length) }
  try call { clinux_seal_size(file.rawValue) }
  return file
}
