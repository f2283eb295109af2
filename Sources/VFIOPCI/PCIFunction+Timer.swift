import Dispatch
import Locks

extension PCIFunction {
  /// The device's timer.
  struct Timer {
    var due: DispatchWallTime?
    /// When the next of the wake-ups that Dispatch has is due.
    var wakeUp: DispatchWallTime?
  }

  /// A wake-up can't be taken back. So none is further away than this, and a client that sets the timer
  /// again and again can't pile them up.
  private static let longestSleep = 60.0

  /// Takes over what an effect has set.
  func setTimer(_ state: inout State) {
    guard let due = state.bus.timer else { return }
    state.bus.timer = nil
    state.timer.due = due
    sleep(&state)
  }

  private func sleep(_ state: inout State) {
    guard let due = state.timer.due else { return }
    let wakeUp = min(due, .now() + Self.longestSleep)
    if let earlier = state.timer.wakeUp, earlier <= wakeUp { return }
    state.timer.wakeUp = wakeUp
    // A timer keeps no device alive.
    queue.asyncAfter(wallDeadline: wakeUp) { [weak self] in self?.wakeUp(wakeUp) }
  }

  private func wakeUp(_ time: DispatchWallTime) {
    state.withLock { state in
      if state.timer.wakeUp == time { state.timer.wakeUp = nil }
      guard let due = state.timer.due, !state.migration.isStopped else { return }
      guard due <= .now() else { return sleep(&state) }
      state.timer.due = nil
      timerFired(state.cell, &state.bus)
      queueWork(&state)
    }
  }
}
