import LinuxIO
import Locks
import SystemPackage
import VFIOCore
import VFIOStream
import VFIOWire

/// Memory that a device socket's client mapped without a descriptor: its bytes come and go by
/// `VFIO_USER_DMA_READ` and `VFIO_USER_DMA_WRITE`, under the addresses that the device uses.
final class MessageMemory: RemoteMemory {
  fileprivate let service: Service
  private let connection = Mutex<Connection?>(nil)

  private struct Connection {
    let requests: ClientRequests
    /// The client's `max_data_xfer_size`.
    let limit: Int
  }

  init(_ service: Service) { self.service = service }

  /// From now on the client can be asked there.
  func connect(_ requests: ClientRequests, limit: Int) {
    // The answer must fit into what is read, too.
    let limit = min(max(1, limit), service.limits.maxDataTransferSize)
    connection.withLock { $0 = Connection(requests: requests, limit: limit) }
  }

  func disconnect(_ requests: ClientRequests) {
    connection.withLock { if $0?.requests === requests { $0 = nil } }
  }

  fileprivate var requests: ClientRequests? { connection.withLock { $0?.requests } }

  // MARK: RemoteMemory

  var remote: (any RemoteMemory)? { self }
  var limit: Int { connection.withLock { $0?.limit } ?? Version.defaultTransferSize }
  func begin() -> any RemoteTransfer { MessageTransfer(self) }

  /// Copies are transfers, since they wait.
  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    throw .badAddress
  }
  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) { throw .badAddress }
}

/// One DMA_READ or DMA_WRITE: `u64 address, u64 count`, and the bytes in the request or reply.
private final class MessageTransfer: RemoteTransfer {
  private let memory: MessageMemory
  private let state = Mutex(State())

  private struct State {
    var asked: (ClientRequests, ClientRequest)?
    var isCancelled = false
  }

  init(_ memory: MessageMemory) { self.memory = memory }

  func cancel() {
    let asked = state.withLock { state in
      state.isCancelled = true
      return state.asked
    }
    if let (requests, request) = asked { requests.cancel(request) }
  }

  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    let reply = try ask(.dmaRead, offset, bytes.count, [])
    guard reply.count == 16 + bytes.count, reply.span.uint64(at: 0) == offset,
      reply.span.uint64(at: 8) == UInt64(bytes.count)
    else { throw .badAddress }
    for index in 0..<bytes.count { bytes[index] = reply[16 + index] }
  }

  /// The specification's table gives the reply's count 4 bytes, and the C library 8; some clients send
  /// no body at all.
  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {
    let reply = try ask(.dmaWrite, offset, bytes.count, bytes.array)
    let count: UInt64
    switch reply.count {
    case 0: return
    case 12: count = UInt64(reply.span.uint32(at: 8))
    case 16: count = reply.span.uint64(at: 8)
    default: throw .badAddress
    }
    guard count == UInt64(bytes.count), reply.span.uint64(at: 0) == offset else {
      throw .badAddress
    }
  }

  func read(
    _ file: FileDescriptor, at position: Int, into ranges: [ClosedRange<UInt64>]
  ) throws(Errno) -> Int { try copy(file, at: position, into: ranges) }

  func write(
    _ ranges: [ClosedRange<UInt64>], to file: FileDescriptor, at position: Int
  ) throws(Errno) -> Int { try copy(ranges, to: file, at: position) }

  private func ask(
    _ command: Command, _ address: UInt64, _ count: Int, _ data: [UInt8]
  ) throws(Errno) -> [UInt8] {
    let service = memory.service
    // Each wait takes a thread of Dispatch's, which has a bounded number of them for all.
    guard service.clientWaits.wait(timeout: .now()) == .success else { throw .badAddress }
    defer { service.clientWaits.signal() }
    guard let requests = memory.requests else { throw .badAddress }
    let request = ClientRequest(command, address.messageBytes + UInt64(count).messageBytes + data)
    let isCancelled = state.withLock { state in
      state.asked = (requests, request)
      return state.isCancelled
    }
    if isCancelled { throw .badAddress }
    do throws(Errno) {
      return try requests.ask(request, seconds: service.limits.dmaTimeout)
    } catch {
      throw .badAddress  // whatever the reason, to the device it is a fault
    }
  }
}

/// The second socket of a device's connection, for this server's requests alone (`twin_socket`).
final class TwinSession: Session {
  private let memory: MessageMemory
  private let limit: Int
  private var requests: ClientRequests?
  let messageLimit: Int
  let tracepoint: Tracepoint?

  /// `limit` is the client's `max_data_xfer_size`.
  init(
    _ memory: MessageMemory, limit: Int, messageLimit: Int, _ tracepoint: Tracepoint?
  ) {
    self.tracepoint = tracepoint
    self.memory = memory
    self.limit = limit
    self.messageLimit = messageLimit
  }

  func connected(_ requests: ClientRequests) {
    self.requests = requests
    memory.connect(requests, limit: limit)
  }

  /// The device's connection ends.
  func hangUp() { requests?.hangUp() }

  var takesReplies: Bool { true }

  func handle(
    _ request: Request, _ body: Span<UInt8>, _ reply: inout Output
  ) throws(Errno) {
    throw .notSupported
  }

  /// The client has closed it.
  func close() {
    if let requests { memory.disconnect(requests) }
  }
}
