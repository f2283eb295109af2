import Locks
import SystemPackage
import VFIOCore

extension SPAPR {
  /// `VFIO_IOMMU_SPAPR_REGISTER_MEMORY`: memory that may be mapped from now on; all of it counts as
  /// locked. It is the request's file, vaddr being an offset in it, or the sender's own.
  ///
  /// - `EINVAL`: a short argsz, a flag, an address or size that is no multiple of 4 KiB, or a range that
  ///   reaches 2^64;
  /// - `EBUSY`: exactly this range is registered;
  /// - `ENOMEM`: the size is 0;
  /// - `ENOSPC`: as many ranges are registered as there may be mappings;
  /// - `ENOMEM`: the size is beyond the limit of locked memory;
  /// - what `source` throws for memory that can't be read and written;
  /// - `EINVAL`: a part of the range is registered.
  func registerMemory(
    _ argument: Span<UInt8>, _ source: any MemorySource
  ) throws(Errno) -> OperationResult {
    try state.withLock { (state) throws(Errno) in
      state.hasUser = true
      let (address, size) = try Self.registration(argument)
      let (end, wraps) = address.addingReportingOverflow(size)
      guard !wraps else { throw .invalidArgument }
      guard size > 0 else { throw .noMemory }
      if let origin = try source.origin(),
        state.memories.isRegistered(address...end - 1, of: origin)
      {
        throw .resourceBusy
      }
      guard state.memories.regionCount < limits.mappings else { throw .noSpace }
      try state.lock(size, limit: limits.lockedMemory)
      do throws(Errno) {
        let memory = try source.memory(at: address, size: size, writable: true)
        // Asked when the memory is there, so that it names that very memory.
        guard let origin = try source.origin() else { throw .badAddress }
        try state.memories.register(address...end - 1, of: origin, memory)
      } catch {
        state.locked -= size
        throw error
      }
      state.isEnabled = true
    }
    return OperationResult()
  }

  /// `VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY`.
  ///
  /// - `EPERM`: nothing was registered, and no window made or removed, ever;
  /// - `EINVAL`: as to register;
  /// - `ENOENT`: exactly this range isn't registered;
  /// - `EBUSY`: a part of it is mapped.
  func unregisterMemory(
    _ argument: Span<UInt8>, _ source: any MemorySource
  ) throws(Errno) -> OperationResult {
    let ended = try state.withLock { (state) throws(Errno) in
      guard state.hasUser else { throw .notPermitted }
      let (address, size) = try Self.registration(argument)
      let (end, wraps) = address.addingReportingOverflow(size)
      guard !wraps, size > 0, let origin = try source.origin() else {
        throw .noSuchFileOrDirectory
      }
      let memory = try state.memories.unregister(address...end - 1, of: origin)
      state.locked -= size
      return memory
    }
    withExtendedLifetime(ended) {}
    return OperationResult()
  }

  /// `struct vfio_iommu_spapr_register_memory`: u32 argsz, u32 flags, u64 vaddr, u64 size.
  private static func registration(
    _ argument: Span<UInt8>
  ) throws(Errno) -> (address: UInt64, size: UInt64) {
    _ = try argument.argumentSize(minimum: 24)
    let address: UInt64 = try argument.field(at: 8)
    let size: UInt64 = try argument.field(at: 16)
    guard try argument.field(at: 4, as: UInt32.self) == 0,
      (address | size).isMultiple(of: pageSize)
    else { throw .invalidArgument }
    return (address, size)
  }
}

/// Pages of a window, and the memory that is to be behind them.
struct TCERun {
  var pages: Range<UInt64>
  /// Its number in `TCEMemories`.
  var memory: UInt32
  /// Where the first page begins in it.
  var offset: UInt64
}

extension TCEMemories {
  /// The registered memory from `address` on for some pages. `EINVAL` when a page isn't in one region.
  func runs(
    of origin: MemoryOrigin?, _ address: UInt64, _ pages: Range<UInt64>, pageSize: UInt64
  ) throws(Errno) -> [TCERun] {
    var runs: [TCERun] = []
    var page = pages.lowerBound
    while page < pages.upperBound {
      let (offset, wraps) = address.addingReportingOverflow((page - pages.lowerBound) * pageSize)
      guard !wraps, let origin, let region = region(containing: offset, of: origin) else {
        throw .invalidArgument
      }
      // A region never reaches 2^64.
      let count = min((region.range.upperBound + 1 - offset) / pageSize, pages.upperBound - page)
      guard count > 0 else { throw .invalidArgument }
      runs.append(TCERun(pages: page..<page + count, memory: region.number, offset: offset))
      page += count
    }
    return runs
  }
}
