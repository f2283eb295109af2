import Dispatch
import LinuxIO
import SystemPackage
import VFIOStream
import VFIOWire

/// The messages of a connection in both directions: what has arrived and isn't handled, and what is
/// answered and isn't sent. A value, so that a whole turn is one access to its owner's state.
struct Exchange {
  private var input: Input
  private var output = Output()
  private var sender: Credentials?
  /// Descriptors sent that the client may not have read yet.
  private var undelivered = 0
  /// The client reads no more; of what it sent, only what outlives it is still handled.
  private(set) var isDeaf = false
  /// Nothing that it sends is handled any more; replies may be left to send.
  private var isEnding = false
  /// The request whose reply is to come.
  private var waiting: (request: Header, later: Later)?
  /// Requests that have arrived behind it.
  private var aside: [Message] = []
  private static let mostAside = 16
  private let requests: ClientRequests
  private let limits: ConnectionLimits
  private let tracepoint: Tracepoint?
  /// By which traces know the connection.
  private let number: UInt64
  /// Somebody watches this turn.
  private var isTraced = false

  enum State {
    /// All that has arrived is answered.
    case open
    /// There is more to handle, after the others' turn.
    case unfinished
    /// The client doesn't read its replies: nothing more is read from it until it does.
    case blocked
    /// A reply will come later, and no request is handled before it.
    case waiting
    /// The peer has closed, or must be closed.
    case finished
  }

  /// Messages that are handled in a turn where other connections wait for theirs, and the nanoseconds in
  /// which the last of them begins.
  private static let turn = 64
  private static let turnTime: UInt64 = 2_000_000

  /// Replies are for nobody any more.
  mutating func beDeaf() { isDeaf = true }

  /// The reply that is to come.
  var later: Later? { waiting?.later }

  init(
    _ session: any Session, _ requests: ClientRequests, number: UInt64, _ limits: ConnectionLimits
  ) {
    self.requests = requests
    self.limits = limits
    self.number = number
    tracepoint = session.tracepoint
    input = Input(limit: session.messageLimit, descriptorLimit: limits.messageDescriptors)
  }

  /// `Connection.serve`; throws when the socket has failed.
  mutating func serve(
    _ session: any Session, _ socket: Socket, wait: Bool, _ settle: () -> Void
  ) throws(Errno) -> State {
    // All of them, before more are made: what was sent is kept until the last is gone.
    guard try flush(socket, wait: wait) else { return .blocked }
    if isEnding { return .finished }
    // What the client had not read may have held back messages that have already arrived.
    let state = try answer(session, socket, wait: wait, settle)
    guard state == .open || state == .waiting, takesInput(session) else { return state }
    let received = try input.withRoom { room throws(Errno) in
      try socket.receive(into: &room, wait: wait && waiting == nil)
    }
    guard let received else { return state }
    if received.count == 0 { return .finished }
    if let sender = received.sender { self.sender = sender }
    // Sessions want to know which socket it is. Kept open until its message is whole, or until its
    // client reads replies, the client's own would never hang up.
    input.received(
      received.count, descriptors: received.descriptors.map(\.withoutSocket),
      truncated: received.truncated)
    return try answer(session, socket, wait: wait, settle)
  }

  /// Answers all whole messages that have arrived.
  private mutating func answer(
    _ session: any Session, _ socket: Socket, wait: Bool, _ settle: () -> Void
  ) throws(Errno) -> State {
    while true {
      isTraced = tracepoint?.isWatched ?? false
      // After the replies, which nobody has to wait longer for.
      defer { if isTraced { tracepoint?.flush() } }
      let more = handleMessages(session, socket, most: wait ? Int.max : Self.turn, settle)
      if more == .never { isEnding = true }
      guard try flush(socket, wait: wait) else { return .blocked }
      switch more {
      case .no: return waiting == nil ? .open : .waiting
      case .yes where wait: continue
      case .yes: return .unfinished
      case .never: return .finished
      }
    }
  }

  private enum More { case no, yes, never }

  /// Handles messages until none is left or replies have piled up.
  private mutating func handleMessages(
    _ session: any Session, _ socket: Socket, most: Int, _ settle: () -> Void
  ) -> More {
    var handled = 0
    let start = most == Int.max ? 0 : DispatchTime.now().uptimeNanoseconds
    while output.count < limits.queuedReplies, handled < most {
      // A turn has a message at least.
      if start > 0, handled > 0,
        DispatchTime.now().uptimeNanoseconds - start > Self.turnTime
      {
        break
      }
      handled += 1
      if let waiting {
        guard let outcome = waiting.later.outcome else {
          putRequestsAside(session)
          return .no
        }
        self.waiting = nil
        output.begin(replyTo: waiting.request)
        output.append(waiting.later.body)
        finish(waiting.request, outcome)
      }
      if !aside.isEmpty {
        let message = aside.removeFirst()
        handle(message, message.body.span, session, socket, settle)
        if session.isFinished { return .never }
        continue
      }
      switch input.next() {
      case .incomplete:
        return .no
      case .impossible(let header):
        if isTraced { trace(header, 0..<0) }
        output.begin(replyTo: header)
        finish(header, .failure(.invalidArgument))
        return .never
      case .message(let header, let body, let descriptors, let damaged):
        if isAnswer(header, session) {
          if isTraced { trace(header, body, descriptors.count) }
          let bytes = input.bytes
          requests.received(header, bytes.span.extracting(body))
          continue
        }
        if isTraced, !isDeaf || session.outlivesClient(header.command) {
          trace(header, body, descriptors.count)
        }
        let bytes = input.bytes
        let message = Message(header: header, descriptors: descriptors, isDamaged: damaged)
        handle(message, bytes.span.extracting(body), session, socket, settle)
        if session.isFinished { return .never }
      }
    }
    return .yes
  }

