import Dispatch
import LinuxIO
import Locks
import SystemPackage

/// Listens to the eventfds that clients signal: one loop for those of all devices, which runs as long as
/// there are any.
///
/// It never reads one that might block, and asks epoll for changes only: a client can't stop it, nor
/// keep it busy without signalling.
final class EventLoop: Sendable {
  /// Guards who is listened to. A leaf: no action is called under it.
  private let state = Mutex(State())
  private let queue = DispatchQueue(label: "vfiod.events")
  private let ended = DispatchGroup()

  private struct State {
    var listeners: [UInt64: Listener] = [:]
    var lastNumber: UInt64 = 0
    var isRunning = false
    /// What the loop waits in, and what wakes it; there while it runs.
    var wait: (epoll: Epoll, wake: EventFD)?
  }

  private struct Listener {
    let event: EventFD
    let action: @Sendable () -> Void
  }

  /// Event number of `wake`; listeners count from 1.
  private static let wakeNumber: UInt64 = 0

  /// Calls `action` on this loop when `event` is signalled, and once if it is already. It ends with what
  /// this returns, but a call that has begun goes on.
  func listen(
    to event: EventFD, _ action: @escaping @Sendable () -> Void
  ) throws(Errno) -> Listening {
    try state.withLock { state throws(Errno) in
      let epoll = try Self.wait(&state).epoll
      state.lastNumber += 1
      try epoll.add(event.descriptor, [.readable, .edge], number: state.lastNumber)
      state.listeners[state.lastNumber] = Listener(event: event, action: action)
      if !state.isRunning {
        state.isRunning = true
        queue.async(group: ended) { self.run(epoll) }
      }
      return Listening(self, state.lastNumber)
    }
  }

  private static func wait(_ state: inout State) throws(Errno) -> (epoll: Epoll, wake: EventFD) {
    if let wait = state.wait { return wait }
    let (epoll, wake) = (try Epoll(), try EventFD())
    try epoll.add(wake.descriptor, [.readable, .edge], number: wakeNumber)
    state.wait = (epoll, wake)
    return (epoll, wake)
  }

  fileprivate func end(_ number: UInt64) {
    let ended = state.withLock { state -> Listener? in
      guard let listener = state.listeners.removeValue(forKey: number), let wait = state.wait else {
        return nil
      }
      // Before our descriptor closes: epoll would go on to report a file that the client has open.
      wait.epoll.remove(listener.event.descriptor)
      if state.listeners.isEmpty { wait.wake.signal() }
      return listener
    }
    // What goes with it may end another one: not under the lock.
    withExtendedLifetime(ended) {}
  }

  private func run(_ epoll: Epoll) {
    var events: [Epoll.Event] = []
    while goesOn() {
      events.removeAll(keepingCapacity: true)
      try? epoll.wait(&events, forever: true)
      for event in events {
        let listener = state.withLock { $0.listeners[event.number] }
        listener?.action()
      }
    }
  }

  /// False when there is nobody left to listen to: then nothing is left of the loop.
  private func goesOn() -> Bool {
    state.withLock { state in
      guard state.listeners.isEmpty else { return true }
      state.isRunning = false
      state.wait = nil
      return false
    }
  }

  /// Returns when it doesn't run any more, after all that it listened to has ended.
  func waitUntilEnded() { ended.wait() }
}

/// An eventfd that is listened to, until this object goes.
final class Listening: Sendable {
  private let loop: EventLoop
  private let number: UInt64

  fileprivate init(_ loop: EventLoop, _ number: UInt64) {
    self.loop = loop
    self.number = number
  }

  deinit { loop.end(number) }
}
