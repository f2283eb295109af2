import Dispatch
import Glibc
import Locks
import SystemPackage
import VFIOCore
import VFIOPCI

/// Counts its signals.
final class Trigger: InterruptTrigger {
  private let signals = Mutex(0)
  var count: Int { signals.withLock { $0 } }
  func signal() { signals.withLock { $0 += 1 } }
  func listen(_ action: @escaping @Sendable () -> Void) throws(Errno) {}
}

/// Memory of a process: bytes that nobody maps.
final class Memory: MappableMemory {
  private let bytes: Mutex<[UInt8]>
  let size: UInt64
  var descriptor: FileDescriptor { FileDescriptor(rawValue: -1) }

  init(_ bytes: [UInt8]) {
    size = UInt64(bytes.count)
    self.bytes = Mutex(bytes)
  }

  func read(at offset: UInt64, into span: inout MutableSpan<UInt8>) throws(Errno) {
    bytes.withLock { bytes in
      for index in span.indices { span[index] = bytes[Int(offset) + index] }
    }
  }

  func write(_ span: Span<UInt8>, at offset: UInt64) throws(Errno) {
    bytes.withLock { bytes in
      for index in span.indices { bytes[Int(offset) + index] = span[index] }
    }
  }

  func copy() throws(Errno) -> any MappableMemory { Memory(bytes.withLock { $0 }) }

  static let make: MemoryFactory = { size throws(Errno) in
    Memory([UInt8](repeating: 0, count: Int(size)))
  }
}

/// Client memory from IOVA 0 on, whose transfers a test can hold up.
final class ClientMemory: IOMMU, DMAMemory {
  let iotlb = IOTLB()
  let faults = DMAFaults()
  private let memory: Memory
  private let turnstile = Mutex(Turnstile())
  private struct Turnstile {
    var isClosed = false
    var arrived = 0
  }

  init(_ bytes: [UInt8]) { memory = Memory(bytes) }

  var dma: DMA { DMA(iommu: self, group: IOMMUGroup(id: 26), faults: faults) }

  /// Makes transfers wait in the middle of the way, as one by message does, until it is opened.
  func setClosed(_ isClosed: Bool) { turnstile.withLock { $0.isClosed = isClosed } }
  /// Transfers that have come this far.
  var arrived: Int { turnstile.withLock { $0.arrived } }

  func bytes(_ address: UInt64, _ count: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    try memory.read(at: address, into: &span)
    return bytes
  }

  private func pass() {
    turnstile.withLock { $0.arrived += 1 }
    while turnstile.withLock({ $0.isClosed }) { sched_yield() }
  }

  func translate(_ iova: UInt64) -> Translation? {
    guard iova < memory.size else { return nil }
    return Translation(
      range: 0...memory.size - 1, memory: self, offset: 0, access: [.read, .write])
  }

  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    pass()
    try memory.read(at: offset, into: &bytes)
  }

  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {
    pass()
    try memory.write(bytes, at: offset)
  }

  func checkExtension(_ number: UInt64) -> Int64 { 0 }
  func attach(_ group: IOMMUGroup) throws(Errno) {}
  func detach(_ group: IOMMUGroup) {}
  func operation(
    _ command: UInt32, _ argument: Span<UInt8>, _ source: any MemorySource
  ) throws(Errno) -> OperationResult { throw .inappropriateIOCTLForDevice }
  func release() {}
}

extension DeviceOperations {
  func bytes(_ region: UInt32, _ offset: UInt64, _ count: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0x55, count: count)
    var span = bytes.mutableSpan
    try read(region, at: offset, into: &span)
    return bytes
  }

  func get<Value: FixedWidthInteger>(
    _ region: UInt32, _ offset: UInt64, as _: Value.Type = Value.self
  ) throws -> Value {
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

  func trigger(
    _ index: UInt32, _ data: InterruptRequest.Data, action: InterruptRequest.Action = .trigger,
    start: UInt32 = 0, count: UInt32 = 1
  ) throws {
    try setInterrupts(
      InterruptRequest(index: index, start: start, count: count, action: action, data: data))
  }
}

/// Waits for a device's queue; false after a bound that only a hang reaches.
func eventually(_ condition: () throws -> Bool) rethrows -> Bool {
  for _ in 0..<5_000_000 {
    if try condition() { return true }
    sched_yield()
  }
  return false
}

/// A thread that is started and ends by itself.
final class Thread: Sendable {
  private let body: @Sendable () -> Void
  init(_ body: @escaping @Sendable () -> Void) { self.body = body }
  func start() { DispatchQueue(label: "test").async(execute: body) }
}
