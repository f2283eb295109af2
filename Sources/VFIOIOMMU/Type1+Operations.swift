import Locks
import SystemPackage
import VFIOCore

extension Type1 {
  func operation(
    _ command: UInt32, _ argument: Span<UInt8>, _ source: any MemorySource
  ) throws(Errno) -> OperationResult {
    switch command {
    case VFIOIoctl.iommuGetInfo: return try getInfo(argument)
    case VFIOIoctl.iommuMapDMA: return try mapDMA(argument, source)
    case VFIOIoctl.iommuUnmapDMA: return try unmapDMA(argument)
    case VFIOIoctl.iommuDirtyPages: return try dirtyPages(argument)
    default: throw .inappropriateIOCTLForDevice
    }
  }

  /// `struct vfio_iommu_type1_dma_map`: u32 argsz, u32 flags, u64 vaddr, u64 iova, u64 size.
  private func mapDMA(
    _ argument: Span<UInt8>, _ source: any MemorySource
  ) throws(Errno) -> OperationResult {
    let minimumSize: UInt32 = 32
    let argumentSize: UInt32 = try argument.field(at: 0)
    let flags: UInt32 = try argument.field(at: 4)
    let mapping = DMAMapping(
      iova: try argument.field(at: 16), size: try argument.field(at: 24),
      offset: try argument.field(at: 8), access: DMAAccess(rawValue: flags), owner: .container)
    guard argumentSize >= minimumSize, flags & ~MapFlag.all == 0 else { throw .invalidArgument }
    if flags & MapFlag.virtualAddress != 0 { throw updateAddressError(mapping) }
    try map(mapping, from: source)
    return OperationResult()
  }

  /// What `VFIO_DMA_MAP_FLAG_VADDR` gets. It gives a mapping an address anew whose old one was
  /// declared invalid, and no mapping ever is one of those.
  private func updateAddressError(_ mapping: DMAMapping) -> Errno {
    guard mapping.size > 0 else { return .invalidArgument }
    let (last, wraps) = mapping.iova.addingReportingOverflow(mapping.size - 1)
    guard !wraps, !mapping.offset.addingReportingOverflow(mapping.size - 1).overflow else {
      return .overflow
    }
    guard mapping.access.isDisjoint(with: [.read, .write]),
      (mapping.iova | mapping.offset | mapping.size).isMultiple(of: Self.pageSize)
    else { return .invalidArgument }
    let isMapped = state.withLock { state in
      state.map.first(from: mapping.iova).map { $0.iova <= last } ?? false
    }
    return isMapped ? .invalidArgument : .noSuchFileOrDirectory
  }

  /// `struct vfio_iommu_type1_dma_unmap`: u32 argsz, u32 flags, u64 iova, u64 size, and with
  /// `VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP` a `struct vfio_bitmap`. The answer is the structure with
  /// the bytes that were unmapped as its size, and then the bitmap.
  private func unmapDMA(_ argument: Span<UInt8>) throws(Errno) -> OperationResult {
    let minimumSize = 24
    let argumentSize: UInt32 = try argument.field(at: 0)
    let flags: UInt32 = try argument.field(at: 4)
    let iova: UInt64 = try argument.field(at: 8)
    let size: UInt64 = try argument.field(at: 16)
    guard argumentSize >= minimumSize,
      flags == UnmapFlag.getDirtyBitmap
        || flags & ~(UnmapFlag.all | UnmapFlag.virtualAddress) == 0
    else { throw .invalidArgument }
    var structureSize = minimumSize
    var reportPageSize: UInt64?
    if flags == UnmapFlag.getDirtyBitmap {
      structureSize += Self.bitmapStructureSize
      guard argumentSize >= structureSize else { throw .invalidArgument }
      reportPageSize = try checkBitmap(argument, at: minimumSize, range: size)
    }

    // As the kernel, where devices are emulated: they hold on to the addresses.
    guard flags & UnmapFlag.virtualAddress == 0 else { throw .resourceBusy }
    guard iova.isMultiple(of: Self.pageSize) else { throw .invalidArgument }
    var last = UInt64.max
    if flags == UnmapFlag.all {
      guard iova == 0, size == 0 else { throw .invalidArgument }
    } else {
      guard size > 0, size.isMultiple(of: Self.pageSize) else { throw .invalidArgument }
      let (end, wraps) = iova.addingReportingOverflow(size - 1)
      guard !wraps else { throw .overflow }
      last = end
    }
    let (removed, bitmap) = try unmap(
      iova...last, splittingIsError: version == .v2 && flags != UnmapFlag.all, reportPageSize)

    var structure = try argument.bytes(0..<16)
    structure.append(field: removed.totalSize)
    structure += try argument.bytes(minimumSize..<structureSize)
    return OperationResult(structure: structure + bitmap)
  }

