import Dispatch
import LinuxIO
import Locks
import SystemPackage
import VFIOStream
import VFIOWire

/// A socket, its session, and the bytes between them. One thread at a time uses it: the control loop,
/// until it hands it to a loop of its own; only `waitUntilClosed` and `abort` are for others.
final class Connection: @unchecked Sendable {
  let number: UInt64
  let session: any Session
  /// Guards the socket, nil once closed, because `abort` comes from another thread.
  private let openSocket: Mutex<Socket?>
  private var input: Input
  private var output = Output()
  private var sender: Credentials?
  /// Descriptors sent that the client may not have read yet.
  private var undelivered = 0
  /// The client reads no more; what it sent before still counts.
  private var isDeaf = false
  private(set) var isServing = false
  /// What the control loop waits for.
  var events: Epoll.Events = .readable
  private let whenClosed: @Sendable () -> Void
  private let limits: ConnectionLimits
  private let closed = DispatchSemaphore(value: 0)

  var socket: Socket? { openSocket.withLock { $0 } }

  enum State {
    /// All that has arrived is answered.
    case open
    /// The client doesn't read its replies: nothing more is read from it until it does.
    case blocked
    /// The peer has closed, or must be closed.
    case finished
  }

  init(
    number: UInt64, socket: Socket, session: any Session, whenClosed: @escaping @Sendable () -> Void,
    limits: ConnectionLimits
  ) {
    self.number = number
    openSocket = Mutex(socket)
    self.session = session
    self.whenClosed = whenClosed
    self.limits = limits
    input = Input(limit: session.messageLimit, descriptorLimit: limits.messageDescriptors)
  }

  /// Sends what is left, reads once, and answers. With `wait` it blocks until there is something to
  /// read, and until the client takes its replies.
  ///
  /// `settle` is called before a message is handled.
  func serve(wait: Bool, settle: () -> Void = {}) -> State {
    guard let socket else { return .finished }
    isServing = true
    defer { isServing = false }
    do {
      // What the client has not read may hold back messages that have already arrived.
      var state = try answer(socket, wait: wait, settle)
      guard case .open = state else { return state }
      let received = try input.withRoom { room throws(Errno) in
        try socket.receive(into: &room, wait: wait)
      }
      guard let received else { return .open }
      if received.count == 0 { return .finished }
      if let sender = received.sender { self.sender = sender }
      input.received(
        received.count, descriptors: received.descriptors, truncated: received.truncated)
      state = try answer(socket, wait: wait, settle)
      return state
    } catch {
      return .finished
    }
  }

  /// Answers all whole messages that have arrived.
  private func answer(_ socket: Socket, wait: Bool, _ settle: () -> Void) throws(Errno) -> State {
    while true {
      let more = handleMessages(settle)
      guard try flush(socket, wait: wait) else { return .blocked }
      if session.isFinished { return .finished }
      switch more {
      case .no: return .open
      case .yes: continue
      case .never: return .finished
      }
    }
  }

  private enum More { case no, yes, never }

  /// Handles messages until none is left or replies have piled up.
  private func handleMessages(_ settle: () -> Void) -> More {
    while output.count < limits.queuedReplies {
      switch input.next() {
      case .incomplete:
        return .no
      case .impossible(let header):
        if !header.flags.contains(.noReply) {
          output.begin(replyTo: header)
          output.fail(UInt32(bitPattern: Errno.invalidArgument.rawValue))
        }
        return .never
      case .message(let header, let body, let descriptors, let damaged):
        settle()
        var request = Request(header: header, descriptors: descriptors, sender: sender)
        if undelivered >= limits.undeliveredDescriptors { request.mayHandOut = isCollected() }
        output.begin(replyTo: header)
        do throws(Errno) {
          guard header.flags.isDisjoint(with: .type), !damaged else { throw .invalidArgument }
          try session.handle(request, input.bytes.span.extracting(body), &output)
          if header.flags.contains(.noReply) {
            output.discard()
          } else {
            undelivered += output.finish()
          }
        } catch {
          if header.flags.contains(.noReply) {
            output.discard()
          } else {
            output.fail(UInt32(bitPattern: error.rawValue))
          }
        }
        if header.command == .version { input.limit = session.messageLimit }
        if session.isFinished { return .never }
      }
    }
    return .yes
  }

  /// Whether the client has read all that it was sent.
  private func isCollected() -> Bool {
    guard output.count == 0, socket?.unread() == 0 else { return false }
    undelivered = 0
    return true
  }

  /// Sends what is to be sent; false when the client doesn't take it now.
  private func flush(_ socket: Socket, wait: Bool) throws(Errno) -> Bool {
    while output.count > 0 {
      let (range, descriptors) = output.next
      if isDeaf {
        output.sent(range.count)
        continue
      }
      do throws(Errno) {
        let sent = try output.withBytes(range) { bytes throws(Errno) in
          try socket.send(bytes, with: descriptors, wait: wait)
        }
        guard let sent else { return false }
        output.sent(sent)
      } catch {
        // The client has closed. The rest of what it sent is still handled, as writes to a file that
        // is closed right afterwards are.
        guard error == .brokenPipe else { throw error }
        isDeaf = true
      }
    }
    return true
  }

  /// Ends the session and closes the socket.
  func close() {
    session.close()
    whenClosed()
    openSocket.withLock { $0 = nil }
    closed.signal()
  }

  /// Makes whoever serves this connection find it closed.
  func abort() { openSocket.withLock { $0?.shutdown() } }

  /// Returns when `close`, called by another thread, is done.
  func waitUntilClosed() {
    closed.wait()
    closed.signal()
  }
}

/// What a connection may cost.
struct ConnectionLimits: Sendable {
  /// Descriptors that one message may bring.
  var messageDescriptors: Int
  /// Bytes of replies after which no further message is handled before some are sent.
  var queuedReplies: Int
  /// Descriptors sent and not yet read, after which no more are handed out.
  var undeliveredDescriptors: Int
}
