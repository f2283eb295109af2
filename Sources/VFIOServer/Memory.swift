import LinuxIO
import Locks
import SystemPackage
import VFIOCore

// The memory that clients bring, as the core sees it.

extension SharedMapping: DMAMemory {}

/// What a map request refers to: the file whose descriptor it brought; without one the memory of the
/// client behind a device socket, by messages; on a container the sender's own process.
struct RequestMemory: MemorySource {
  private let request: Request
  private let service: Service
  private let messages: MessageMemory?

  init(_ request: Request, _ service: Service, messages: MessageMemory? = nil) {
    self.request = request
    self.service = service
    self.messages = messages
  }

  func memory(
    at address: UInt64, size: UInt64, writable: Bool
  ) throws(Errno) -> any DMAMemory {
    guard request.descriptors.count <= 1 else { throw .invalidArgument }
    if let file = request.descriptors.first {
      return try service.files.mapping(
        of: file, offset: address, size: size, writable: writable)
    }
    if let messages { return messages }
    guard let sender = request.sender else { throw .badAddress }
    return try service.processes.memory(of: sender, at: address, size: size)
  }
}

/// Memory that a device socket's client mapped without a descriptor. This server sends no DMA_READ or
/// DMA_WRITE yet, so that a device which reaches for it meets a fault.
final class MessageMemory: DMAMemory {
  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    throw .badAddress
  }
  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) { throw .badAddress }
}

extension ProcessMemory: DMAMemory {}

/// The processes whose memory is mapped, one object each.
final class Processes: Sendable {
  private struct Weak: Sendable { weak var memory: ProcessMemory? }

  /// Guards the look-up. A leaf.
  private let known = Mutex<[ProcessID: Weak]>([:])

  /// The memory of a message's sender, whose bytes at `address ..< address + size` must be there;
  /// `EFAULT` otherwise, and where this server may not read that process.
  func memory(
    of sender: Credentials, at address: UInt64, size: UInt64
  ) throws(Errno) -> ProcessMemory {
    guard size > 0, !address.addingReportingOverflow(size - 1).overflow else { throw .badAddress }
    let process = sender.process
    let memory = try known.withLock { known throws(Errno) in
      if let memory = known[process]?.memory, memory.isAlive { return memory }
      known = known.filter { $0.value.memory != nil }
      let memory = try ProcessMemory(process)
      known[process] = Weak(memory: memory)
      return memory
    }
    // A message may have waited for so long that its sender's number is another user's process now.
    guard try memory.owner() == sender.user else { throw .badAddress }
    // The ends stand for all: the kernel would pin every page here.
    var byte: [UInt8] = [0]
    var span = byte.mutableSpan
    try memory.read(at: address, into: &span)
    try memory.read(at: address + (size - 1), into: &span)
    return memory
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
    var piece = [UInt8](repeating: 0, count: 1 << 16)
    var offset: UInt64 = 0
    while offset < size {
      let range = 0..<Int(min(UInt64(piece.count), size - offset))
      var all = piece.mutableSpan
      var part = all._mutatingExtracting(range)
      try read(at: offset, into: &part)
      try copy.write(piece.span.extracting(range), at: offset)
      offset += UInt64(range.count)
    }
    return copy
  }
}
