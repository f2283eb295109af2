import Dispatch
import Glibc
import Locks
import SystemPackage
import VFIOCore
import VFIOIOMMU

import struct Synchronization.Atomic

/// Memory of a test. Accesses beyond its bytes fail with `EFAULT`, as behind the end of a truncated
/// file.
final class TestMemory: DMAMemory {
  private let storage: Mutex<[UInt8]>

  init(size: Int) { storage = Mutex([UInt8](repeating: 0, count: size)) }
  init(_ bytes: [UInt8]) { storage = Mutex(bytes) }

  var bytes: [UInt8] { storage.withLock { $0 } }

  func truncate(to size: Int) { storage.withLock { $0.removeSubrange(size...) } }

  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    try storage.withLock { (storage) throws(Errno) in
      guard let start = Int(exactly: offset), start <= storage.count - bytes.count else {
        throw .badAddress
      }
      for index in 0..<bytes.count { bytes[index] = storage[start + index] }
    }
  }

  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {
    try storage.withLock { (storage) throws(Errno) in
      guard let start = Int(exactly: offset), start <= storage.count - bytes.count else {
        throw .badAddress
      }
      for index in 0..<bytes.count { storage[start + index] = bytes[index] }
    }
  }
}

/// Gives the same memory for every request, or throws.
struct TestSource: MemorySource {
  var memory: any DMAMemory = TestMemory(size: 0)
  var error: Errno?
  var isReadOnly = false

  func memory(at address: UInt64, size: UInt64, writable: Bool) throws(Errno) -> any DMAMemory {
    if let error { throw error }
    guard !(writable && isReadOnly) else { throw .permissionDenied }
    return memory
  }

  func origin() throws(Errno) -> MemoryOrigin? { .object(ObjectIdentifier(memory)) }
}

enum Version: UInt64, CaseIterable, Sendable {
  case v1 = 1
  case v2 = 3

  func open(_ limits: IOMMULimits = .pc) throws -> any IOMMU {
    try Type1Driver().open(rawValue, limits)
  }
}

let page: UInt64 = 4096
/// The first address of the last page.
let lastPage = UInt64.max - page + 1

extension IOMMULimits {
  /// All 64 bits, as device sockets have.
  static let all = IOMMULimits(apertures: [0...UInt64.max], mappings: 65535)
}

enum Field {
  case u32(UInt32)
  case u64(UInt64)
}

