import Dispatch
import LinuxIO
import Locks
import SystemPackage
import VFIOWire

/// What this server asks the client of a connection, and the door through which all bytes to it go, so
/// that a request never lands inside a reply.
///
/// Replies are sent by the connection's loop, requests by the device that has one. Neither holds the lock
/// while it waits for the client.
final class ClientRequests: Sendable {
  private let state: Mutex<State>

  private struct State {
    /// nil once closed.
    var socket: Socket?
    /// The socket has taken only a part of the replies that were sent last.
    var isMidReply = false
    /// What it has not taken of requests.
    var unsent: [UInt8] = []
    var lastID: UInt16 = 0
    var waiting: [UInt16: ClientRequest] = [:]
  }

  private let tracepoint: Tracepoint?
  /// By which traces know the connection.
  private let number: UInt64

  init(_ socket: Socket, _ tracepoint: Tracepoint?, number: UInt64) {
    state = Mutex(State(socket: socket))
    self.tracepoint = tracepoint
    self.number = number
  }

  private var socket: Socket? { state.withLock { $0.socket } }

  /// Sends replies, as `Socket.send` does.
  func sendReplies(
    _ bytes: Span<UInt8>, with descriptors: [Descriptor], wait: Bool
  ) throws(Errno) -> Int? {
    while true {
      let sent = try state.withLock { state throws(Errno) -> Int? in
        guard let socket = state.socket else { throw .brokenPipe }
        guard try sendUnsent(&state, socket) else { return nil }
        let sent = try socket.send(bytes, with: descriptors, wait: false)
        if let sent { state.isMidReply = sent < bytes.count }
        return sent
      }
      if let sent { return sent }
      guard wait else { return nil }
      try socket?.waitUntilWritable(milliseconds: -1)
    }
  }

  /// Sends a request, and returns the body of its reply. Throws the errno of an error reply, `ETIMEDOUT`
  /// when none comes in time, `ECANCELED` when the request was cancelled, and `EPIPE` when the client
  /// has gone.
  func ask(_ request: ClientRequest, seconds: Int) throws(Errno) -> [UInt8] {
    let deadline = DispatchTime.now() + .seconds(seconds)
    let id = try state.withLock { state throws(Errno) -> UInt16 in
      guard let socket = state.socket, state.waiting.count < 1000 else { throw .brokenPipe }
      repeat { state.lastID &+= 1 } while state.waiting[state.lastID] != nil
      let id = state.lastID
      // Once it is cancelled, nothing of it is sent.
      try request.begin()
      state.waiting[id] = request
      let header = Header(
        id: id, command: request.command, messageSize: UInt32(Header.size + request.body.count))
      var bytes = [UInt8](repeating: 0, count: Header.size)
      var span = bytes.mutableSpan
      header.write(to: &span, at: 0)
      state.unsent += bytes + request.body
      // Before the reply can come, and its record.
      if let tracepoint, tracepoint.isWatched {
        let body = request.body
        tracepoint.record(.sent, on: number, header, body.span, descriptors: 0)
        tracepoint.flush()
      }
      _ = try? sendUnsent(&state, socket)
      return id
    }
    defer { state.withLock { _ = $0.waiting.removeValue(forKey: id) } }
    while state.withLock({ !$0.unsent.isEmpty && !$0.isMidReply }) {
      guard let socket else { throw .brokenPipe }
      guard try socket.waitUntilWritable(milliseconds: deadline.milliseconds) else {
        // It takes nothing, and half a request may be on its way.
        socket.shutdown()
        throw .timedOut
      }
      _ = try state.withLock { state throws(Errno) in try sendUnsent(&state, socket) }
    }
    return try request.wait(until: deadline)
  }

  /// False when the socket doesn't take all of it now.
  private func sendUnsent(_ state: inout State, _ socket: Socket) throws(Errno) -> Bool {
    while !state.unsent.isEmpty, !state.isMidReply {
      guard let sent = try socket.send(state.unsent.span, wait: false) else { return false }
      state.unsent.removeFirst(sent)
    }
    return true
  }

  /// A reply has arrived. One that nobody waits for any more is dropped.
  func received(_ header: Header, _ body: Span<UInt8>) {
    let request = state.withLock { state -> ClientRequest? in
      guard state.waiting[header.id]?.command == header.command else { return nil }
      return state.waiting.removeValue(forKey: header.id)
    }
    guard let request else { return }
    if header.flags.contains(.error) {
      request.end(.failure(.badAddress))
    } else {
      var bytes: [UInt8] = []
      bytes.reserveCapacity(body.count)
      for index in 0..<body.count { bytes.append(body[index]) }
      request.end(.success(bytes))
    }
  }

  /// Ends the connection, for whoever serves it.
  func hangUp() { socket?.shutdown() }

  /// Nothing is sent any more, and nobody waits.
  func close() {
    let waiting = state.withLock { state in
      state.socket = nil
      state.unsent = []
      return state.waiting.values
    }
    for request in waiting { request.end(.failure(.brokenPipe)) }
  }
}

/// One request to a client, and the wait for its answer.
final class ClientRequest: Sendable {
  let command: Command
  let body: [UInt8]
  private let answered = DispatchSemaphore(value: 0)
  private let outcome = Mutex<Result<[UInt8], Errno>?>(nil)

  init(_ command: Command, _ body: [UInt8]) {
    self.command = command
    self.body = body
  }

  /// Only the first call counts.
  func end(_ result: Result<[UInt8], Errno>) {
    outcome.withLock { $0 = $0 ?? result }
    answered.signal()
  }

  /// Throws when it has ended before it began.
  fileprivate func begin() throws(Errno) {
    if case .failure(let error)? = outcome.withLock({ $0 }) { throw error }
  }

  fileprivate func wait(until deadline: DispatchTime) throws(Errno) -> [UInt8] {
    _ = answered.wait(timeout: deadline)
    return try (outcome.withLock { $0 } ?? .failure(.timedOut)).get()
  }
}

extension DispatchTime {
  /// From now on; 0 when it has passed.
  fileprivate var milliseconds: Int32 {
    let now = DispatchTime.now().uptimeNanoseconds
    return Int32(clamping: uptimeNanoseconds > now ? (uptimeNanoseconds - now) / 1_000_000 : 0)
  }
}
