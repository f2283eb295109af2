import Dispatch
import Locks
import SystemPackage
import VFIOCore

/// Memory of a peer that answers when a test says so.
final class Peer: RemoteMemory {
  let memory: TestMemory
  let limit: Int
  private let state = Mutex(State())
  private struct State {
    var isAnswering = true
    var transfers: [Transfer] = []
  }

  init(_ memory: TestMemory, limit: Int = 1 << 20) {
    self.memory = memory
    self.limit = limit
  }

  var remote: (any RemoteMemory)? { self }
  /// What was begun, in order.
  var transfers: [Transfer] { state.withLock { $0.transfers } }

  /// Transfers that are asked for while it is off wait until they are cancelled or answered.
  func setAnswering(_ isAnswering: Bool) { state.withLock { $0.isAnswering = isAnswering } }

  func begin() -> any RemoteTransfer {
    state.withLock { state in
      let transfer = Transfer(memory, isAnswered: state.isAnswering)
      state.transfers.append(transfer)
      return transfer
    }
  }

  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    throw .badAddress
  }
  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) { throw .badAddress }

  final class Transfer: RemoteTransfer {
    private let memory: TestMemory
    private let asked = DispatchSemaphore(value: 0)
    private let ended = DispatchSemaphore(value: 0)
    private let state = Mutex((counts: [Int](), isCancelled: false))

    init(_ memory: TestMemory, isAnswered: Bool) {
      self.memory = memory
      if isAnswered { ended.signal() }
    }

    /// Bytes that were asked for.
    var counts: [Int] { state.withLock { $0.counts } }
    var isCancelled: Bool { state.withLock { $0.isCancelled } }
    func waitUntilAsked() { asked.wait() }
    func answer() { ended.signal() }

    func cancel() {
      state.withLock { $0.isCancelled = true }
      ended.signal()
    }

    private func wait(_ count: Int) throws(Errno) {
      state.withLock { $0.counts.append(count) }
      asked.signal()
      ended.wait()
      if isCancelled { throw .badAddress }
    }

    func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
      try wait(bytes.count)
      try memory.read(at: offset, into: &bytes)
    }

    func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {
      try wait(bytes.count)
      try memory.write(bytes, at: offset)
    }
  }
}
