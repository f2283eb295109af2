import Dispatch
import Locks
import SystemPackage

/// A reply that is not there yet, such as that of a removal which waits for the device's user. Its
/// connection is served again when it is; until then the connection's other requests wait.
final class Later: Sendable {
  /// The body of the reply, if it will be none that fails.
  let body: [UInt8]
  private let state = Mutex(State())

  private struct State {
    var outcome: Result<Void, Errno>?
    var wake: (@Sendable () -> Void)?
  }

  init(body: [UInt8] = []) { self.body = body }

  /// Settles the reply; only the first call counts.
  func complete(_ outcome: Result<Void, Errno>) {
    let wake = state.withLock { state -> (@Sendable () -> Void)? in
      guard state.outcome == nil else { return nil }
      state.outcome = outcome
      return state.wake
    }
    wake?()
  }

  /// nil as long as the reply isn't there.
  var outcome: Result<Void, Errno>? { state.withLock { $0.outcome } }

  /// Returns when the reply is there.
  func wait() {
    let isThere = DispatchSemaphore(value: 0)
    whenComplete { isThere.signal() }
    isThere.wait()
  }

  /// Calls `wake` once, when the reply is there.
  func whenComplete(_ wake: @escaping @Sendable () -> Void) {
    let isThere = state.withLock { state in
      if state.outcome == nil { state.wake = wake }
      return state.outcome != nil
    }
    if isThere { wake() }
  }
}
