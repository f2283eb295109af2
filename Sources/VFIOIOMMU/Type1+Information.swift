import Locks
import SystemPackage
import VFIOCore

extension Type1 {
  /// `VFIO_IOMMU_GET_INFO`. `struct vfio_iommu_type1_info`: u32 argsz, u32 flags, u64 iova_pgsizes,
  /// u32 cap_offset and 4 bytes of padding; then the capabilities, if argsz has room for all of them.
  /// If not, argsz in the answer says how much they need.
  func getInfo(_ argument: Span<UInt8>) throws(Errno) -> OperationResult {
    let minimumSize = 16
    let argumentSize: UInt32 = try argument.field(at: 0)
    guard argument.count >= minimumSize, argumentSize >= minimumSize else {
      throw .invalidArgument
    }
    let structureSize: UInt32 = 24
    let capabilities = capabilities(startingAt: structureSize)
    let needed = structureSize + UInt32(clamping: capabilities.count)
    let fits = argumentSize >= needed

    var structure: [UInt8] = []
    structure.append(field: fits ? argumentSize : needed)
    structure.append(field: InfoFlag.pageSizes | InfoFlag.capabilities)
    structure.append(field: ~(Self.pageSize - 1))
    structure.append(field: fits ? structureSize : 0)
    structure.append(field: UInt32(0))
    if fits { structure += capabilities }
    return OperationResult(structure: Array(structure.prefix(Int(clamping: argumentSize))))
  }

  /// The chain of capabilities. Each begins with `struct vfio_info_cap_header`, whose `next` counts
  /// from the start of the whole structure, and takes a multiple of 8 bytes.
  private func capabilities(startingAt start: UInt32) -> [UInt8] {
    let mappings = state.withLock { $0.map.count }

    var migration: [UInt8] = []
    migration.append(field: UInt32(0))  // flags
    migration.append(field: UInt32(0))  // padding
    migration.append(field: Self.pageSize)  // pgsize_bitmap
    migration.append(field: DirtyPages.bitmapSize(pages: DirtyPages.maximumPages))

    var available: [UInt8] = []
    available.append(field: UInt32(clamping: limits.mappings - mappings))
    available.append(field: UInt32(0))  // padding

    var ranges: [UInt8] = []
    ranges.append(field: UInt32(clamping: limits.apertures.count))
    ranges.append(field: UInt32(0))  // reserved
    for aperture in limits.apertures {
      ranges.append(field: aperture.lowerBound)
      ranges.append(field: aperture.upperBound)
    }

    // The kernel's order.
    let bodies = [
      (InfoCapability.migration, migration), (InfoCapability.dmaAvailable, available),
      (InfoCapability.iovaRange, ranges),
    ]
    var chain: [UInt8] = []
    for (index, (id, body)) in bodies.enumerated() {
      let headerSize = 8
      let next = start + UInt32(clamping: chain.count + headerSize + body.count)
      chain.append(field: id)
      chain.append(field: UInt16(1))  // version
      chain.append(field: index == bodies.count - 1 ? 0 : next)
      chain += body
    }
    return chain
  }
}
