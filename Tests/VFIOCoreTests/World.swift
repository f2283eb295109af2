import Locks
import SystemPackage
import VFIOCore

/// What was called, in order.
final class Log: Sendable {
  private let entries = Mutex<[String]>([])
  var lines: [String] { entries.withLock { $0 } }
  func add(_ line: String) { entries.withLock { $0.append(line) } }
  func clear() { entries.withLock { $0.removeAll() } }
}

/// A registry with one IOMMU driver, `type1`, for extension 1, and what its tests need.
final class World: Sendable {
  /// Calls of IOMMUs and devices.
  let log = Log()
  /// The sentences of the registry's reports, warnings with a mark.
  let reports: Log
  let registry: Registry
  let group = IOMMUGroup(id: 26)

  init(_ driver: TestDriver? = nil) throws {
    let reports = Log()
    self.reports = reports
    registry = Registry { report in
      reports.add((report.level == .warning ? "warning: " : "") + report.sentence)
    }
    try registry.register(driver ?? TestDriver("type1", [1: 1], log: log))
  }

  /// A device on the bus, with a VFIO driver that gave it away.
  @discardableResult
  func addDevice(
    _ name: String, in group: IOMMUGroup? = nil, openError: Errno? = nil,
    onOpen: @escaping @Sendable () -> Void = {}
  ) throws -> BusDevice {
    let device = BusDevice(name: name, iommuGroup: group ?? self.group, driver: "vfio-pci")
    try registry.plug(device)
    try registry.addDevice(
      device, operations: TestDevice(name, log: log, openError: openError, onOpen: onOpen))
    return device
  }

  /// A device on the bus that VFIO doesn't drive.
  @discardableResult
  func plug(_ name: String, driver: String?) throws -> BusDevice {
    let device = BusDevice(name: name, iommuGroup: group, driver: driver)
    try registry.plug(device)
    return device
  }

  /// Group 26, opened, in a container of its own that uses `type1`.
  func openLiveGroup() throws -> (OpenGroup, Container) {
    let group = try registry.openGroup(26)
    let container = Container(registry: registry)
    try group.setContainer(container)
    try container.setIOMMU(1)
    return (group, container)
  }
}

final class TestDriver: IOMMUDriver {
  let name: String
  private let extensions: [UInt64: Int64]
  private let openError: Errno?
  private let refusedGroup: UInt32?
  private let onCheck: @Sendable () -> Void
  private let onOperation: @Sendable () -> Void
  private let log: Log

  /// `extensions` holds the answers other than 0; an attach of `refusedGroup` fails with EPERM.
  init(
    _ name: String, _ extensions: [UInt64: Int64], openError: Errno? = nil,
    refusedGroup: UInt32? = nil, onCheck: @escaping @Sendable () -> Void = {},
    onOperation: @escaping @Sendable () -> Void = {}, log: Log
  ) {
    self.name = name
    self.extensions = extensions
    self.openError = openError
    self.refusedGroup = refusedGroup
    self.onCheck = onCheck
    self.onOperation = onOperation
    self.log = log
  }

  func checkExtension(_ number: UInt64) -> Int64 {
    onCheck()
    log.add("\(name) check \(number)")
    return extensions[number] ?? 0
  }

  func open(_ type: UInt64, _ limits: IOMMULimits) throws(Errno) -> any IOMMU {
    log.add("\(name) open \(type)")
    if let openError { throw openError }
    return TestIOMMU(
      name, limits, refusedGroup: refusedGroup, onOperation: onOperation, log: log)
  }
}

final class TestIOMMU: IOMMU {
  let limits: IOMMULimits
  private let name: String
  private let refusedGroup: UInt32?
  private let onOperation: @Sendable () -> Void
  private let log: Log

  init(
    _ name: String, _ limits: IOMMULimits, refusedGroup: UInt32?,
    onOperation: @escaping @Sendable () -> Void, log: Log
  ) {
    self.name = name
    self.limits = limits
    self.refusedGroup = refusedGroup
    self.onOperation = onOperation
    self.log = log
  }

  /// An answer that no driver gives.
  func checkExtension(_ number: UInt64) -> Int64 { 100 }

  func attach(_ group: IOMMUGroup) throws(Errno) {
    if group.id == refusedGroup { throw .notPermitted }
    log.add("\(name) attach \(group.id)")
  }
  func detach(_ group: IOMMUGroup) { log.add("\(name) detach \(group.id)") }
  func release() { log.add("\(name) release") }

