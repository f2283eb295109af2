import LinuxIO
import Locks
import SystemPackage
import Testing

@testable import VFIOServer

@Suite struct `The loop of eventfds` {
  private let loop = EventLoop()
  private let called = EventFD.made

  private func listen(to event: EventFD) throws -> Listening {
    try loop.listen(to: event) { [called] in
      called.signal()
    }
  }

  @Test func `calls for each signal, though nobody takes the count`() throws {
    let event = EventFD.made
    let listening = try listen(to: event)
    for _ in 0..<3 {
      event.signal()
      #expect(called.takeCountWhenThere() == 1)
    }
    withExtendedLifetime(listening) {}
  }

  @Test func `calls for an eventfd that was signalled before`() throws {
    let event = EventFD.made
    event.signal()
    let listening = try listen(to: event)
    #expect(called.takeCountWhenThere() == 1)
    withExtendedLifetime(listening) {}
  }

  @Test func `tells eventfds apart, and calls for one no more when it is let go`() throws {
    let (first, second) = (EventFD.made, EventFD.made)
    var kept: [Listening] = [try listen(to: first)]
    let other = EventFD.made
    let listening = try loop.listen(to: second) { other.signal() }
    kept.removeAll()
    first.signal()
    second.signal()
    // The second came later: by now the first would have been called for.
    #expect(other.takeCountWhenThere() == 1)
    #expect(called.takeCount() == nil)
    withExtendedLifetime(listening) {}
  }

  @Test func `ends with the last that it listens to, and begins anew`() throws {
    for _ in 0..<100 {
      let event = EventFD.made
      let listening = try listen(to: event)
      event.signal()
      #expect(called.takeCountWhenThere() == 1)
      withExtendedLifetime(listening) {}
    }
    loop.waitUntilEnded()
  }

  @Test func `lets an action end what it is called for`() throws {
    let event = EventFD.made
    let held = Mutex<Listening?>(nil)
    let listening = try loop.listen(to: event) { [called] in
      held.withLock { $0 = nil }
      called.signal()
    }
    held.withLock { $0 = listening }
    event.signal()
    #expect(called.takeCountWhenThere() == 1)
  }
}

extension EventFD {
  static var made: EventFD { try! EventFD() }

  /// The count once there is one; nil when none comes within 20 s.
  func takeCountWhenThere() -> UInt64? {
    try? wait(milliseconds: 20_000)
    return takeCount()
  }
}
