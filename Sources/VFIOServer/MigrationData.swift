import SystemPackage
import VFIOCore
import VFIOStream
import VFIOWire

// A device's state as bytes, on its way to or from another server.
extension DeviceSession {
  /// `VFIO_USER_MIG_DATA_READ`: `u32 argsz, u32 size`. The reply has the same fields, for the bytes that
  /// there were, which follow. Zeros make it as long as was asked for: libvfio-user's clients insist.
  func readMigrationData(
    _ body: Span<UInt8>, _ operations: any DeviceOperations, _ reply: inout Output
  ) throws(Errno) {
    let size = try migrationDataSize(body)
    let data = try migratable(operations).readMigrationData(size)
    reply.append(UInt32(8 + data.count))
    reply.append(UInt32(data.count))
    reply.append(data)
    reply.append([UInt8](repeating: 0, count: size - data.count))
  }

  /// `VFIO_USER_MIG_DATA_WRITE`: `u32 argsz, u32 size`, then the bytes.
  func writeMigrationData(
    _ body: Span<UInt8>, _ operations: any DeviceOperations
  ) throws(Errno) {
    let size = try migrationDataSize(body)
    try body.require(8 + size)
    try migratable(operations).writeMigrationData(body.extracting(8..<8 + size))
  }

  /// `EINVAL` unless argsz includes the bytes and they aren't more than one message may have, by this
  /// server's limit and by the client's.
  private func migrationDataSize(_ body: Span<UInt8>) throws(Errno) -> Int {
    try body.require(8)
    let (argsz, size) = (Int(body.uint32(at: 0)), Int(body.uint32(at: 4)))
    guard size <= service.limits.maxDataTransferSize, size <= version.peer.maxDataTransferSize,
      argsz >= 8 + size
    else {
      throw .invalidArgument
    }
    return size
  }

  private func migratable(
    _ operations: any DeviceOperations
  ) throws(Errno) -> any MigratableDevice {
    guard let device = operations as? any MigratableDevice else { throw .invalidArgument }
    return device
  }
}
