import LinuxIO
import Locks
import SystemPackage
import Testing
import VFIOStream
import VFIOWire

@testable import VFIOServer

/// A session that answers with as many bytes as the command's number says, and counts.
private final class Answering: Session {
  var handled = 0
  var closed = 0
  var kept: [Descriptor] = []
  var messageLimit = 1 << 20
  var isFinished = false
  var scale = 1
  var outlives = false

  func outlivesClient(_ command: Command) -> Bool { outlives }

  func handle(
    _ request: Request, _ body: Span<UInt8>, _ reply: inout Output
  ) throws(Errno) {
    handled += 1
    kept += request.descriptors
    reply.append([UInt8](repeating: 7, count: scale * Int(request.header.command.rawValue)))
  }
  func close() { closed += 1 }
}

@Suite struct `A connection` {
  private let session = Answering()
  private let connection: Connection
  private let client: Client

  init() throws {
    let (ours, theirs) = try Socket.pair()
    connection = Connection(
      number: 1, socket: ours, session: session, whenClosed: {},
      limits: ConnectionLimits(
        messageDescriptors: 2, queuedReplies: 100_000, undeliveredDescriptors: 4))
    client = try Client(theirs)
  }

  /// Serves until the client is idle, stuck or gone.
  private func serve() -> Exchange.State {
    while client.hasUnsent || connection.hasUnread {
      client.sendMore()
      switch connection.serve(wait: false) {
      case .open: continue
      case let state: return state
      }
    }
    return .open
  }

  @Test func `answers messages that arrive in one piece, in their order`() throws {
    client.queue((0..<50).flatMap { message(Command(rawValue: $0), id: $0) })
    #expect(serve() == .open)
    for id: UInt16 in 0..<50 {
      let reply = try #require(try client.receive())
      #expect(reply.header.id == id && reply.body.count == Int(id))
      #expect(reply.header.flags == .reply && reply.header.error == 0)
    }
  }

  @Test func `answers a message that arrives byte by byte`() throws {
    for byte in message(Command(rawValue: 3), [1, 2, 3], id: 9) {
      #expect(session.handled == 0)
      client.queue([byte])
      #expect(serve() == .open)
    }
    #expect(try client.receive()?.header.id == 9)
  }

  @Test(arguments: [(0, 1), (15, 1), (UInt32.max, 1), ((1 << 20) + 1, 1)] as [(UInt32, Int)])
  func `answers an impossible size once with EINVAL and ends`(
    _ size: UInt32, _ replies: Int
  ) throws {
    client.queue(bytes(UInt16(5), UInt16(1), size, UInt32(0), UInt32(0)) + message(.version))
    #expect(connection.serveAll(client) == .finished)
    let reply = try #require(try client.receive())
    #expect(reply.header.id == 5 && reply.header.error == 22 && reply.body.isEmpty)
    connection.close()
    #expect(try client.receive() == nil)
    #expect(session.handled == 0 && session.closed == 1)
  }

