import LinuxIO
import Locks
import SystemPackage
import VFIOCore

// The memory that clients bring, as the core sees it.

extension SharedMapping: DMAMemory {
  public func update(at offset: UInt64, _ operation: AtomicOperation) throws(Errno) -> UInt64 {
    switch operation {
    case .add32(let value): UInt64(try add(value, at: offset))
    case .add64(let value): try add(value, at: offset)
    case .swap32(let value): UInt64(try swap(value, at: offset))
    case .swap64(let value): try swap(value, at: offset)
    case .compareAndSwap32(let old, let new): UInt64(try compareAndSwap(old, new, at: offset))
    case .compareAndSwap64(let old, let new): try compareAndSwap(old, new, at: offset)
    }
  }
}

/// The small file that a session has mapped last. It stays mapped here, so that a client which maps and
/// unmaps it again and again doesn't cost two system calls and a page fault each time.
final class RecentFile {
  private var mapping: SharedMapping?

  func keep(_ mapping: SharedMapping) {
    // A large one must be given back to the system as soon as its client unmaps it.
    if mapping.size <= 1 << 20 { self.mapping = mapping }
  }
}

/// What a map request refers to: the file whose descriptor it brought; without one the memory of the
/// client behind a device socket, by messages; on a container the sender's own process.
struct RequestMemory: MemorySource {
  private let request: Request
  private let service: Service
  private let recent: RecentFile
  private let messages: MessageMemory?

  init(
    _ request: Request, _ service: Service, _ recent: RecentFile, messages: MessageMemory? = nil
  ) {
    self.request = request
    self.service = service
    self.recent = recent
    self.messages = messages
  }

  func memory(
    at address: UInt64, size: UInt64, writable: Bool
  ) throws(Errno) -> any DMAMemory {
    guard request.descriptors.count <= 1 else { throw .invalidArgument }
    if let file = request.descriptors.first {
      let mapping = try service.files.mapping(
        of: file, offset: address, size: size, writable: writable)
      recent.keep(mapping)
      return mapping
    }
    if let messages { return messages }
    guard let sender = request.sender else { throw .badAddress }
    return try service.processes.memory(
      of: sender, at: address, size: size, writable: writable)
  }

  func origin() throws(Errno) -> MemoryOrigin? {
    guard request.descriptors.count <= 1 else { throw .invalidArgument }
    if let file = request.descriptors.first {
      let (device, inode) = try file.fileNumbers()
      return .file(device: device, inode: inode)
    }
    if let messages { return .object(ObjectIdentifier(messages)) }
    return request.sender.flatMap(service.processes.memoryInUse).map {
      .object(ObjectIdentifier($0))
    }
  }
}

extension ProcessMemory: DMAMemory {
  public func read(
    _ file: FileDescriptor, at position: Int, into ranges: [ClosedRange<UInt64>]
  ) throws(Errno) -> Int { try copy(file, at: position, into: ranges) }

  public func write(
    _ ranges: [ClosedRange<UInt64>], to file: FileDescriptor, at position: Int
  ) throws(Errno) -> Int { try copy(ranges, to: file, at: position) }
}

// `preadv` and `pwritev` for memory that the kernel can't reach: of the first range, through a buffer.
extension DMAMemory {
  func copy(
    _ file: FileDescriptor, at position: Int, into ranges: [ClosedRange<UInt64>]
  ) throws(Errno) -> Int {
    guard let range = ranges.first else { return 0 }
    var bytes = [UInt8](repeating: 0, count: Int(range.upperBound - range.lowerBound) + 1)
    var span = bytes.mutableSpan
    let count = try LinuxIO.read(file, at: position, into: &span)
    if count > 0 { try write(bytes.span.extracting(0..<count), at: range.lowerBound) }
    return count
  }

  func copy(
    _ ranges: [ClosedRange<UInt64>], to file: FileDescriptor, at position: Int
  ) throws(Errno) -> Int {
    guard let range = ranges.first else { return 0 }
    var bytes = [UInt8](repeating: 0, count: Int(range.upperBound - range.lowerBound) + 1)
    var span = bytes.mutableSpan
    try read(at: range.lowerBound, into: &span)
    return try LinuxIO.write(bytes.span, to: file, at: position)
  }
}

/// The processes whose memory is mapped, one object each.
final class Processes: Sendable {
  private struct Weak: Sendable { weak var memory: ProcessMemory? }

  /// Guards the look-up. A leaf.
  private let known = Mutex<[ProcessID: Weak]>([:])

  /// The memory of a message's sender, if some of it is in use.
  func memoryInUse(of sender: Credentials) -> ProcessMemory? {
    guard let memory = known.withLock({ $0[sender.process]?.memory }), memory.isAlive else {
      return nil
    }
    return memory
  }

  /// The memory of a message's sender, which must have all of `address ..< address + size` and, if it is
  /// to be `writable`, be allowed to write it; `EFAULT` otherwise, and where this server may not reach
  /// that process.
  func memory(
    of sender: Credentials, at address: UInt64, size: UInt64, writable: Bool
  ) throws(Errno) -> ProcessMemory {
    let process = sender.process
    do throws(Errno) {
      let memory = try known.withLock { known throws(Errno) in
        if let memory = known[process]?.memory, memory.isAlive { return memory }
        known = known.filter { $0.value.memory != nil }
        let memory = try ProcessMemory(process, identity: sender.identity)
        known[process] = Weak(memory: memory)
        return memory
      }
      // Where a message doesn't bring its sender's pidfd, it may have waited for so long that the number
      // is another user's process now; and the sender may run a program of another user's now.
      guard try memory.owner() == sender.user,
        memory.allows(address, size: size, writable: writable)
      else { throw .badAddress }
      return memory
    } catch {
      throw .badAddress
    }
  }
}

/// A device's memory that clients may map: a memfd whose size they can't change.
final class DeviceMemory: MappableMemory {
  let size: UInt64
  private let file: Descriptor
  private let mapping: SharedMapping

  /// `size` zero bytes.
  init(size: UInt64) throws(Errno) {
    self.size = size
    file = try makeMemoryFile("vfio-device", size: size)
    mapping = try SharedMapping(file, size: size, writable: true)
  }

  var descriptor: FileDescriptor { file.borrowed }

  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    try mapping.read(at: offset, into: &bytes)
  }

  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {
    try mapping.write(bytes, at: offset)
  }

  func copy() throws(Errno) -> any MappableMemory {
    let copy = try DeviceMemory(size: size)
    try self.copy(to: copy)
    return copy
  }
}
