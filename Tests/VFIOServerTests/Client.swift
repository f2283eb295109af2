import Glibc
import LinuxIO
import SystemPackage
import VFIOStream
import VFIOWire

/// One end of a socket, whose other end a server has: sends messages and receives replies, as they
/// are, one after the other.
final class Client {
  private var socket: Socket?
  private var input = Input(limit: 1 << 26, descriptorLimit: 253)
  private var unsent: [UInt8] = []
  private var lastID: UInt16 = 0
  /// What the server has asked meanwhile.
  private var commands: [Reply] = []

  init(_ socket: Socket) throws {
    self.socket = socket
    socket.limitWait(seconds: 60)
  }

  /// A handed-out descriptor.
  convenience init(_ descriptor: Descriptor) throws { try self.init(Socket(descriptor)) }

  convenience init(path: String) throws { try self.init(try Socket.connect(to: path)) }

  var descriptor: Descriptor {
    get throws(Errno) {
      guard let socket else { throw .badFileDescriptor }
      return socket.descriptor
    }
  }

  func close() { socket = nil }

  // MARK: sending

  var hasUnsent: Bool { !unsent.isEmpty }

  /// Puts bytes aside for `sendMore`.
  func queue(_ bytes: [UInt8]) { unsent += bytes }

  /// Sends as much as the socket takes.
  func sendMore() {
    while !unsent.isEmpty, let sent = try? socket?.send(unsent.span, wait: false) {
      unsent.removeFirst(sent)
    }
  }

  /// Sends what is put aside; false when the server has taken nothing for a while, so that it must be
  /// waiting for its replies to be read.
  @discardableResult func sendUntilStuck() -> Bool {
    for _ in 0..<100 {
      sendMore()
      guard hasUnsent, let socket else { return true }
      _ = try? socket.waitUntilWritable(milliseconds: 2)
    }
    return false
  }

  /// Whether the server has sent as much as this client's socket takes without being read: at least
  /// so much that it waits. Returns within seconds.
  func waitUntilFull() -> Bool {
    guard let socket else { return false }
    var (last, same) = (0, 0)
    for _ in 0..<60_000 {
      let arrived = socket.unreadInput
      same = arrived == last && arrived > 100_000 ? same + 1 : 0
      if same == 20 { return true }
      last = arrived
      usleep(1000)
    }
    return false
  }

  /// Sends bytes and waits until the socket takes them.
  func send(_ bytes: [UInt8], with descriptors: [Descriptor] = []) {
    var sent = 0
    var descriptors = descriptors
    while sent < bytes.count {
      guard
        let more = try? socket?.send(
          bytes.span.extracting(sent..<bytes.count), with: descriptors, wait: true)
      else { return }
      sent += more
      descriptors = []
    }
  }

  // MARK: receiving

  /// The next reply; nil at the end. Throws `ETIMEDOUT` when none comes.
  func receive() throws(Errno) -> Reply? {
    while true {
      switch input.next() {
      case .message(let header, let body, let descriptors, _):
        return Reply(header: header, body: Array(input.bytes[body]), descriptors: descriptors)
      case .impossible:
        throw .protocolError
      case .incomplete:
        guard let socket else { throw .badFileDescriptor }
        let received = try input.withRoom { room throws(Errno) in
          try socket.receive(into: &room, wait: true)
        }
        guard let received else { throw .timedOut }
        if received.count == 0 { return nil }
        input.received(
          received.count, descriptors: received.descriptors, truncated: received.truncated)
      }
    }
  }

  /// Reads bytes that have arrived, at most `count`, as nobody's message, and returns how many.
  func skip(_ count: Int) -> Int {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    return (try? socket?.receive(into: &span, wait: false))?.count ?? 0
  }

  var unreadInput: Int { socket?.unreadInput ?? 0 }

  /// Returns when so many bytes wait to be received; false when they don't come within a minute.
  func waitForInput(_ count: Int) -> Bool {
    for _ in 0..<60_000 {
      if unreadInput >= count { return true }
      usleep(1000)
    }
    return false
  }

  /// Sends a command and receives its reply. Throws the errno that it is answered with, and `EPIPE`
  /// when the connection ends instead.
  @discardableResult
  func call(
    _ command: Command, _ body: [UInt8] = [], with descriptors: [Descriptor] = []
  ) throws(Errno) -> Reply {
    lastID &+= 1
    send(message(command, body, id: lastID), with: descriptors)
    var received = try receive()
    while let command = received, command.header.flags.isDisjoint(with: .type) {
      commands.append(command)
      received = try receive()
    }
    guard let reply = received else { throw .brokenPipe }
    guard reply.header.id == lastID, reply.header.command == command else { throw .protocolError }
    guard reply.header.error == 0 else { throw Errno(rawValue: CInt(reply.header.error)) }
    return reply
  }

  // MARK: the server's commands

  /// Whether one was received and not taken.
  var hasCommand: Bool { !commands.isEmpty }

  /// The next that the server asks; nil when the connection ends instead.
  func nextCommand() throws(Errno) -> Reply? {
    if !commands.isEmpty { return commands.removeFirst() }
    guard let received = try receive() else { return nil }
    guard received.header.flags.isDisjoint(with: .type) else { throw .protocolError }
    return received
  }

  /// Answers one: with a body, or with the header alone and an errno.
  func answer(_ command: Reply, _ body: [UInt8] = [], error: UInt32 = 0) {
    let flags: Header.Flags = error == 0 ? .reply : [.reply, .error]
    send(
      bytes(
        command.header.id, command.header.command.rawValue, UInt32(Header.size + body.count),
        flags.rawValue, error) + body)
  }
}

extension Socket {
  /// Whether a read would return at once.
  var hasInput: Bool {
    var state = pollfd(fd: descriptor.rawValue, events: Int16(POLLIN), revents: 0)
    // Sound: one entry is given and one is said.
    return unsafe poll(&state, 1, 0) == 1
  }

  /// Bytes that have arrived and are not read.
  var unreadInput: Int {
    var bytes: CInt = 0
    // Sound: FIONREAD stores an int.
    return unsafe ioctl(descriptor.rawValue, UInt(FIONREAD), &bytes) == 0 ? Int(bytes) : 0
  }
}
