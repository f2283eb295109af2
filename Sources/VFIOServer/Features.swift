import SystemPackage
import VFIOCore
import VFIOStream
import VFIOWire

/// `VFIO_DEVICE_FEATURE_*`: what a client may get, set or probe.
private enum DeviceFeature: UInt16 {
  case migration = 1
  case migrationState = 2
  case loggingStart = 6
  case loggingStop = 7
  case loggingReport = 8

  var methods: FeatureMethods {
    switch self {
    case .migration, .loggingReport: .get
    case .migrationState: [.get, .set]
    case .loggingStart, .loggingStop: .set
    }
  }
}

/// Bits 16–18 of the flags of `VFIO_USER_DEVICE_FEATURE`.
private struct FeatureMethods: OptionSet {
  let rawValue: UInt32
  static let get = FeatureMethods(rawValue: 1 << 16)
  static let set = FeatureMethods(rawValue: 1 << 17)
  static let probe = FeatureMethods(rawValue: 1 << 18)
}

extension DeviceSession {
  /// `VFIO_USER_DEVICE_FEATURE`: `u32 argsz, u32 flags`, then the feature's data. Set and probed features
  /// are answered with the request; what is got comes behind argsz and flags. Returns the reply if it will
  /// only come later.
  ///
  /// `EINVAL` for a feature that the device hasn't got, a method that the feature hasn't got, and unless
  /// argsz has room for the reply.
  func feature(
    _ body: Span<UInt8>, _ device: OpenDevice, _ reply: inout Output
  ) throws(Errno) -> Later? {
    try body.require(8)
    let (argsz, flags) = (Int(body.uint32(at: 0)), body.uint32(at: 4))
    let methods = FeatureMethods(rawValue: flags & ~0xFFFF)
    let migratable = device.operations as? any MigratableDevice
    guard let migratable, let feature = DeviceFeature(rawValue: UInt16(truncatingIfNeeded: flags)),
      methods.subtracting(.probe).isSubset(of: feature.methods)
    else { throw .invalidArgument }
    let data = body.extracting(8..<body.count)

    if methods == .get {
      let value = try get(feature, migratable, device, data, room: argsz - 8)
      reply.append(UInt32(8 + value.count))
      reply.append(flags)
      reply.append(value)
      return nil
    }
    guard argsz >= body.count, methods.contains(.probe) || methods == .set else {
      throw .invalidArgument
    }
    if methods == .set {
      switch feature {
      case .migrationState: return try setState(migratable, body, &reply)
      case .loggingStart: return try startLogging(device, body, &reply)
      default: device.log.stop()
      }
    }
    reply.append(body)
    return nil
  }

  /// A feature's data, for which there must be `room`.
  private func get(
    _ feature: DeviceFeature, _ migratable: any MigratableDevice, _ device: OpenDevice,
    _ data: Span<UInt8>, room: Int
  ) throws(Errno) -> [UInt8] {
    switch feature {
    case .migration:
      guard room >= 8 else { throw .invalidArgument }
      // VFIO_MIGRATION_STOP_COPY and VFIO_MIGRATION_PRE_COPY.
      return UInt64(1 | 4).messageBytes
    case .migrationState:
      guard room >= 8 else { throw .invalidArgument }
      return (UInt64(migratable.migrationState.rawValue) | 0xFFFF_FFFF << 32).messageBytes
    default:
      // struct vfio_user_device_feature_dma_logging_report: u64 iova, u64 length, u64 page_size.
      try data.require(24)
      let (length, pageSize) = (data.uint64(at: 8), data.uint64(at: 16))
      let size = try DirtyLog.bitmapSize(length: length, pageSize: pageSize)
      guard size <= UInt64(service.limits.maxDataTransferSize), room >= 24 + Int(size) else {
        throw .invalidArgument
      }
      return try data.uint64(at: 0).messageBytes + length.messageBytes + pageSize.messageBytes
        + device.log.report(iova: data.uint64(at: 0), length: length, pageSize: pageSize)
    }
  }

  /// `struct vfio_user_device_feature_mig_state`: `u32 device_state, u32 data_fd`, which is unused.
  private func setState(
    _ device: any MigratableDevice, _ body: Span<UInt8>, _ reply: inout Output
  ) throws(Errno) -> Later? {
    try body.require(16)
    guard let state = MigrationState(rawValue: body.uint32(at: 8)) else { throw .invalidArgument }
    let echo = body.array
    // A stopped device takes no write any more, and these were made before.
    if state.isStopped { doorbells.settle() }
    let later = Later(body: echo)
    device.setMigrationState(state) { later.complete($0) }
    guard let outcome = later.outcome else { return later }
    try outcome.get()
    reply.append(echo)
    return nil
  }

  /// `struct vfio_user_device_feature_dma_logging_control`: `u64 page_size, u32 num_ranges, u32 reserved`,
  /// and `u64 iova, u64 length` for each range. The reply tells the page size that was chosen.
  private func startLogging(
    _ device: OpenDevice, _ body: Span<UInt8>, _ reply: inout Output
  ) throws(Errno) -> Later? {
    try body.require(24)
    let count = Int(body.uint32(at: 16))
    guard count <= DirtyLog.mostRanges else { throw .argListTooLong }
    try body.require(24 + 16 * count)
    let ranges = (0..<count).map { index in
      (iova: body.uint64(at: 24 + 16 * index), length: body.uint64(at: 32 + 16 * index))
    }
    let pageSize = try device.log.start(pageSize: body.uint64(at: 8), ranges: ranges)
    reply.append(body.extracting(0..<8))
    reply.append(pageSize)
    reply.append(body.extracting(16..<body.count))
    return nil
  }
}
