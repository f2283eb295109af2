import Dispatch
import LinuxIO
import Locks
import SystemPackage

import struct Synchronization.Atomic

/// The event loop that serves every connection but those on a loop of their own: root, container,
/// group and token sockets, device sockets before VERSION, and those beyond the number of own loops.
///
/// It never waits for a client. It waits for own loops, but only for ones whose client has hung up.
final class ControlLoop: Sendable {
  private let epoll: Epoll
  /// All connections, for nothing but their hang-up, each reported once.
  private let hangUps: Epoll
  private let wake: EventFD
  private let isStopping = Atomic(false)
  private let queue = DispatchQueue(label: "vfiod.control")
  private let ended = DispatchGroup()

  /// Guards who is connected. A leaf: nothing else is locked under it.
  private let table = Mutex(Table())

  private struct Table {
    var connections: [UInt64: Connection] = [:]
    /// Connections on loops of their own, among them.
    var own: Set<UInt64> = []
    /// Connections to be served again: their turn was over, or the reply that they waited for has come.
    var ready: [UInt64] = []
    var isClosed = false

    /// The connection that this loop serves under a number. An event that was read, or a turn that was
    /// put off, before the connection moved to its own loop or closed is for nobody.
    func shared(_ number: UInt64) -> Connection? {
      own.contains(number) ? nil : connections[number]
    }
  }

  private let mostOwnLoops: Int
  /// Event number of `wake`; connections count from 1.
  private static let wakeNumber: UInt64 = 0

  /// Dispatch runs 255 blocked work items and hangs at the next: `mostOwnLoops` stays far below.
  init(mostOwnLoops: Int = 48) throws(Errno) {
    self.mostOwnLoops = mostOwnLoops
    epoll = try Epoll()
    hangUps = try Epoll()
    wake = try EventFD()
    try epoll.add(wake.descriptor, .readable, number: Self.wakeNumber)
  }

  func start() {
    queue.async(group: ended) { self.run() }
  }

  /// Closes every connection and returns when all sessions have ended.
  func stop() {
    isStopping.store(true, ordering: .releasing)
    wake.signal()
    ended.wait()
  }

  /// How many connections there are.
  var count: Int { table.withLock { $0.connections.count } }

  /// Serves a connection from now on; `ESHUTDOWN` when the server stops.
  func add(_ connection: Connection) throws(Errno) {
    guard let descriptor = connection.socket?.descriptor else { return }
    let isOpen = table.withLock { table in
      guard !table.isClosed else { return false }
      table.connections[connection.number] = connection
      return true
    }
    guard isOpen else { throw .socketShutdown }
    do throws(Errno) {
      try hangUps.add(descriptor, .edge, number: connection.number)
      try epoll.add(descriptor, .readable, number: connection.number)
    } catch {
      table.withLock { _ = $0.connections.removeValue(forKey: connection.number) }
      throw error
    }
  }

  private func run() {
    var events: [Epoll.Event] = []
    while !isStopping.load(ordering: .acquiring) {
      do throws(Errno) {
        try takeTurn(&events, wait: true)
      } catch {
        break  // cannot happen: the set is ours
      }
    }
    closeAll()
  }

  /// Serves every connection that there is something to do for. With `wait`, waits until there is one.
  /// `events` is what there was.
  func takeTurn(_ events: inout [Epoll.Event], wait: Bool) throws(Errno) {
    events.removeAll(keepingCapacity: true)
    try epoll.wait(&events, forever: wait)
    for event in events {
      if event.number == Self.wakeNumber {
        serveReady()
        continue
      }
      guard let connection = table.withLock({ $0.shared(event.number) }) else { continue }
      // One that waits for a reply is served again when that is there: this is its end.
      if connection.events.isEmpty {
        close(connection)
      } else {
        serve(connection)
      }
    }
  }

  private func serve(_ connection: Connection) {
    // One that has found its device leaves with its next message, so that a client which only
    // connects and closes costs no thread.
    if connection.session.wantsOwnLoop, moveToOwnLoop(connection) { return }
    let state = connection.serve(wait: false, settle: settle)
    if connection.hasHungUp { return drain(connection) }
    switch state {
    case .open: setEvents(.readable, of: connection)
    case .blocked: setEvents(.writable, of: connection)
    case .waiting:
      // Where nothing goes on meanwhile, only a hang-up is told; the request goes on without its client.
      setEvents(connection.takesInput ? .readable : [], of: connection)
      connection.later?.whenComplete { [self, number = connection.number] in
        serveAgain(number)
      }
    case .unfinished: serveAgain(connection.number)
    case .finished: close(connection)
    }
  }

  private func serveAgain(_ number: UInt64) {
    table.withLock { $0.ready.append(number) }
    wake.signal()
  }

  private func serveReady() {
    wake.clear()
    let ready = table.withLock { table in
      defer { table.ready = [] }
      return table.ready
    }
    for number in ready {
      guard let connection = table.withLock({ $0.shared(number) }) else { continue }
      serve(connection)
    }
  }

  private func setEvents(_ events: Epoll.Events, of connection: Connection) {
    guard connection.events != events, let socket = connection.socket else { return }
    connection.events = events
    try? epoll.change(socket.descriptor, events, number: connection.number)
  }

  private func close(_ connection: Connection) {
    connection.close()
    table.withLock { table in
      table.own.remove(connection.number)
      table.connections[connection.number] = nil
    }
  }

  // MARK: hang-ups

  /// Lets pending hang-ups take effect: what a client closed before it sent a request counts as closed
  /// when the request is answered.
  private func settle() {
    var events: [Epoll.Event] = []
    repeat {
      events.removeAll(keepingCapacity: true)
      do throws(Errno) {
        try hangUps.wait(&events, forever: false)
      } catch {
        return  // cannot happen: the set is ours
      }
      for event in events {
        let (found, isOwn) = table.withLock { table in
          (table.connections[event.number], table.own.contains(event.number))
        }
        guard let connection = found else { continue }
        if isOwn {
          connection.waitUntilClosed()
        } else {
          drain(connection)
        }
      }
    } while !events.isEmpty
  }

  /// Handles what is left of a client that has hung up, and closes.
  private func drain(_ connection: Connection) {
    guard !connection.isServing else {
      connection.hasHungUp = true
      return
    }
    // One that waits for a reply is closed with the requests behind that unanswered.
    connection.beDeaf()
    var state = Exchange.State.open
    while state == .open || state == .unfinished { state = connection.serve(wait: false) }
    close(connection)
  }

  // MARK: own loops

  /// False when all own loops are taken.
  private func moveToOwnLoop(_ connection: Connection) -> Bool {
    guard let socket = connection.socket else { return false }
    let isFree = table.withLock { table in
      guard table.own.count < mostOwnLoops else { return false }
      table.own.insert(connection.number)
      return true
    }
    guard isFree else { return false }
    epoll.remove(socket.descriptor)
    DispatchQueue(label: "vfiod.device.\(connection.number)").async(group: ended) {
      while true {
        switch connection.serve(wait: true) {
        case .open: continue
        case .waiting:
          // As in the shared loop: the requests behind the one that waits go unanswered.
          guard connection.waitForReply() else { return self.close(connection) }
        default: return self.close(connection)
        }
      }
    }
    return true
  }

  // MARK: stopping

  private func closeAll() {
    let (connections, own) = table.withLock { table in
      table.isClosed = true
      return (Array(table.connections.values), table.own)
    }
    for connection in connections {
      if own.contains(connection.number) {
        connection.abort()
      } else {
        close(connection)
      }
    }
  }
}
