import Locks
import SystemPackage
import VFIOCore

extension SPAPR {
  /// `VFIO_IOMMU_SPAPR_TCE_CREATE`: a window of DMA addresses, which are those that the answer says.
  /// `struct vfio_iommu_spapr_tce_create`: u32 argsz, u32 flags, u32 page_shift, 4 bytes reserved, u64
  /// window_size, u32 levels, 4 bytes reserved, u64 start_addr.
  ///
  /// - `ENXIO`: no group;
  /// - `EINVAL`: a short argsz, or a flag;
  /// - `ENOSPC`: as many windows are there as may be, the one to begin with included;
  /// - `EINVAL`: a page size that isn't among GET_INFO's, no or too many levels, or a size that is no
  ///   power of 2, smaller than a page or larger than a window may be;
  /// - `ENOMEM`: the table is beyond the limit of locked memory.
  ///
  /// The number of levels changes nothing: a table takes the memory that its entries need.
  func createWindow(_ argument: Span<UInt8>) throws(Errno) -> OperationResult {
    let start = try state.withLock { (state) throws(Errno) in
      state.hasUser = true
      guard !state.groups.isEmpty else { throw .noSuchAddressOrDevice }
      _ = try argument.argumentSize(minimum: 40)
      guard try argument.field(at: 4, as: UInt32.self) == 0 else { throw .invalidArgument }
      try state.makeDefaultWindow(limits)
      return try state.makeWindow(
        pageShift: try argument.field(at: 8), size: try argument.field(at: 16),
        levels: try argument.field(at: 24), limits)
    }
    var structure = try argument.bytes(0..<32)
    structure.append(field: start)
    return OperationResult(structure: structure)
  }

  /// `VFIO_IOMMU_SPAPR_TCE_REMOVE`, with all entries. `struct vfio_iommu_spapr_tce_remove`: u32 argsz,
  /// u32 flags, u64 start_addr, which may be any address in the window; `EINVAL` for one in none.
  func removeWindow(_ argument: Span<UInt8>) throws(Errno) -> OperationResult {
    try change(0, size: UInt64.max) { (state) throws(Errno) in
      state.hasUser = true
      guard !state.groups.isEmpty else { throw .noSuchAddressOrDevice }
      _ = try argument.argumentSize(minimum: 16)
      let start: UInt64 = try argument.field(at: 8)
      guard try argument.field(at: 4, as: UInt32.self) == 0 else { throw .invalidArgument }
      if state.isDefaultWindowPending, start == 0 {
        state.isDefaultWindowPending = false
        return [any DMAMemory]()
      }
      guard let number = state.window(containing: start), let window = state.windows[number] else {
        throw .invalidArgument
      }
      defer {
        state.windows[number] = nil
        state.locked -= window.tableSize
      }
      return state.clear(window.pages, window: number)
    }
    return OperationResult()
  }
}

extension SPAPR.State {
  /// Makes the window that version 2 has to begin with, when it is first needed.
  mutating func makeDefaultWindow(_ limits: IOMMULimits) throws(Errno) {
    guard isDefaultWindowPending else { return }
    let window = TCEWindow.default
    _ = try makeWindow(
      pageShift: UInt32(window.pageShift), size: window.size, levels: 1, limits)
    isDefaultWindowPending = false
  }

  /// Makes a window and returns where it begins.
  fileprivate mutating func makeWindow(
    pageShift: UInt32, size: UInt64, levels: UInt32, _ limits: IOMMULimits
  ) throws(Errno) -> UInt64 {
    guard let number = windows.firstIndex(where: { $0 == nil }) else { throw .noSpace }
    guard pageShift < 64, TCEWindow.pageSizes & 1 << UInt64(pageShift) != 0,
      1...TCEWindow.maximumLevels ~= levels, size.nonzeroBitCount == 1,
      1 << UInt64(pageShift)...TCEWindow.maximumSize ~= size
    else { throw .invalidArgument }
    let window = TCEWindow(number: number, size: size, pageShift: UInt64(pageShift))
    try lock(window.tableSize, limit: limits.lockedMemory)
    windows[number] = window
    return window.start
  }
}
