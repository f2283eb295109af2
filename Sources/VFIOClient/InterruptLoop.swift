import Dispatch
import LinuxIO
import Locks
import SystemPackage

/// Where tasks wait for interrupts: one thread of Dispatch's for all of them, for the process's life.
final class InterruptLoop: Sendable {
  static let shared = Result { () throws(Errno) in try InterruptLoop() }

  private let epoll: Epoll
  /// The tasks that wait. A leaf.
  private let state = Mutex(State())

  private struct State: Sendable {
    var lastNumber: UInt64 = 0
    var tasks: [UInt64: Task] = [:]
    /// Cancelled before they had begun to wait.
    var cancelled: Set<UInt64> = []
  }

  private struct Task: Sendable {
    /// A duplicate, so that several tasks may wait for one eventfd.
    var descriptor: Descriptor
    var continuation: CheckedContinuation<Bool, Never>
  }

  private init() throws(Errno) {
    epoll = try Epoll()
    DispatchQueue(label: "vfio.interrupts").async { [self] in run() }
  }

  private func run() {
    var events: [Epoll.Event] = []
    while true {
      events.removeAll(keepingCapacity: true)
      try? epoll.wait(&events, forever: true)
      for event in events { end(event.number, true) }
    }
  }

  /// Waits until an eventfd can be read; false when the task was cancelled or `timeout` has passed.
  func wait(for event: EventFD, timeout: Duration?) async throws(Errno) -> Bool {
    let descriptor = try Descriptor(duplicating: event.descriptor.borrowed)
    let number = state.withLock { state in
      state.lastNumber += 1
      return state.lastNumber
    }
    defer { state.withLock { _ = $0.cancelled.remove(number) } }
    return await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        begin(number, Task(descriptor: descriptor, continuation: continuation))
        guard let timeout else { return }
        let deadline = DispatchTime.now() + .milliseconds(timeout.milliseconds)
        DispatchQueue.global().asyncAfter(deadline: deadline) { [self] in end(number, false) }
      }
    } onCancel: {
      end(number, false, isCancelled: true)
    }
  }

  private func begin(_ number: UInt64, _ task: Task) {
    let waits = state.withLock { state in
      guard !state.cancelled.contains(number),
        (try? epoll.add(task.descriptor, .readable, number: number)) != nil
      else { return false }
      state.tasks[number] = task
      return true
    }
    if !waits { task.continuation.resume(returning: false) }
  }

  /// Under the lock a descriptor comes and goes together with its task, or epoll would report it for ever:
  /// it shares the eventfd's own file.
  private func end(_ number: UInt64, _ isReadable: Bool, isCancelled: Bool = false) {
    let task = state.withLock { state in
      let task = state.tasks.removeValue(forKey: number)
      if let task {
        epoll.remove(task.descriptor)
      } else if isCancelled {
        state.cancelled.insert(number)
      }
      return task
    }
    task?.continuation.resume(returning: isReadable)
  }
}
