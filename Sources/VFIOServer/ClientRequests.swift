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
    /// What it has not taken of requests, oldest first.
    var unsent: [Unsent] = []
    var lastID: UInt16 = 0
    var waiting: [UInt16: ClientRequest] = [:]
  }

  private struct Unsent {
    let request: ClientRequest
    var bytes: [UInt8]
    /// The client has the beginning, and must get the rest.
    var isBegun = false
  }

  private let tracepoint: Tracepoint?
  /// By which traces know the connection.
  private let number: UInt64

  init(_ socket: Socket, _ tracepoint: Tracepoint? = nil, number: UInt64 = 0, lastID: UInt16 = 0) {
    state = Mutex(State(socket: socket, lastID: lastID))
    self.tracepoint = tracepoint
    self.number = number
  }

  /// Requests that wait for their answers; for tests.
  var count: Int { state.withLock { $0.waiting.count } }

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

  /// Sends a request, and returns the body of its reply. Throws `EFAULT` for an error reply, `ETIMEDOUT`
  /// when none comes in time, `ECANCELED` when the request was cancelled, and `EPIPE` when the client
  /// has gone.
  func ask(_ request: ClientRequest, seconds: Int) throws(Errno) -> [UInt8] {
    let deadline = DispatchTime.now() + .seconds(seconds)
    let id = try state.withLock { state throws(Errno) -> UInt16 in
      guard let socket = state.socket, state.waiting.count < 1000 else { throw .brokenPipe }
      // Once it is cancelled, nothing of it is sent.
      if request.isOver { throw .canceled }
      repeat { state.lastID &+= 1 } while state.waiting[state.lastID] != nil
      let id = state.lastID
      state.waiting[id] = request
      let header = Header(
        id: id, command: request.command, messageSize: UInt32(Header.size + request.body.count))
      var bytes = [UInt8](repeating: 0, count: Header.size)
      var span = bytes.mutableSpan
      header.write(to: &span, at: 0)
      state.unsent.append(Unsent(request: request, bytes: bytes + request.body))
      // Before the reply can come, and its record.
      if let tracepoint, tracepoint.isWatched {
        let body = request.body
        tracepoint.record(.sent, on: number, header, body.span, descriptors: 0)
        tracepoint.flush()
      }
      _ = try? sendUnsent(&state, socket)
      return id
    }
    defer { forget(request, id) }
    // Rare: the socket is full, or has taken only a part of a reply. Nothing says when it takes more, or
    // that the request was cancelled, whichever comes first.
    while try isUnsent(request), DispatchTime.now() < deadline {
      request.wait(until: min(deadline, .now() + .milliseconds(5)))
    }
    return try request.answer(until: deadline)
  }

  /// Whether the socket still doesn't take all of a request. One that is over stays only if the client
  /// has a part of it, and must get the rest.
  private func isUnsent(_ request: ClientRequest) throws(Errno) -> Bool {
    try state.withLock { state throws(Errno) in
      guard let socket = state.socket else { throw .brokenPipe }
      _ = try sendUnsent(&state, socket)
      return state.unsent.contains { $0.request === request }
    }
  }

  /// Nobody waits for the answer any more. When the client has taken a part of the request, and not the
  /// rest in time, nothing can follow it: that ends the connection.
  private func forget(_ request: ClientRequest, _ id: UInt16) {
    state.withLock { state in
      if state.waiting[id] === request { state.waiting[id] = nil }
      guard let index = state.unsent.firstIndex(where: { $0.request === request }) else { return }
      if state.unsent.remove(at: index).isBegun { state.socket?.shutdown() }
    }
  }

  /// Ends a request; nothing of it is sent afterwards, unless the client has a part of it.
  func cancel(_ request: ClientRequest) {
    state.withLock { _ in request.end(.failure(.canceled)) }
  }

  /// False when the socket doesn't take all of it now.
  private func sendUnsent(_ state: inout State, _ socket: Socket) throws(Errno) -> Bool {
    while let first = state.unsent.first, !state.isMidReply {
      if first.request.isOver, !first.isBegun {
        state.unsent.removeFirst()
        continue
      }
      guard let sent = try socket.send(first.bytes.span, wait: false) else { return false }
      if sent == first.bytes.count {
        state.unsent.removeFirst()
      } else {
        state.unsent[0].bytes.removeFirst(sent)
        state.unsent[0].isBegun = true
      }
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
      request.end(.success(body.array))
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
  private let ended = DispatchSemaphore(value: 0)
  private let outcome = Mutex<Result<[UInt8], Errno>?>(nil)

  init(_ command: Command, _ body: [UInt8]) {
    self.command = command
    self.body = body
  }

  /// Only the first call counts.
  func end(_ result: Result<[UInt8], Errno>) {
    outcome.withLock { $0 = $0 ?? result }
    ended.signal()
  }

  var isOver: Bool { outcome.withLock { $0 != nil } }

  /// Returns when it ends, or at a time.
  fileprivate func wait(until time: DispatchTime) { _ = ended.wait(timeout: time) }

  /// Waits for the answer.
  fileprivate func answer(until deadline: DispatchTime) throws(Errno) -> [UInt8] {
    if !isOver { wait(until: deadline) }
    return try (outcome.withLock { $0 } ?? .failure(.timedOut)).get()
  }
}
