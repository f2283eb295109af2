import Dispatch
import LinuxIO
import Locks
import SystemPackage

/// A socket, its session, and the bytes between them. One thread at a time uses it: the control loop,
/// until it hands it to a loop of its own; only `waitUntilClosed` and `abort` are for others.
final class Connection: @unchecked Sendable {
  let number: UInt64
  let session: any Session
  /// Guards the socket, nil once closed, because `abort` comes from another thread.
  private let openSocket: Mutex<Socket?>
  private var exchange: Exchange
  private let requests: ClientRequests
  private(set) var isServing = false
  /// The control loop was told of the hang-up, which it is told once, when it could not see to it.
  var hasHungUp = false
  /// What the control loop waits for.
  var events: Epoll.Events = .readable
  private let whenClosed: @Sendable () -> Void
  private let closed = DispatchSemaphore(value: 0)

  var socket: Socket? { openSocket.withLock { $0 } }

  init(
    number: UInt64, socket: Socket, session: any Session,
    whenClosed: @escaping @Sendable () -> Void,
    limits: ConnectionLimits
  ) {
    self.number = number
    openSocket = Mutex(socket)
    self.session = session
    self.whenClosed = whenClosed
    requests = ClientRequests(socket, session.tracepoint, number: number)
    exchange = Exchange(session, requests, number: number, limits)
    session.connected(requests)
  }

  /// Sends what is left, reads once, and answers. With `wait` it blocks until there is something to
  /// read, and until the client takes its replies.
  ///
  /// `settle` is called before a message is handled.
  func serve(wait: Bool, settle: () -> Void = {}) -> Exchange.State {
    guard let socket else { return .finished }
    isServing = true
    defer { isServing = false }
    do throws(Errno) {
      return try exchange.serve(session, socket, wait: wait, settle)
    } catch {
      return .finished
    }
  }

  /// Ends the session and closes the socket.
  func close() {
    session.tracepoint?.recordClosed(number)
    // First, so that transfers which wait for this client are cancelled.
    session.close()
    requests.close()
    whenClosed()
    openSocket.withLock { $0 = nil }
    closed.signal()
  }

  /// Whether more may be read from the client now.
  var takesInput: Bool { exchange.takesInput(session) }

  /// Returns when the reply that the connection waits for is there, or something has arrived that may go
  /// on meanwhile. False when the client has hung up while nothing may.
  func waitForReply() -> Bool {
    guard let socket, let later else { return true }
    do throws(Errno) {
      let (epoll, isThere) = (try Epoll(), try EventFD())
      try epoll.add(isThere.descriptor, .readable, number: 0)
      // A hang-up is told in any case: others wait until it has taken effect.
      try epoll.add(socket.descriptor, takesInput ? .readable : [], number: 1)
      later.whenComplete { isThere.signal() }
      var events: [Epoll.Event] = []
      try epoll.wait(&events, forever: true)
      return takesInput || events.contains { $0.number == 0 }
    } catch {
      later.wait()
      return true
    }
  }

  /// The client has hung up: its replies are for nobody.
  func beDeaf() { exchange.beDeaf() }

  /// The reply that the connection waits for.
  var later: Later? { exchange.later }

  /// Makes whoever serves this connection find it closed.
  func abort() { openSocket.withLock { $0?.shutdown() } }

  /// Returns when `close`, called by another thread, is done.
  func waitUntilClosed() {
    closed.wait()
    closed.signal()
  }
}