  /// Removes the mappings that start in a range, and returns them and, given a page size, their dirty
  /// pages. Version 1 keeps its users' terms: a range that begins inside a mapping unmaps nothing,
  /// and one that ends inside a mapping unmaps all of it.
  private func unmap(
    _ range: ClosedRange<UInt64>, splittingIsError: Bool, _ reportPageSize: UInt64?
  ) throws(Errno) -> ([Mapping], bitmap: [UInt8]) {
    try changes.withLock { _ throws(Errno) in
      let removed = try state.withLock { (state) throws(Errno) in
        if let reportPageSize {
          guard state.dirtyPages != nil, reportPageSize == Self.pageSize else {
            throw .invalidArgument
          }
          try checkRoom(forBitmapOf: range)
        }
        if splittingIsError { try state.map.checkNotSplit(by: range) }
        var removed: [Mapping] = []
        while let mapping = state.map.first(from: range.lowerBound), range.contains(mapping.iova) {
          state.remove(mapping)
          removed.append(mapping)
        }
        return removed
      }
      if let first = removed.first, let last = removed.last {
        iotlb.invalidate(first.iova...last.last)
      }
      // Transfers may have marked pages until now.
      var bitmap: [UInt8]?
      if reportPageSize != nil {
        bitmap = state.withLock { $0.dirtyPages?.takeBitmap(Self.pages(range)) }
      }
      forgetDirtyPages(removed)
      return (removed, bitmap ?? [])
    }
  }

  /// `struct vfio_iommu_type1_dirty_bitmap`: u32 argsz, u32 flags, and with
  /// `VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP` a `struct vfio_iommu_type1_dirty_bitmap_get`: u64 iova,
  /// u64 size, `struct vfio_bitmap`. Reporting pages makes them clean. `EACCES` in version 1.
  private func dirtyPages(_ argument: Span<UInt8>) throws(Errno) -> OperationResult {
    guard version == .v2 else { throw .permissionDenied }
    let minimumSize = 8
    let argumentSize: UInt32 = try argument.field(at: 0)
    guard argumentSize >= minimumSize else { throw .invalidArgument }
    switch try argument.field(at: 4, as: UInt32.self) {
    case DirtyPagesFlag.start:
      try changes.withLock { _ throws(Errno) in
        try state.withLock { (state) throws(Errno) in
          guard state.dirtyPages == nil else { return }
          guard state.map.all.allSatisfy(\.canTrackDirtyPages) else { throw .invalidArgument }
          state.dirtyPages = DirtyPages()
        }
        isTracking.store(true, ordering: .releasing)
        // A write that doesn't know of it yet is over before the client goes on.
        iotlb.invalidate(0...UInt64.max)
      }
      return OperationResult()
    case DirtyPagesFlag.stop:
      changes.withLock { _ in
        isTracking.store(false, ordering: .relaxed)
        state.withLock { $0.dirtyPages = nil }
      }
      return OperationResult()
    case DirtyPagesFlag.getBitmap:
      let structureSize = minimumSize + 16 + Self.bitmapStructureSize
      guard argumentSize >= structureSize, argument.count >= structureSize else {
        throw .invalidArgument
      }
      let bitmap = try getBitmap(argument)
      return OperationResult(
        structure: try argument.bytes(0..<structureSize) + bitmap)
    default: throw .invalidArgument
    }
  }

  private func getBitmap(_ argument: Span<UInt8>) throws(Errno) -> [UInt8] {
    let iova: UInt64 = try argument.field(at: 8)
    let size: UInt64 = try argument.field(at: 16)
    guard size > 0 else { throw .invalidArgument }
    let (last, wraps) = iova.addingReportingOverflow(size - 1)
    guard !wraps else { throw .overflow }
    let reportPageSize = try checkBitmap(argument, at: 24, range: size)
    guard reportPageSize == Self.pageSize, (iova | size).isMultiple(of: Self.pageSize) else {
      throw .invalidArgument
    }
    return try state.withLock { (state) throws(Errno) in
      guard state.dirtyPages != nil else { throw .invalidArgument }
      try state.map.checkNotSplit(by: iova...last)
      try checkRoom(forBitmapOf: iova...last)
      return state.dirtyPages?.takeBitmap(Self.pages(iova...last)) ?? []
    }
  }

  /// `ENOMEM` if a range's bitmap is larger than the answer may be.
  private func checkRoom(forBitmapOf range: ClosedRange<UInt64>) throws(Errno) {
    let pages = (range.upperBound - range.lowerBound) / Self.pageSize + 1
    guard DirtyPages.bitmapSize(pages: pages) <= limits.bitmapSize else { throw .noMemory }
  }

  /// `struct vfio_bitmap`: u64 pgsize, u64 size in bytes, a pointer.
  private static let bitmapStructureSize = 24

  /// Returns the page size that a bitmap shall have; `EINVAL` unless the bitmap has room for the
  /// range and is no larger than the kernel's 256 MiB.
  private func checkBitmap(
    _ argument: Span<UInt8>, at offset: Int, range size: UInt64
  ) throws(Errno) -> UInt64 {
    let pageSize: UInt64 = try argument.field(at: offset)
    let bitmapSize: UInt64 = try argument.field(at: offset + 8)
    // The pointer is ignored, but is a part of the structure.
    _ = try argument.field(at: offset + 16, as: UInt64.self)
    guard pageSize > 0 else { throw .invalidArgument }
    let pages = size >> UInt64(pageSize.trailingZeroBitCount)
    guard pages > 0, bitmapSize <= DirtyPages.bitmapSize(pages: DirtyPages.maximumPages),
      bitmapSize >= DirtyPages.bitmapSize(pages: pages)
    else { throw .invalidArgument }
    return pageSize
  }
}

extension IOVAMap {
  /// `EINVAL` when one end of a range is inside a mapping.
  fileprivate func checkNotSplit(by range: ClosedRange<UInt64>) throws(Errno) {
    if let mapping = mapping(containing: range.lowerBound), mapping.iova != range.lowerBound {
      throw .invalidArgument
    }
    if let mapping = mapping(containing: range.upperBound), mapping.last != range.upperBound {
      throw .invalidArgument
    }
  }
}
