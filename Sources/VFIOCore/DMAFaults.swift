import Locks

/// A device's transfer that could not go on.
public struct DMAFault: Error, Sendable, Equatable {
  /// The first address that could not be reached.
  public var iova: UInt64
  /// Bytes transferred before it.
  public var completed: Int

  public init(iova: UInt64, completed: Int) {
    self.iova = iova
    self.completed = completed
  }
}

/// The faults that a device's transfers have met since the device was plugged, for its administrator.
public final class DMAFaults: Sendable {
  /// What is known of them.
  public struct Summary: Sendable, Equatable {
    public var count: UInt64 = 0
    /// The last one's address, and what the device wanted there.
    public var iova: UInt64 = 0
    public var access: DMAAccess = []
  }

  private struct State {
    var summary = Summary()
    var lastTime: ContinuousClock.Instant?
  }

  private let state = Mutex(State())
  private let report: @Sendable (Summary) -> Void

  /// `report` is told the first fault of a burst: of those with less than a second between them.
  public init(report: @escaping @Sendable (Summary) -> Void = { _ in }) { self.report = report }

  public var summary: Summary { state.withLock { $0.summary } }

  func record(
    _ fault: DMAFault, _ access: DMAAccess, at now: ContinuousClock.Instant = .now
  ) {
    let first = state.withLock { state -> Summary? in
      state.summary.count += 1
      (state.summary.iova, state.summary.access) = (fault.iova, access)
      defer { state.lastTime = now }
      guard let last = state.lastTime, now - last < .seconds(1) else { return state.summary }
      return nil
    }
    if let first { report(first) }
  }
}