  private struct Message {
    let header: Header
    /// Of one that had to be put aside.
    var body: [UInt8] = []
    let descriptors: [Descriptor]
    let isDamaged: Bool
  }

  private mutating func handle(
    _ message: Message, _ body: Span<UInt8>, _ session: any Session, _ socket: Socket,
    _ settle: () -> Void
  ) {
    let header = message.header
    if isDeaf, !session.outlivesClient(header.command) { return }
    settle()
    var request = Request(header: header, descriptors: message.descriptors, sender: sender)
    request.mayHandOut = mayHandOut(socket)
    output.begin(replyTo: header)
    let outcome: Result<Void, Errno>
    do throws(Errno) {
      guard header.flags.isDisjoint(with: .type), !message.isDamaged else {
        throw .invalidArgument
      }
      try session.handle(request, body, &output)
      outcome = .success(())
    } catch {
      outcome = .failure(error)
    }
    if let later = session.takeLater() {
      output.discard()
      waiting = (header, later)
    } else {
      finish(header, outcome)
    }
    if header.command == .version { input.limit = session.messageLimit }
  }

  /// While a reply is to come, the client's answers to this server go on, since that reply may depend on
  /// them. Requests keep their order.
  private mutating func putRequestsAside(_ session: any Session) {
    while takesInput(session) {
      guard case .message(let header, let body, let descriptors, let damaged) = input.next() else {
        return
      }
      if isTraced { trace(header, body, descriptors.count) }
      let bytes = input.bytes
      let content = bytes.span.extracting(body)
      if isAnswer(header, session) {
        requests.received(header, content)
        continue
      }
      aside.append(
        Message(
          header: header, body: content.array, descriptors: descriptors, isDamaged: damaged))
    }
  }

  private func isAnswer(_ header: Header, _ session: any Session) -> Bool {
    header.flags.intersection(.type) == .reply && session.takesReplies
      && (header.command == .dmaRead || header.command == .dmaWrite)
  }

  /// Whether more may be read from the client now.
  func takesInput(_ session: any Session) -> Bool {
    waiting == nil || session.takesReplies && aside.count < Self.mostAside
  }

  /// Completes the reply to `request`, if it wants one.
  private mutating func finish(_ request: Header, _ outcome: Result<Void, Errno>) {
    var descriptors = 0
    if request.flags.contains(.noReply) {
      output.discard()
    } else if case .failure(let error) = outcome {
      output.fail(UInt32(bitPattern: error.rawValue))
    } else {
      descriptors = output.finish()
    }
    undelivered += descriptors
    if isTraced {
      output.withLatest { tracepoint?.recordSent($0, on: number, descriptors: descriptors) }
    }
  }

  /// Lets those who watch see a message that has arrived.
  private func trace(_ header: Header, _ body: Range<Int>, _ descriptors: Int = 0) {
    let bytes = input.bytes
    tracepoint?.record(
      .received, on: number, header, bytes.span.extracting(body), descriptors: descriptors)
  }

  /// Whether the client has collected enough of the descriptors it was sent to be sent another one.
  private mutating func mayHandOut(_ socket: Socket) -> Bool {
    // Looked at from half the limit on, since a busy client may have read all only now and then.
    if undelivered > limits.undeliveredDescriptors / 2, output.count == 0, socket.unread() == 0 {
      undelivered = 0
    }
    return undelivered < limits.undeliveredDescriptors
  }

  /// Sends what is to be sent; false when the client doesn't take it now.
  private mutating func flush(_ socket: Socket, wait: Bool) throws(Errno) -> Bool {
    while output.count > 0 {
      let (range, descriptors) = output.next
      if isDeaf {
        output.sent(range.count)
        continue
      }
      do throws(Errno) {
        let sent = try output.withBytes(range) { bytes throws(Errno) in
          try requests.sendReplies(bytes, with: descriptors, wait: wait)
        }
        guard let sent else { return false }
        output.sent(sent)
      } catch {
        // The client has closed. ECONNRESET says the same to one who waits in `send`.
        guard error == .brokenPipe || error == .connectionReset else { throw error }
        isDeaf = true
      }
    }
    return true
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
