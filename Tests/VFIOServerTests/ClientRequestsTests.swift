import Dispatch
import Glibc
import LinuxIO
import Locks
import SystemPackage
import Testing
import VFIOWire

@testable import VFIOServer

@Suite struct `A request of the server's` {
  private let requests: ClientRequests
  private let client: Client

  init() throws {
    let (ours, theirs) = try Socket.pair()
    requests = ClientRequests(ours, lastID: 0xFFFE)
    client = try Client(theirs)
  }

  /// A request that is asked in a thread of its own.
  private final class Asked: Sendable {
    let request: ClientRequest
    private let outcome = Mutex<Result<[UInt8], Errno>?>(nil)
    private let ended = DispatchGroup()

    init(_ requests: ClientRequests, _ body: [UInt8], seconds: Int) {
      request = ClientRequest(.dmaWrite, body)
      let before = requests.count
      DispatchQueue(label: "asks").async(group: ended) { [self] in
        let result: Result<[UInt8], Errno>
        do throws(Errno) {
          result = .success(try requests.ask(request, seconds: seconds))
        } catch {
          result = .failure(error)
        }
        outcome.withLock { $0 = result }
      }
      // From then on it is on its way, or over.
      while requests.count == before, outcome.withLock({ $0 == nil }) { sched_yield() }
    }

    var answer: [UInt8] {
      get throws {
        ended.wait()
        return try #require(outcome.withLock { $0 }).get()
      }
    }
  }

  private func ask(_ body: [UInt8] = [1, 2, 3], seconds: Int = 60) -> Asked {
    Asked(requests, body, seconds: seconds)
  }

  private func received(_ id: UInt16, _ command: Command = .dmaWrite, _ body: [UInt8] = []) {
    requests.received(
      Header(
        id: id, command: command, messageSize: UInt32(Header.size + body.count), flags: .reply),
      body.span)
  }

  /// Sends replies until the socket takes no more, and returns what it has not taken of the last.
  private func fill(_ size: Int) throws -> [UInt8] {
    let reply = message(.regionRead, pattern(size), flags: .reply)
    while let sent = try requests.sendReplies(reply.span, with: [], wait: false) {
      if sent < reply.count { return Array(reply.dropFirst(sent)) }
    }
    return []
  }

  /// What the client receives, up to a mark that is sent now.
  private func drain() throws -> [Reply] {
    var all: [Reply] = []
    let mark = message(.deviceReset, flags: .reply)
    var isMarked = false
    while true {
      if !isMarked {
        isMarked = try requests.sendReplies(mark.span, with: [], wait: false) != nil
      }
      let next = try #require(try client.receive())
      if next.header.command == .deviceReset { return all }
      all.append(next)
    }
  }

  @Test func `is answered by the reply with its id and command`() throws {
    let asked = ask()
    let command = try #require(try client.nextCommand())
    #expect(command.body == [1, 2, 3])
    received(command.header.id, .dmaRead, [7])
    received(command.header.id &+ 1, .dmaWrite, [8])
    received(command.header.id, .dmaWrite, [9])
    received(command.header.id, .dmaWrite, [10])
    #expect(try asked.answer == [9])
    #expect(requests.count == 0)
  }

  @Test func `has ids that go round`() throws {
    var asked: [Asked] = []
    for id: UInt16 in [0xFFFF, 0, 1] {
      asked.append(ask())
      #expect(try client.nextCommand()?.header.id == id)
    }
    for id: UInt16 in [1, 0xFFFF, 0] { received(id, .dmaWrite, bytes(id)) }
    #expect(try asked.map { try $0.answer } == [[0xFF, 0xFF], [0, 0], [1, 0]])
  }

  @Test func `waits until the reply before it is whole, and no longer`() throws {
    let rest = try fill(1 << 20)
    #expect(!rest.isEmpty)
    let asked = ask()
    let sender = DispatchGroup()
    DispatchQueue(label: "sends").async(group: sender) { [requests] in
      var rest = rest
      while !rest.isEmpty,
        let sent = try? requests.sendReplies(rest.span, with: [], wait: true)
      {
        rest.removeFirst(sent)
      }
    }
    #expect(try client.receive()?.body == pattern(1 << 20))
    let command = try #require(try client.nextCommand())
    #expect(command.body == [1, 2, 3])
    received(command.header.id)
    #expect(try asked.answer == [])
    sender.wait()
  }

  @Test func `is never sent when it was cancelled before the socket took any of it`() throws {
    #expect(try fill(1000).isEmpty)
    let asked = ask()
    requests.cancel(asked.request)
    #expect(throws: Errno.canceled) { try asked.answer }
    #expect(try drain().allSatisfy { $0.header.command == .regionRead })
  }

  @Test func `is never sent when it was cancelled before it was asked`() throws {
    let request = ClientRequest(.dmaRead, [])
    requests.cancel(request)
    #expect(throws: Errno.canceled) { try requests.ask(request, seconds: 60) }
    #expect(try drain().isEmpty)
  }

  @Test func `that the socket took nothing of in time is forgotten, and the stream goes on`() throws
  {
    #expect(try fill(1000).isEmpty)
    #expect(throws: Errno.timedOut) { try ask(seconds: 0).answer }
    #expect(try drain().allSatisfy { $0.header.command == .regionRead })
    let asked = ask()
    received(try #require(try client.nextCommand()).header.id)
    #expect(try asked.answer == [])
  }

  @Test func `is sent to its end when it was cancelled in the middle`() throws {
    let asked = ask(pattern(1 << 20))
    requests.cancel(asked.request)
    #expect(try client.nextCommand()?.body == pattern(1 << 20))
    #expect(throws: Errno.canceled) { try asked.answer }
    #expect(try drain().isEmpty)
  }

  @Test func `that the socket took a part of in time ends the connection`() throws {
    #expect(throws: Errno.timedOut) { try ask(pattern(1 << 20), seconds: 0).answer }
    #expect(try client.receive() == nil)
  }

  @Test func `that nobody answers is over in time, and a late answer is dropped`() throws {
    let asked = ask(seconds: 1)
    let command = try #require(try client.nextCommand())
    #expect(throws: Errno.timedOut) { try asked.answer }
    received(command.header.id)
    #expect(requests.count == 0)
  }

  @Test func `ends with EPIPE when the connection does, sent or not`() throws {
    let sent = ask()
    _ = try fill(1000)
    let unsent = ask()
    requests.close()
    #expect(throws: Errno.brokenPipe) { try sent.answer }
    #expect(throws: Errno.brokenPipe) { try unsent.answer }
    #expect(throws: Errno.brokenPipe) { try ask().answer }
  }

  @Test func `ends with EPIPE when the client has gone`() throws {
    client.close()
    #expect(throws: Errno.brokenPipe) { try ask().answer }
    #expect(requests.count == 0)
  }
}
