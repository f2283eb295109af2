import SystemPackage

/// A device whose state can move to another server: `VFIO_DEVICE_FEATURE_MIGRATION`. Calls come from
/// several threads; none of them may wait.
public protocol MigratableDevice: DeviceOperations {
  /// `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`.
  var migrationState: MigrationState { get }

  /// Goes to a state by the shortest path, and calls `completion` once it is there: perhaps before this
  /// returns, perhaps when the device has finished what it had begun. An error leaves it in a state on
  /// the way, which `migrationState` tells.
  ///
  /// `EINVAL` for a state that can't be reached, and, with the device in the state ERROR, for state data
  /// that is incomplete or not this device's; `EBUSY` while another change is under way; `ECANCELED`
  /// when a reset came in between.
  func setMigrationState(
    _ target: MigrationState, completion: @escaping @Sendable (Result<Void, Errno>) -> Void)

  /// The next bytes of the device's state, at most `count`. Fewer say that there are no more for now,
  /// and in STOP_COPY, for ever. `EINVAL` unless the state is PRE_COPY or STOP_COPY.
  func readMigrationData(_ count: Int) throws(Errno) -> [UInt8]

  /// Takes the next bytes of a state. `EINVAL` unless the state is RESUMING, and for bytes that are no
  /// state of this device.
  func writeMigrationData(_ bytes: Span<UInt8>) throws(Errno)
}

/// `enum vfio_device_mig_state`, without the states for peer-to-peer transfers, which vfio-user doesn't
/// use.
public enum MigrationState: UInt32, Sendable {
  /// Loading a state failed. A reset leads out.
  case error = 0
  /// Neither the device's state nor what is around it changes by its doing.
  case stop = 1
  case running = 2
  /// Stopped, and the rest of its state can be read.
  case stopCopy = 3
  /// Stopped, and a state can be written.
  case resuming = 4
  /// Running, and its state can be read meanwhile.
  case preCopy = 6

  public var isStopped: Bool { self != .running && self != .preCopy }

  /// The first state on the way to `target`: the shortest way, which never goes through a state in
  /// which data is read. Nil when none leads there: not out of ERROR, not into it, and not from
  /// STOP_COPY to PRE_COPY.
  public func next(to target: MigrationState) -> MigrationState? {
    switch (self, target) {
    case (.error, _), (_, .error), (.stopCopy, .preCopy): nil
    case (.running, .preCopy), (.preCopy, .stopCopy), (.stop, .stopCopy), (.stop, .resuming):
      target
    case (.running, .running): .running
    case (.running, _): .stop
    case (.preCopy, .preCopy): .preCopy
    case (.preCopy, _): .running
    case (.stop, .stop): .stop
    case (.stop, _): .running
    case (.stopCopy, .stopCopy): .stopCopy
    case (.resuming, .resuming): .resuming
    case (.stopCopy, _), (.resuming, _): .stop
    }
  }
}
