import SystemPackage

/// An IOMMU driver: with `IOMMU`, what the kernel's `vfio_iommu_driver_ops` holds. A further driver
/// conforms to both and is registered; nothing in the core changes.
public protocol IOMMUDriver: AnyObject, Sendable {
  /// The driver's name in logs and configuration, such as `type1`.
  var name: String { get }
  /// Whether the driver is for groups without an IOMMU, and for no others. False unless it says so.
  var isForGroupsWithoutIOMMU: Bool { get }
  /// `VFIO_CHECK_EXTENSION` for a container that has no driver yet: positive when `VFIO_SET_IOMMU`
  /// with the same number would be served.
  func checkExtension(_ number: UInt64) -> Int64
  /// `VFIO_SET_IOMMU`: an IOMMU of the type for one container. Its errno is the client's answer.
  func open(_ type: UInt64, _ limits: IOMMULimits) throws(Errno) -> any IOMMU
}

/// What a container's configuration sets for its IOMMU.
public struct IOMMULimits: Sendable, Equatable {
  /// The IOVA that may be mapped, ascending and disjoint.
  public var apertures: [ClosedRange<UInt64>]
  /// How many mappings may be alive at a time.
  public var mappings: Int
  /// How many bytes may be mapped at a time, memory that is mapped twice counting twice: what
  /// RLIMIT_MEMLOCK is to the kernel. Nil: any number.
  public var lockedMemory: UInt64?
  /// Bytes of the largest bitmap that an operation may answer with.
  public var bitmapSize: Int

  public init(
    apertures: [ClosedRange<UInt64>], mappings: Int, lockedMemory: UInt64? = nil,
    bitmapSize: Int = 256 << 20
  ) {
    self.apertures = apertures
    self.mappings = mappings
    self.lockedMemory = lockedMemory
    self.bitmapSize = bitmapSize
  }

  /// As on a PC: 48 bits without the window of the MSI doorbells; 65,535 mappings, the kernel's
  /// `dma_entry_limit`.
  public static let pc = IOMMULimits(
    apertures: [0...0xFEDF_FFFF, 0xFEF0_0000...0xFFFF_FFFF_FFFF], mappings: 65535)
}

/// One container's IOMMU, made by `IOMMUDriver.open`; the kernel's `iommu_data`.
public protocol IOMMU: AnyObject, Sendable {
  /// `VFIO_CHECK_EXTENSION` once the driver is set.
  func checkExtension(_ number: UInt64) -> Int64
  func attach(_ group: IOMMUGroup) throws(Errno)
  func detach(_ group: IOMMUGroup)

  /// A container operation that the core doesn't know: the ioctl's number and structure, untouched.
  /// Throws `ENOTTY` for one that this driver doesn't know either.
  func operation(
    _ command: UInt32, _ argument: Span<UInt8>, _ source: any MemorySource
  ) throws(Errno) -> OperationResult

  /// `read`, `write` and `mmap` of a container's descriptor. `EINVAL` unless the driver has them.
  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno)
  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno)
  func mmap(at offset: UInt64, size: UInt64) throws(Errno) -> any MappableMemory

  /// vfio-user's DMA_MAP and DMA_UNMAP. `ENOTTY` unless the driver has them.
  func map(_ mapping: DMAMapping, from source: any MemorySource) throws(Errno)
  /// Removes a mapping that `owner` made; `ENOENT` unless `iova` and `size` are exactly one. Returns
  /// only when no transfer uses it any more.
  func unmap(iova: UInt64, size: UInt64, owner: DMAOwner) throws(Errno)
  /// Removes all that `owner` mapped, and returns the number of bytes.
  @discardableResult func unmapAll(owner: DMAOwner) -> UInt64

  /// Where a device's access to an address goes; nil where nothing is mapped.
  func translate(_ iova: UInt64) -> Translation?
  /// A device has written these addresses: their pages are dirty.
  func wrote(_ range: ClosedRange<UInt64>)
  /// The devices that keep what `translate` returned. Whatever takes a translation back invalidates it
  /// there before it returns.
  var iotlb: IOTLB { get }

  /// The last group has left: lets go of every mapping. Nothing is called afterwards but
  /// `translate` and `wrote` by a device that hasn't noticed, for whom nothing is mapped.
  func release()
}

/// What an ioctl returns, and the structure that it wrote back, if any.
public struct OperationResult: Sendable, Equatable {
  public var value: Int64
  public var structure: [UInt8]

  public init(value: Int64 = 0, structure: [UInt8] = []) {
    self.value = value
    self.structure = structure
  }
}

/// Who made a mapping: the container's own clients, or one device socket, by its number.
public struct DMAOwner: Hashable, Sendable {
  public let number: UInt64
  public init(number: UInt64) { self.number = number }
  /// Mappings made with `VFIO_IOMMU_MAP_DMA`.
  public static let container = DMAOwner(number: 0)
}

/// A mapping that a device socket asks for.
public struct DMAMapping: Sendable {
  public var iova: UInt64
  public var size: UInt64
  /// The first byte's place in what the source gives.
  public var offset: UInt64
  public var access: DMAAccess
  public var owner: DMAOwner

  public init(
    iova: UInt64, size: UInt64, offset: UInt64, access: DMAAccess, owner: DMAOwner
  ) {
    self.iova = iova
    self.size = size
    self.offset = offset
    self.access = access
    self.owner = owner
  }
}

/// What a device may do with a mapping; the bits of `VFIO_DMA_MAP_FLAG_*` and of vfio-user's DMA_MAP.
public struct DMAAccess: OptionSet, Sendable, Hashable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  public static let read = DMAAccess(rawValue: 1)
  public static let write = DMAAccess(rawValue: 2)
}

/// A run of addresses that leads to one piece of memory.
public struct Translation: Sendable {
  public var range: ClosedRange<UInt64>
  public var memory: any DMAMemory
  /// Where the range's first byte is in `memory`.
  public var offset: UInt64
  public var access: DMAAccess

  public init(
    range: ClosedRange<UInt64>, memory: any DMAMemory, offset: UInt64, access: DMAAccess
  ) {
    self.range = range
    self.memory = memory
    self.offset = offset
    self.access = access
  }
}

extension IOMMUDriver {
  public var isForGroupsWithoutIOMMU: Bool { false }
}

extension IOMMU {
  public func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    throw .invalidArgument
  }
  public func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {
    throw .invalidArgument
  }
  public func mmap(at offset: UInt64, size: UInt64) throws(Errno) -> any MappableMemory {
    throw .invalidArgument
  }
  public func map(_ mapping: DMAMapping, from source: any MemorySource) throws(Errno) {
    throw .inappropriateIOCTLForDevice
  }
  public func unmap(iova: UInt64, size: UInt64, owner: DMAOwner) throws(Errno) {
    throw .inappropriateIOCTLForDevice
  }
  public func unmapAll(owner: DMAOwner) -> UInt64 { 0 }
  public func wrote(_ range: ClosedRange<UInt64>) {}
}