func structure(_ fields: Field...) -> [UInt8] {
  fields.flatMap { field in
    switch field {
    case .u32(let value): (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    case .u64(let value): (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }
  }
}

extension Collection<UInt8> {
  /// The little-endian integer at a place.
  func integer(at offset: Int, size: Int) -> UInt64 {
    dropFirst(offset).prefix(size).reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }
}

extension IOMMU {
  func perform(
    _ command: UInt32, _ argument: [UInt8], from source: TestSource = TestSource()
  ) throws(Errno) -> OperationResult {
    try operation(command, argument.span, source)
  }

  /// `VFIO_IOMMU_MAP_DMA`.
  @discardableResult
  func mapDMA(
    _ iova: UInt64, size: UInt64, at address: UInt64 = 0, flags: UInt32 = 3, argsz: UInt32 = 32,
    from source: TestSource = TestSource()
  ) throws(Errno) -> OperationResult {
    try perform(
      0x3B71,
      structure(.u32(argsz), .u32(flags), .u64(address), .u64(iova), .u64(size)), from: source)
  }

  /// `VFIO_IOMMU_UNMAP_DMA`; returns the size that it wrote back.
  @discardableResult
  func unmapDMA(
    _ iova: UInt64, size: UInt64, flags: UInt32 = 0, argsz: UInt32 = 24
  ) throws(Errno) -> UInt64 {
    try perform(0x3B72, structure(.u32(argsz), .u32(flags), .u64(iova), .u64(size)))
      .structure.integer(at: 16, size: 8)
  }

  /// `VFIO_IOMMU_UNMAP_DMA` with `VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP`.
  func unmapWithBitmap(
    _ iova: UInt64, size: UInt64, pageSize: UInt64 = page, bitmapSize: UInt64 = 8,
    flags: UInt32 = 1, argsz: UInt32 = 48
  ) throws(Errno) -> OperationResult {
    try perform(
      0x3B72,
      structure(
        .u32(argsz), .u32(flags), .u64(iova), .u64(size), .u64(pageSize), .u64(bitmapSize),
        .u64(0)))
  }

  /// `VFIO_IOMMU_DIRTY_PAGES` with a flag that takes no more.
  @discardableResult
  func dirtyPages(flags: UInt32, argsz: UInt32 = 8) throws(Errno) -> OperationResult {
    try perform(0x3B75, structure(.u32(argsz), .u32(flags)))
  }

  /// `VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP`; returns the bitmap.
  func dirtyBitmap(
    _ iova: UInt64, size: UInt64, pageSize: UInt64 = page, bitmapSize: UInt64? = nil,
    argsz: UInt32 = 48
  ) throws(Errno) -> [UInt8] {
    let needed = (size / page + 63) / 64 * 8
    let result = try perform(
      0x3B75,
      structure(
        .u32(argsz), .u32(4), .u64(iova), .u64(size), .u64(pageSize), .u64(bitmapSize ?? needed),
        .u64(0)))
    return Array(result.structure.dropFirst(48))
  }

  /// `DMA_AVAIL`.
  var availableMappings: UInt64 {
    get throws {
      let info = try perform(0x3B70, structure(.u32(256), .u32(0), .u64(0), .u32(0), .u32(0)))
      return info.structure.integer(at: 24 + 32 + 8, size: 4)
    }
  }

  /// A device behind the IOMMU.
  var device: DMA { DMA(iommu: self, group: IOMMUGroup(id: 1)) }

  func dmaRead(_ iova: UInt64, count: Int) throws(DMAFault) -> [UInt8] {
    try device.read(iova, count)
  }

  func dmaWrite(_ bytes: [UInt8], to iova: UInt64) throws(DMAFault) {
    try device.write(bytes.span, to: iova)
  }
}

extension DMA {
  func read(_ iova: UInt64, _ count: Int) throws(DMAFault) -> [UInt8] {
    var bytes = [UInt8](repeating: 0xEE, count: count)
    var span = bytes.mutableSpan
    try read(iova, into: &span)
    return bytes
  }
}

/// Memory whose read lasts until it is unmapped, or long enough to be sure that it stays.
final class SlowMemory: DMAMemory {
  let isBeingRead = DispatchSemaphore(value: 0)
  let isUnmapped = Atomic(false)
  let wasUnmappedWhileRead = Atomic(false)

  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    isBeingRead.signal()
    for _ in 0..<50_000 {
      if isUnmapped.load(ordering: .sequentiallyConsistent) {
        wasUnmappedWhileRead.store(true, ordering: .relaxed)
        return
      }
      sched_yield()
    }
  }

  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {}
}

/// SplitMix64: the same numbers for the same seed.
struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var value = state
    value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
    value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
    return value ^ (value >> 31)
  }
}

/// Transfers of the tests that compare with a model: what was transferred, and where it faulted.
extension DMA {
  func reads(_ iova: UInt64, count: Int) -> ([UInt8], fault: UInt64?) {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    do throws(DMAFault) {
      try read(iova, into: &span)
      return (bytes, nil)
    } catch {
      return (Array(bytes.prefix(error.completed)), error.iova)
    }
  }

  func writes(_ bytes: [UInt8], to iova: UInt64) -> ([UInt8], fault: UInt64?) {
    do throws(DMAFault) {
      try write(bytes.span, to: iova)
      return (bytes, nil)
    } catch {
      return (Array(bytes.prefix(error.completed)), error.iova)
    }
  }
}
