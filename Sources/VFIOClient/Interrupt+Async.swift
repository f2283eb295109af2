import SystemPackage

extension Interrupt {
  /// Waits until it is signalled; returns how often since the last look, 0 when `timeout` has passed.
  /// `ECANCELED` when the task is cancelled.
  public func wait(timeout: Duration? = nil) async throws(VFIOError) -> UInt64 {
    let deadline = timeout.map { ContinuousClock.now + $0 }
    while true {
      let count = event.take()
      if count > 0 { return count }
      let left = deadline.map { $0 - .now }
      if let left, left <= .zero { return 0 }
      do throws(Errno) {
        _ = try await InterruptLoop.shared.get().wait(for: event, timeout: left)
      } catch {
        throw VFIOError(operation: sentence("wait for"), errno: error)
      }
      if Task.isCancelled { throw VFIOError(operation: sentence("wait for"), errno: .canceled) }
    }
  }

  /// `VFIO_IRQ_SET_ACTION_MASK`, as the blocking `mask`.
  public func mask() async throws(VFIOError) {
    try await connection.offload { () throws(VFIOError) in try self.mask() }
  }

  /// `VFIO_IRQ_SET_ACTION_UNMASK`, as the blocking `unmask`.
  public func unmask() async throws(VFIOError) {
    try await connection.offload { () throws(VFIOError) in try self.unmask() }
  }

  /// `VFIO_IRQ_SET_ACTION_TRIGGER`, as the blocking `trigger`.
  public func trigger() async throws(VFIOError) {
    try await connection.offload { () throws(VFIOError) in try self.trigger() }
  }
}

/// Each element says how often the interrupt was signalled since the last one. Ends when the task is
/// cancelled.
///
///     for try await _ in interrupt { … }
extension Interrupt: AsyncSequence {
  public struct AsyncIterator: AsyncIteratorProtocol {
    let interrupt: Interrupt

    public mutating func next() async throws(VFIOError) -> UInt64? {
      do throws(VFIOError) {
        return try await interrupt.wait()
      } catch {
        if error.errno == .canceled { return nil }
        throw error
      }
    }
  }

  public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(interrupt: self) }
}
