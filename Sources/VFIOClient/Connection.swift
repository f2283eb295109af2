import Dispatch
import LinuxIO
import Locks
import SystemPackage
import VFIOStream
import VFIOWire

/// The socket behind an object.
///
/// Any number of threads may send requests. The server answers in order, so that each reply belongs to the
/// oldest request. Of the threads that wait, one at a time reads for all of them, until its own reply has
/// come; then it wakes another.
public final class Connection: Sendable {
  /// Where asynchronous calls wait, so that they hold no thread of Swift's own pool.
  let queue = DispatchQueue(label: "vfio.connection")
  /// What the server may reach by messages, on a device's own socket.
  let messageMemory = Mutex<[MessageMemory]>([])
  /// nil once closed. A leaf.
  private let openSocket: Mutex<Socket?>
  /// Held while messages are written and sent, so that they go whole and in the order of `waiting`.
  private let sending = Mutex(Outgoing())
  /// Held by the thread that reads.
  private let input = Mutex(Input(limit: 1 << 30, descriptorLimit: 253))
  /// Comes after the two above.
  private let state = Mutex(State())

  fileprivate struct State: Sendable {
    /// Requests without a reply, oldest first.
    var waiting: [Ticket] = []
    /// Replies that nobody has taken yet.
    var replies: [UInt16: Reply] = [:]
    /// The threads that wait while another one reads.
    var sleepers: [UInt16: DispatchSemaphore] = [:]
    var isReading = false
    /// Why nothing more can come.
    var failure: Errno?
  }

  /// A request that was sent; the reply will have its numbers.
  struct Ticket: Sendable {
    var id: UInt16
    var command: Command
  }

  init(_ socket: Socket) { openSocket = Mutex(socket) }

  var isClosed: Bool { openSocket.withLock { $0 == nil } }

  /// Gives the socket up. It closes once no call uses it any more.
  func close() { openSocket.withLock { $0 = nil } }

  /// `EBADF` when closed.
  func socket() throws(Errno) -> Socket {
    guard let socket = openSocket.withLock({ $0 }) else { throw .badFileDescriptor }
    return socket
  }

  // MARK: requests

  /// Sends a request, waits for its reply, and reads it with `decode`. `operation` is for the error.
  func call<Value>(
    _ command: Command, _ operation: @autoclosure () -> String, with descriptors: [Descriptor] = [],
    body: (inout Output) -> Void = { _ in },
    decode: (Reply) throws(Errno) -> Value
  ) throws(VFIOError) -> Value {
    try naming(operation()) { () throws(Errno) in
      let ticket = try transmit { $0.request(command, with: descriptors, body) }
      return try decode(try wait(for: ticket))
    }
  }

  /// `call` for a reply that says nothing but that it is done.
  func call(
    _ command: Command, _ operation: @autoclosure () -> String, with descriptors: [Descriptor] = [],
    body: (inout Output) -> Void = { _ in }
  ) throws(VFIOError) {
    try call(command, operation(), with: descriptors, body: body) { _ in }
  }

  /// Sends a request with No_reply: what is asked afterwards finds it done, and its error is nobody's.
  func post(_ command: Command, body: (inout Output) -> Void) throws(Errno) {
    try transmit { $0.post(command, body) }
  }

  /// Sends the messages that `build` writes, as few pieces as can be, and returns what it returns.
  ///
  /// Only a caller that goes on to wait for its replies may write requests, and few enough that the
  /// replies fit into a socket's buffer: the server stops reading while its replies aren't read.
  @discardableResult
  func transmit<Value>(_ build: (inout Outgoing) -> Value) throws(Errno) -> Value {
    let socket = try socket()
    return try sending.withLock { outgoing throws(Errno) in
      if let failure = state.withLock({ $0.failure }) { throw failure }
      let value = build(&outgoing)
      let tickets = outgoing.takeTickets()
      state.withLock { $0.waiting += tickets }
      do throws(Errno) {
        try outgoing.send(on: socket)
      } catch {
        let failure = error == .brokenPipe ? .connectionReset : error
        let isTorn = outgoing.isTorn
        state.withLock { isTorn ? $0.fail(failure) : $0.forget(tickets) }
        throw failure
      }
      return value
    }
  }