  @Test func `answers an impossible size once, also to a client that reads late`() throws {
    let count = 20
    client.queue((0..<count).flatMap { message(Command(rawValue: 60_000), id: UInt16($0)) })
    client.queue(bytes(UInt16(99), UInt16(1), UInt32(3), UInt32(0), UInt32(0)))
    client.sendMore()
    var state = Exchange.State.open
    var ids: [UInt16] = []
    while state != .finished {
      state = connection.serve(wait: false)
      if state == .blocked { ids.append(try #require(try client.receive()).header.id) }
    }
    connection.close()
    while let reply = try client.receive() { ids.append(reply.header.id) }
    #expect(ids == (0..<UInt16(count)) + [99])
  }

  @Test func `ends after the answer with which its session has finished`() throws {
    session.isFinished = true
    client.queue(message(.version) + message(.version))
    #expect(connection.serveAll(client) == .finished)
    #expect(session.handled == 1)
    #expect(try client.receive() != nil)
  }

  @Test func `does not answer a message that wants no reply, nor its error`() throws {
    client.queue(message(.version, flags: .noReply))
    client.queue(message(.version, flags: [.noReply, .reply]))
    client.queue(message(.version, id: 3))
    #expect(serve() == .open)
    #expect(try client.receive()?.header.id == 3)
    #expect(session.handled == 2)
  }

  @Test(arguments: 1...15 as ClosedRange<UInt32>)
  func `answers EINVAL to what is no command, and goes on`(_ type: UInt32) throws {
    client.queue(message(.version, [1, 2], flags: Header.Flags(rawValue: type)))
    client.queue(message(.version, id: 2))
    #expect(serve() == .open)
    #expect(try client.receive()?.header.error == 22)
    #expect(try client.receive()?.header.id == 2)
    #expect(session.handled == 1)
  }

  @Test func `answers EINVAL to a message with more descriptors than it may bring`() throws {
    let file = try Descriptor.null()
    client.send(message(.version), with: [file, file, file])
    client.send(message(.version), with: [file, file])
    #expect(serve() == .open)
    #expect(try client.receive()?.header.error == 22)
    #expect(try client.receive()?.header.error == 0)
    #expect(session.kept.count == 2)
  }

  @Test func `gives descriptors to the message that they came with, though others are before it`()
    throws
  {
    let file = try makeMemoryFile("mine", size: 1)
    client.send(message(Command(rawValue: 0)) + message(Command(rawValue: 0)))
    client.send(message(Command(rawValue: 0)), with: [file])
    #expect(connection.serve(wait: false) == .open)
    #expect(session.handled == 3 && session.kept.count == 1)
  }

  @Test func `handles no more of a client that does not read, until it has read all`() throws {
    let count = 200
    client.queue((0..<count).flatMap { message(Command(rawValue: 30_000), id: UInt16($0)) })
    client.sendMore()
    var state = connection.serveTurns()
    #expect(state == .blocked)
    // The socket takes some, and 100,000 bytes may wait.
    let first = session.handled
    #expect(first < 50)
    var received = 0
    while state == .blocked {
      #expect(try client.receive()?.header.id == UInt16(received))
      received += 1
      state = connection.serveTurns()
      #expect(session.handled - received < 50)
    }
    while received < count {
      #expect(try client.receive()?.header.id == UInt16(received))
      received += 1
      _ = connection.serveTurns()
    }
    #expect(session.handled == count)
  }

  @Test func `makes no more replies before a client has taken all that there are`() throws {
    session.scale = 10
    let size = Header.size + 600_000
    client.queue((0..<5).flatMap { message(Command(rawValue: 60_000), id: UInt16($0)) })
    client.sendMore()
    var state = connection.serve(wait: false)
    var read = 0
    while state == .blocked {
      #expect(session.handled == (read + client.unreadInput) / size + 1)
      read += client.skip(50_000)
      state = connection.serve(wait: false)
    }
    #expect(session.handled == 5)
  }

  @Test(arguments: [true, false])
  func `still handles what outlives a client that closed, and nothing else`(outlives: Bool) throws {
    session.outlives = outlives
    client.queue((0..<100).flatMap { message(Command(rawValue: 60_000), id: UInt16($0)) })
    client.sendMore()
    #expect(connection.serveTurns() == .blocked)
    let handled = session.handled
    client.close()
    while connection.serve(wait: false) != .finished {}
    #expect(session.handled == (outlives ? 100 : handled))
  }

  @Test func `finds out that it was aborted`() {
    connection.abort()
    #expect(connection.serve(wait: true) == .finished)
  }

  @Test func `ends with a client that sent its own socket with half a message`() throws {
    client.send(Array(message(.version).prefix(8)), with: [try client.descriptor])
    client.close()
    #expect(connection.serve(wait: false) == .open)
    #expect(connection.serve(wait: false) == .finished)
  }

  @Test func `is closed by now for one who waits until it is`() {
    connection.close()
    connection.waitUntilClosed()
    connection.waitUntilClosed()
    #expect(connection.socket == nil && connection.serve(wait: true) == .finished)
  }
}

extension Connection {
  /// Serves until there is something to say other than that all is answered.
  fileprivate func serveAll(_ client: Client) -> Exchange.State {
    client.sendMore()
    while true {
      let state = serve(wait: false)
      if state != .open { return state }
    }
  }

  /// Serves as many turns as there is something to handle.
  fileprivate func serveTurns() -> Exchange.State {
    var state = Exchange.State.unfinished
    while state == .unfinished { state = serve(wait: false) }
    return state
  }

  fileprivate var hasUnread: Bool { socket.map { $0.hasInput } ?? false }
}
