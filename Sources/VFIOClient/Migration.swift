import SystemPackage
import VFIOWire

/// `enum vfio_device_mig_state`.
public enum MigrationState: UInt32, Sendable {
  /// Loading a state failed; a reset leads out.
  case error = 0
  case stop = 1
  case running = 2
  /// Stopped, and the rest of the state can be read.
  case stopCopy = 3
  /// Stopped, and a state can be written.
  case resuming = 4
  /// Running, and memory can be read meanwhile.
  case preCopy = 6
}

extension Device {
  /// `VFIO_USER_DEVICE_FEATURE`: `flags` are a feature and what to do with it. Returns the reply's data, for
  /// which there is as much room as `data` has, and `room` bytes.
  public func feature(
    _ flags: UInt32, _ data: [UInt8] = [], room: Int = 0
  ) throws(VFIOError) -> [UInt8] {
    let sentence = "use feature \(flags & 0xFFFF) of \(name)"
    return try connection.call(.deviceFeature, sentence) { output in
      output.append(UInt32(8 + data.count + room))
      output.append(flags)
      output.append(data)
    } decode: { reply throws(Errno) in
      try reply.require(8)
      return Array(reply.bytes[8...])
    }
  }

  /// `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`.
  public func migrationState() throws(VFIOError) -> MigrationState {
    let data = try feature(2 | 1 << 16, room: 8)
    return try naming("get the migration state of \(name)") { () throws(Errno) in
      guard data.count >= 8, let state = MigrationState(rawValue: data.span.uint32(at: 0)) else {
        throw .protocolError
      }
      return state
    }
  }

  /// Returns when the device has arrived. `EINVAL` for a state that can't be reached, and, from RESUMING
  /// on, when what was written is no whole state of such a device.
  public func setMigrationState(_ state: MigrationState) throws(VFIOError) {
    _ = try feature(2 | 1 << 17, state.rawValue.messageBytes + UInt32.max.messageBytes)
  }

  /// `VFIO_USER_MIG_DATA_READ`. Fewer bytes than `count` say that there are no more for now, and in STOP_COPY
  /// for ever. `EINVAL` in other states than PRE_COPY and STOP_COPY.
  public func readMigrationData(_ count: Int = 1 << 16) throws(VFIOError) -> [UInt8] {
    try connection.call(.migrationDataRead, "read the state of \(name)") { output in
      output.append(UInt32(8 + count))
      output.append(UInt32(count))
    } decode: { reply throws(Errno) in
      let size = Int(try reply.uint32(at: 4))
      try reply.require(8 + size)
      return Array(reply.bytes[8..<8 + size])
    }
  }

  /// `VFIO_USER_MIG_DATA_WRITE`. `EINVAL` in other states than RESUMING, and for bytes that are no state of
  /// such a device.
  public func writeMigrationData(_ bytes: [UInt8]) throws(VFIOError) {
    try connection.call(.migrationDataWrite, "write the state of \(name)") { output in
      output.append(UInt32(8 + bytes.count))
      output.append(UInt32(bytes.count))
      output.append(bytes)
    }
  }

  /// `VFIO_DEVICE_FEATURE_DMA_LOGGING_START` of what the device writes in these ranges, or anywhere.
  /// Returns the page size that the server has chosen.
  @discardableResult public func startDMALog(
    pageSize: UInt64 = 4096, ranges: [Range<UInt64>] = []
  ) throws(VFIOError) -> UInt64 {
    var data = pageSize.messageBytes + UInt32(ranges.count).messageBytes + UInt32(0).messageBytes
    for range in ranges {
      data += range.lowerBound.messageBytes + (range.upperBound - range.lowerBound).messageBytes
    }
    let reply = try feature(6 | 1 << 17, data)
    return try naming("log the DMA of \(name)") { () throws(Errno) in
      guard reply.count >= 16 else { throw .protocolError }
      return reply.span.uint64(at: 0)
    }
  }

  /// `VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP`.
  public func stopDMALog() throws(VFIOError) { _ = try feature(7 | 1 << 17) }

  /// `VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT`: a bit for each page from the range's first address on, the
  /// lowest of the first byte first: 1 if the device has written to it since the last report. `EINVAL`
  /// when DMA isn't logged.
  public func dmaLog(
    _ range: Range<UInt64>, pageSize: UInt64 = 4096
  ) throws(VFIOError) -> [UInt8] {
    let length = range.upperBound - range.lowerBound
    let request = range.lowerBound.messageBytes + length.messageBytes + pageSize.messageBytes
    let room = Int(clamping: (length / max(pageSize, 1) + 64) / 64 * 8)
    return Array(try feature(8 | 1 << 16, request, room: room).dropFirst(24))
  }
}