  // MARK: replies

  /// Waits for the reply to a request; throws the errno of an error reply.
  func wait(for ticket: Ticket) throws(Errno) -> Reply {
    let reply = try takeReply(ticket)
    guard reply.header.flags.contains(.error) else { return reply }
    throw Errno(rawValue: CInt(truncatingIfNeeded: reply.header.error))
  }

  private func takeReply(_ ticket: Ticket) throws(Errno) -> Reply {
    while true {
      let turn = state.withLock { $0.turn(of: ticket) }
      switch turn {
      case .take(let reply): return reply
      case .fail(let error): throw error
      case .sleep(let semaphore): semaphore.wait()
      case .read: read(until: ticket)
      }
    }
  }

  fileprivate enum Turn {
    case take(Reply)
    case fail(Errno)
    case sleep(DispatchSemaphore)
    case read
  }

  /// Reads for all that wait, until one reply is there or no more can come.
  private func read(until ticket: Ticket) {
    var isDone = false
    while !isDone {
      var failure: Errno?
      var message: Reply?
      do throws(Errno) {
        message = try receive()
      } catch {
        failure = error
      }
      if let message, message.header.flags.isDisjoint(with: .type) {
        answer(message)
        continue
      }
      isDone = state.withLock { state in
        if let message { failure = state.deliver(message) }
        if let failure { state.fail(failure) }
        guard state.failure != nil || state.replies[ticket.id] != nil else { return false }
        state.isReading = false
        state.wakeReader()
        return true
      }
    }
  }

  /// The next message of the stream.
  private func receive() throws(Errno) -> Reply {
    let socket = try socket()
    return try input.withLock { input throws(Errno) in
      while true {
        switch input.next() {
        case .message(let header, let body, let descriptors, damaged: false):
          return Reply(header: header, bytes: Array(input.bytes[body]), descriptors: descriptors)
        case .message:
          throw .tooManyOpenFiles  // descriptors were lost on the way to this process
        case .impossible:
          throw .protocolError
        case .incomplete:
          let received = try input.withRoom { room throws(Errno) in
            try socket.receive(into: &room, wait: true)
          }
          guard let received, received.count > 0 else { throw .connectionReset }
          input.received(
            received.count, descriptors: received.descriptors, truncated: received.truncated)
        }
      }
    }
  }
}

extension Connection.State {
  /// What the thread that waits for a reply does next.
  fileprivate mutating func turn(of ticket: Connection.Ticket) -> Connection.Turn {
    sleepers[ticket.id] = nil
    if let reply = replies.removeValue(forKey: ticket.id) { return .take(reply) }
    if let failure { return .fail(failure) }
    if isReading {
      let semaphore = DispatchSemaphore(value: 0)
      sleepers[ticket.id] = semaphore
      return .sleep(semaphore)
    }
    isReading = true
    return .read
  }

  /// Gives a reply to the oldest request; `EPROTO` when it isn't that one's.
  fileprivate mutating func deliver(_ reply: Reply) -> Errno? {
    if let failure { return failure }
    guard let ticket = waiting.first, ticket.id == reply.header.id,
      ticket.command == reply.header.command
    else { return .protocolError }
    waiting.removeFirst()
    replies[ticket.id] = reply
    sleepers[ticket.id]?.signal()
    return nil
  }

  /// Nothing more will come: all that wait are told.
  fileprivate mutating func fail(_ error: Errno) {
    failure = failure ?? error
    waiting = []
    for semaphore in sleepers.values { semaphore.signal() }
  }

  /// Takes back requests that weren't sent.
  fileprivate mutating func forget(_ tickets: [Connection.Ticket]) {
    for ticket in tickets {
      waiting.removeAll { $0.id == ticket.id }
      replies[ticket.id] = nil
    }
  }

  /// Wakes the thread with the oldest request, to read in turn.
  fileprivate func wakeReader() {
    waiting.lazy.compactMap { sleepers[$0.id] }.first?.signal()
  }
}
