import SystemPackage

/// `struct vfio_iommu_type1_info` and its capabilities.
public struct IOMMUInfo: Sendable, Equatable {
  /// A bit for each supported page size.
  public var pageSizes: UInt64
  /// The addresses that may be mapped.
  public var iovaRanges: [ClosedRange<UInt64>]
  /// How many more mappings the container may have; nil when it doesn't say.
  public var availableMappings: UInt32?

  init(_ structure: Reply) throws(Errno) {
    // u32 argsz, u32 flags, u64 iova_pgsizes, u32 cap_offset.
    pageSizes = try structure.uint64(at: 8)
    iovaRanges = []
    let hasCapabilities = try structure.uint32(at: 4) & 2 != 0
    let first = hasCapabilities ? try structure.uint32(at: 16) : 0
    for capability in try structure.capabilities(from: first) {
      switch capability.id {
      case 1:  // VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE
        for (start, end) in try structure.pairs(at: capability.data) where start <= end {
          iovaRanges.append(start...end)
        }
      case 3:  // VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL
        availableMappings = try structure.uint32(at: capability.data)
      default: break
      }
    }
  }
}
