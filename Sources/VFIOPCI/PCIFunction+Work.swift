import Dispatch
import Locks

// What a device does beside its clients' accesses.
extension PCIFunction {
  /// Does what an effect left in the bus.
  func queueWork(_ state: inout State) {
    setTimer(&state)
    guard !state.bus.work.isEmpty else { return }
    let master = BusMaster(function: self, dma: state.dma, generation: state.generation)
    state.busy += state.bus.work.count
    for work in state.bus.work {
      queue.async {
        let finish = work(master)
        master.function.finish(finish, master.generation)
      }
    }
    state.bus.work.removeAll(keepingCapacity: true)
  }

  private func finish(_ finish: @Sendable (Cell, inout Bus) -> Void, _ generation: UInt64) {
    endBusy { [self] state in
      guard state.generation == generation else { return }
      finish(state.cell, &state.bus)
      queueWork(&state)
    }
  }

  /// Something that was counted as busy is done, and `body` is its last step.
  func endBusy(_ body: (inout State) -> Void) {
    let arrived = state.withLock { state in
      body(&state)
      state.busy -= 1
      return state.busy == 0 ? goOn(&state) : nil
    }
    arrived?()
  }

  /// Whether there was no reset since work of this generation began.
  func isCurrent(_ generation: UInt64) -> Bool {
    state.withLock { $0.generation == generation }
  }

  /// Whether the device may reach memory now.
  var mayMaster: Bool {
    ignoresBusMastering || state.withLock { $0.config.command.contains(.busMaster) }
  }

  // MARK: The timer

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
