import Locks
import SystemPackage
import VFIOCore

extension SPAPR {
  /// What only one version has is `ENOTTY` in the other, and `VFIO_EEH_PE_OP` in both.
  func operation(
    _ command: UInt32, _ argument: Span<UInt8>, _ source: any MemorySource
  ) throws(Errno) -> OperationResult {
    switch (command, version) {
    case (VFIOIoctl.spaprTCEGetInfo, _): return try getInfo(argument)
    case (VFIOIoctl.iommuMapDMA, _): return try mapDMA(argument, source)
    case (VFIOIoctl.iommuUnmapDMA, _): return try unmapDMA(argument)
    case (VFIOIoctl.iommuEnable, .v1): return try enable()
    case (VFIOIoctl.iommuDisable, .v1): return disable()
    case (VFIOIoctl.spaprRegisterMemory, .v2): return try registerMemory(argument, source)
    case (VFIOIoctl.spaprUnregisterMemory, .v2): return try unregisterMemory(argument, source)
    case (VFIOIoctl.spaprTCECreate, .v2): return try createWindow(argument)
    case (VFIOIoctl.spaprTCERemove, .v2): return try removeWindow(argument)
    default: throw .inappropriateIOCTLForDevice
    }
  }

  /// `VFIO_IOMMU_SPAPR_TCE_GET_INFO`. `struct vfio_iommu_spapr_tce_info`: u32 argsz, u32 flags, u32
  /// dma32_window_start, u32 dma32_window_size; then, if argsz has room for all of it, what is said of
  /// further windows: u64 pgsizes, u32 max_dynamic_windows_supported, u32 levels, which are 0 in
  /// version 1. argsz stays as it is.
  private func getInfo(_ argument: Span<UInt8>) throws(Errno) -> OperationResult {
    let minimumSize = 16
    let fullSize = 32
    guard !state.withLock({ $0.groups.isEmpty }) else { throw .noSuchAddressOrDevice }
    let argumentSize = try argument.argumentSize(minimum: minimumSize)
    let hasWindows = version == .v2
    var structure: [UInt8] = []
    structure.append(field: argumentSize)
    structure.append(field: hasWindows ? SPAPRInfoFlag.dynamicWindows : 0)
    structure.append(field: UInt32(clamping: TCEWindow.default.start))
    structure.append(field: UInt32(clamping: TCEWindow.default.size))
    if argumentSize >= fullSize {
      structure.append(field: hasWindows ? TCEWindow.pageSizes : 0)
      structure.append(field: hasWindows ? UInt32(TCEWindow.maximumCount) : 0)
      structure.append(field: hasWindows ? TCEWindow.maximumLevels : 0)
    }
    return OperationResult(structure: structure)
  }

  /// `VFIO_IOMMU_ENABLE`. All of the window counts as locked, since all of it could be mapped. `EBUSY`
  /// when enabled, `ENODEV` without a group, `ENOMEM` beyond the limit.
  private func enable() throws(Errno) -> OperationResult {
    try state.withLock { (state) throws(Errno) in
      guard !state.isEnabled else { throw .resourceBusy }
      guard !state.groups.isEmpty else { throw .operationNotSupportedByDevice }
      try state.lock(TCEWindow.default.size, limit: limits.lockedMemory)
      state.isEnabled = true
    }
    return OperationResult()
  }

  /// `VFIO_IOMMU_DISABLE`. What is mapped stays mapped, but can't be changed.
  private func disable() -> OperationResult {
    state.withLock { state in
      if state.isEnabled { state.locked -= TCEWindow.default.size }
      state.isEnabled = false
    }
    return OperationResult()
  }