  /// Knows one operation, which returns 7 and its own argument.
  func operation(
    _ command: UInt32, _ argument: Span<UInt8>, _ source: any MemorySource
  ) throws(Errno) -> OperationResult {
    guard command == 0x3B70 else { throw .inappropriateIOCTLForDevice }
    onOperation()
    log.add("\(name) operation")
    return OperationResult(value: 7, structure: argument.indices.map { argument[$0] })
  }

  let iotlb = IOTLB()
  func translate(_ iova: UInt64) -> Translation? { nil }
}

/// A driver whose containers can be read, written and mapped.
final class TestFileDriver: IOMMUDriver {
  let name = "file"
  let log: Log

  init(log: Log) { self.log = log }

  func checkExtension(_ number: UInt64) -> Int64 { 1 }
  func open(_ type: UInt64, _ limits: IOMMULimits) throws(Errno) -> any IOMMU {
    TestFileIOMMU(log: log)
  }
}

final class TestFileIOMMU: IOMMU {
  let log: Log
  init(log: Log) { self.log = log }

  func checkExtension(_ number: UInt64) -> Int64 { 1 }
  func attach(_ group: IOMMUGroup) throws(Errno) {}
  func detach(_ group: IOMMUGroup) {}
  func release() {}
  func operation(
    _ command: UInt32, _ argument: Span<UInt8>, _ source: any MemorySource
  ) throws(Errno) -> OperationResult { OperationResult() }
  let iotlb = IOTLB()
  func translate(_ iova: UInt64) -> Translation? { nil }

  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    for index in bytes.indices { bytes[index] = UInt8(truncatingIfNeeded: offset) }
  }
  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {
    log.add("write \(bytes.indices.map { bytes[$0] }) at \(offset)")
  }
  func mmap(at offset: UInt64, size: UInt64) throws(Errno) -> any MappableMemory {
    log.add("mmap \(size) at \(offset)")
    return TestMemory(size: size)
  }
}

final class TestMemory: MappableMemory {
  let size: UInt64
  let descriptor = FileDescriptor(rawValue: -1)
  init(size: UInt64) { self.size = size }
  func copy() throws(Errno) -> any MappableMemory { self }
  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {}
  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {}
}

/// A map request without anything to map.
struct NoMemory: MemorySource {
  func memory(at address: UInt64, size: UInt64, writable: Bool) throws(Errno) -> any DMAMemory {
    throw .badAddress
  }
  func origin() throws(Errno) -> MemoryOrigin? { nil }
}

final class TestDevice: DeviceOperations {
  let name: String
  private let log: Log
  private let openError: Errno?
  private let onOpen: @Sendable () -> Void
  private let state = Mutex<DMA?>(nil)

  init(
    _ name: String, log: Log, openError: Errno? = nil, onOpen: @escaping @Sendable () -> Void = {}
  ) {
    self.name = name
    self.log = log
    self.openError = openError
    self.onOpen = onOpen
  }

  /// What the device was opened with.
  var dma: DMA? { state.withLock { $0 } }

  func open(_ dma: DMA, keepingState: Bool) throws(Errno) {
    onOpen()
    log.add(keepingState ? "\(name) open keeping state" : "\(name) open")
    if let openError { throw openError }
    state.withLock { $0 = dma }
  }
  func release() { log.add("\(name) release") }
  func request() { log.add("\(name) request") }

  var information: DeviceInformation { DeviceInformation(flags: 0, regions: 0, interrupts: 0) }
  func region(_ index: UInt32) throws(Errno) -> RegionInformation { throw .invalidArgument }
  func interrupt(_ index: UInt32) throws(Errno) -> InterruptInformation { throw .invalidArgument }
  func ioEvents(_ region: UInt32) throws(Errno) -> [IOEvent] { throw .invalidArgument }
  func read(
    _ region: UInt32, at offset: UInt64, into bytes: inout MutableSpan<UInt8>
  ) throws(Errno) { throw .invalidArgument }
  func write(_ bytes: Span<UInt8>, to region: UInt32, at offset: UInt64) throws(Errno) {
    throw .invalidArgument
  }
  func setInterrupts(_ request: InterruptRequest) throws(Errno) { throw .invalidArgument }
  func reset() throws(Errno) { throw .inappropriateIOCTLForDevice }
}
