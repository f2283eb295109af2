import LinuxIO
import Locks
import SystemPackage
import VFIOStream
import VFIOWire

/// What a device may do with a mapping, `VFIO_DMA_MAP_FLAG_*`.
public struct DMAAccess: OptionSet, Sendable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// The device may read.
  public static let read = DMAAccess(rawValue: 1)
  /// The device may write.
  public static let write = DMAAccess(rawValue: 2)
}

/// Zero bytes that this process can share with devices: a memfd, mapped here.
public final class Memory: Sendable {
  /// Bytes, a multiple of the page size where they are to be mapped for DMA.
  public let size: UInt64
  let file: Descriptor
  let mapping: SharedMapping

  public init(size: UInt64) throws(VFIOError) {
    self.size = size
    (file, mapping) = try naming("make \(hex(size)) bytes of memory") { () throws(Errno) in
      let file = try makeMemoryFile("vfio-client", size: size)
      return (file, try SharedMapping(file, size: size, writable: true))
    }
  }

  /// All of it.
  private var area: MappedArea {
    MappedArea("memory", mapping, offset: 0, size: size, at: 0, isWritable: true)
  }

  /// The integer at `offset`. `EINVAL` outside the memory.
  public func load<Value: FixedWidthInteger>(
    _ type: Value.Type = Value.self, at offset: UInt64
  ) throws(VFIOError) -> Value {
    try area.load(at: offset)
  }

  /// Stores an integer at `offset`. `EINVAL` outside the memory.
  public func store(_ value: some FixedWidthInteger, at offset: UInt64) throws(VFIOError) {
    try area.store(value, at: offset)
  }

  /// Copies `count` bytes from `offset`. `EINVAL` outside the memory.
  public func read(at offset: UInt64, count: Int) throws(VFIOError) -> [UInt8] {
    try area.read(at: offset, count: count)
  }

  /// Copies bytes to `offset`. `EINVAL` outside the memory.
  public func write(_ bytes: [UInt8], at offset: UInt64) throws(VFIOError) {
    try area.write(bytes, at: offset)
  }
}

/// Memory that is mapped for DMA. It keeps what it is mapped in open, and is unmapped when it goes.
public final class DMAMemory: Sendable {
  public let memory: Memory
  /// Where in `memory` the mapping begins.
  public let offset: UInt64
  /// Where devices find it.
  public let iova: UInt64
  public let size: UInt64
  let connection: Connection
  private let unmapCommand: Command
  private let isMapped: Mutex<Bool>

  /// `struct vfio_iommu_type1_dma_map`, or vfio-user's DMA_MAP, which has the same fields.
  init(
    _ memory: Memory, _ offset: UInt64, _ size: UInt64?, at iova: UInt64, _ access: DMAAccess,
    _ connection: Connection, map: Command, unmap: Command, byMessage: Bool = false
  ) throws(VFIOError) {
    let rest = memory.size.subtractingReportingOverflow(offset)
    self.memory = memory
    self.offset = offset
    self.iova = iova
    self.size = size ?? (rest.overflow ? 0 : rest.partialValue)
    self.connection = connection
    unmapCommand = unmap
    isMapped = Mutex(false)
    let range = DMARange(
      flags: access.rawValue, offset: byMessage ? 0 : offset, iova: iova, size: self.size)
    try connection.call(
      map, "map \(hex(range.size)) bytes at \(hex(iova))", with: byMessage ? [] : [memory.file]
    ) { $0.append(range) }
    isMapped.withLock { $0 = true }
  }

  deinit {
    guard isMapped.withLock({ $0 }) else { return }
    try? connection.post(unmapCommand) { $0.append(DMARange(flags: 0, iova: iova, size: size)) }
    forget()
  }

  /// `VFIO_IOMMU_UNMAP_DMA`: when it returns, devices reach the memory no more. The memory itself stays.
  ///
  /// A second time does nothing.
  public func unmap() throws(VFIOError) {
    let wasMapped = isMapped.withLock { isMapped in
      defer { isMapped = false }
      return isMapped
    }
    guard wasMapped else { return }
    try connection.call(unmapCommand, "unmap \(hex(size)) bytes at \(hex(iova))") { output in
      output.append(DMARange(flags: 0, iova: iova, size: size))
    }
    forget()
  }

  private func forget() {
    connection.messageMemory.withLock { [iova] memories in memories.removeAll { $0.iova == iova } }
  }
}

/// The fields of a map or an unmap, which are the same for containers and for vfio-user:
/// `u32 argsz, u32 flags`, for a map `u64 offset`, then `u64 iova, u64 size`.
struct DMARange {
  var flags: UInt32
  /// Only in a map.
  var offset: UInt64?
  var iova: UInt64
  var size: UInt64
}

extension Output {
  mutating func append(_ range: DMARange) {
    append(UInt32(range.offset == nil ? 24 : 32))
    append(range.flags)
    if let offset = range.offset { append(offset) }
    append(range.iova)
    append(range.size)
  }
}
