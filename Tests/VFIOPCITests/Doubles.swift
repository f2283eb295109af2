import Locks
import SystemPackage
import VFIOCore

@testable import VFIOPCI

/// Counts its signals, and is signalled by the test.
final class Trigger: InterruptTrigger {
  private let signals = Mutex(0)
  private let action = Mutex<(@Sendable () -> Void)?>(nil)
  var count: Int { signals.withLock { $0 } }
  func signal() { signals.withLock { $0 += 1 } }
  func listen(_ action: @escaping @Sendable () -> Void) throws(Errno) {
    self.action.withLock { $0 = action }
  }
  /// What a client does with its eventfd.
  func ring() { action.withLock { $0 }?() }
}

/// For functions without memory.
let noMemory: MemoryFactory = { _ throws(Errno) in throw .noMemory }

extension DeviceOperations {
  func bytes(_ region: UInt32, _ offset: UInt64, _ count: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0x55, count: count)
    var span = bytes.mutableSpan
    try read(region, at: offset, into: &span)
    return bytes
  }

  func get<Value: FixedWidthInteger>(_ region: UInt32, _ offset: UInt64) throws -> Value {
    try bytes(region, offset, Value.bitWidth / 8).reversed().reduce(0) { $0 << 8 | Value($1) }
  }

  func set(_ region: UInt32, _ offset: UInt64, _ bytes: [UInt8]) throws {
    try write(bytes.span, to: region, at: offset)
  }

  func set<Value: FixedWidthInteger>(_ region: UInt32, _ offset: UInt64, _ value: Value) throws {
    try set(
      region, offset,
      (0..<Value.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) })
  }
}

extension InterruptLines {
  mutating func set(
    _ index: UInt32, _ action: InterruptRequest.Action, _ data: InterruptRequest.Data,
    start: UInt32 = 0, count: UInt32 = 1
  ) throws(Errno) {
    try set(
      InterruptRequest(index: index, start: start, count: count, action: action, data: data))
  }
}