  /// `VFIO_IOMMU_MAP_DMA`. `struct vfio_iommu_type1_dma_map`: u32 argsz, u32 flags, u64 vaddr, u64 iova,
  /// u64 size. The kernel's checks in its order:
  ///
  /// - `EPERM`: not enabled;
  /// - `EINVAL`: a short argsz or an unknown flag;
  /// - `ENOMEM`: no room for the table of version 2's first window;
  /// - `ENXIO`: iova is in no window;
  /// - `EINVAL`: vaddr or size is no multiple of the window's page, no access, then iova likewise, or
  ///   the range ends outside the window;
  /// - `ENOSPC`: the tables have as many leaves as there may be mappings;
  /// - version 1: what `source` throws; version 2: `EINVAL` for a page that isn't registered.
  ///
  /// Entries that are there are replaced. A map that fails changes none.
  private func mapDMA(
    _ argument: Span<UInt8>, _ source: any MemorySource
  ) throws(Errno) -> OperationResult {
    guard state.withLock({ $0.isEnabled }) else { throw .notPermitted }
    _ = try argument.argumentSize(minimum: 32)
    let access = DMAAccess(rawValue: try argument.field(at: 4))
    let address: UInt64 = try argument.field(at: 8)
    let iova: UInt64 = try argument.field(at: 16)
    let size: UInt64 = try argument.field(at: 24)
    guard access.isSubset(of: [.read, .write]) else { throw .invalidArgument }
    try change(iova, size: size) { (state) throws(Errno) in
      try state.makeDefaultWindow(limits)
      guard let number = state.window(containing: iova), let window = state.windows[number] else {
        throw .noSuchAddressOrDevice
      }
      guard (address | size).isMultiple(of: window.pageSize), !access.isEmpty else {
        throw .invalidArgument
      }
      let pages = try window.pages(iova, size: size)
      guard size > 0 else { return [any DMAMemory]() }
      let room = limits.mappings - state.tables.reduce(0) { $0 + $1.leafCount }
      guard state.tables[number].newLeaves(for: pages, limit: room) <= room else {
        throw .noSpace
      }
      let runs: [TCERun]
      switch version {
      case .v1:
        let memory = try source.memory(
          at: address, size: size, writable: access.contains(.write))
        let memoryNumber = state.memories.number(of: memory)
        runs = [TCERun(pages: pages, memory: memoryNumber, offset: address)]
      case .v2:
        runs = try state.memories.runs(
          of: try source.origin(), address, pages, pageSize: window.pageSize)
      }
      return state.set(runs, access, window: number, pageSize: window.pageSize)
    }
    return OperationResult()
  }

  /// `VFIO_IOMMU_UNMAP_DMA`. `struct vfio_iommu_type1_dma_unmap`: u32 argsz, u32 flags, u64 iova, u64
  /// size. Checks as `VFIO_IOMMU_MAP_DMA`; entries that aren't there are no error. The structure is
  /// answered as it was: the kernel doesn't write to it.
  private func unmapDMA(_ argument: Span<UInt8>) throws(Errno) -> OperationResult {
    guard state.withLock({ $0.isEnabled }) else { throw .notPermitted }
    let minimumSize = 24
    _ = try argument.argumentSize(minimum: minimumSize)
    let iova: UInt64 = try argument.field(at: 8)
    let size: UInt64 = try argument.field(at: 16)
    guard try argument.field(at: 4, as: UInt32.self) == 0 else { throw .invalidArgument }
    try change(iova, size: size) { (state) throws(Errno) in
      try state.makeDefaultWindow(limits)
      guard let number = state.window(containing: iova), let window = state.windows[number] else {
        throw .noSuchAddressOrDevice
      }
      guard size.isMultiple(of: window.pageSize) else { throw .invalidArgument }
      return state.clear(try window.pages(iova, size: size), window: number)
    }
    return OperationResult(structure: try argument.bytes(0..<minimumSize))
  }
}

extension SPAPR {
  /// Changes entries of a range, and returns when no transfer uses what was there before. `body` returns
  /// the memory that goes with them.
  func change(
    _ iova: UInt64, size: UInt64, _ body: (inout State) throws(Errno) -> [any DMAMemory]
  ) throws(Errno) {
    try changes.withLock { _ throws(Errno) in
      let ended = try state.withLock { (state) throws(Errno) in try body(&state) }
      if size > 0 { iotlb.invalidate(iova...iova + (size - 1)) }
      _ = consume ended
    }
  }
}

extension Span where Element == UInt8 {
  /// A structure's argsz; `EINVAL` if it, or what came of the structure, is below `minimum`.
  func argumentSize(minimum: Int) throws(Errno) -> UInt32 {
    let argumentSize: UInt32 = try field(at: 0)
    guard count >= minimum, argumentSize >= minimum else { throw .invalidArgument }
    return argumentSize
  }
}
