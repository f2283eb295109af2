import Locks
import SystemPackage
import VFIOCore

/// One container's sPAPR TCE IOMMU: windows of IOVA, each with a table of entries.
///
/// What changes the tables does so one after the other. Devices look addresses up meanwhile, and keep
/// what they find until it is invalidated.
///
/// The kernel ties a container to the process that used it first, whose memory it is about. Here every
/// request is about memory of its own sender's, so that there is nothing to tie.
final class SPAPR: IOMMU {
  enum Version { case v1, v2 }

  /// What memory is locked and registered in: the smallest page.
  static let pageSize: UInt64 = 4096

  let version: Version
  let limits: IOMMULimits
  let iotlb = IOTLB()
  /// Held while entries change, until no transfer uses what was there before. The IOTLB's locks come
  /// after it, and then that of the state.
  let changes = Mutex(())
  let state = Mutex(State())

  struct State {
    /// Newest first.
    var groups: [IOMMUGroup] = []
    /// By number; nil where there is none.
    var windows = [TCEWindow?](repeating: nil, count: TCEWindow.maximumCount)
    /// The windows' tables; empty where there is no window.
    var tables = [TCETable](repeating: TCETable(), count: TCEWindow.maximumCount)
    var memories = TCEMemories()
    /// Bytes that count against the limit.
    var locked: UInt64 = 0
    /// Whether entries can be made: version 1 after `VFIO_IOMMU_ENABLE`, version 2 after the first
    /// `VFIO_IOMMU_SPAPR_REGISTER_MEMORY`.
    var isEnabled = false
    /// Version 2 makes the first window when it is first needed, unless its user has removed it.
    var isDefaultWindowPending = false
    /// Version 2: something was asked that ties the kernel's container to a process.
    var hasUser = false

    /// The number of the window that an address is in.
    func window(containing iova: UInt64) -> Int? {
      windows.firstIndex { $0?.contains(iova) == true }
    }

    /// Counts bytes as locked; `ENOMEM` beyond the limit.
    mutating func lock(_ bytes: UInt64, limit: UInt64?) throws(Errno) {
      let (sum, wraps) = locked.addingReportingOverflow(bytes)
      guard !wraps, sum <= limit ?? .max else { throw .noMemory }
      locked = sum
    }
  }

  init(version: Version, _ limits: IOMMULimits) {
    self.version = version
    self.limits = limits
  }

  /// As the driver's.
  func checkExtension(_ number: UInt64) -> Int64 { SPAPRDriver().checkExtension(number) }

  /// `EBUSY` for a second group in version 1, and for one that is attached already.
  func attach(_ group: IOMMUGroup) throws(Errno) {
    try state.withLock { (state) throws(Errno) in
      switch version {
      case .v1:
        guard state.groups.isEmpty else { throw .resourceBusy }
        state.windows[0] = .default
      case .v2:
        guard !state.groups.contains(where: { $0 === group }) else { throw .resourceBusy }
        if state.groups.isEmpty, state.windows[0] == nil { state.isDefaultWindowPending = true }
      }
      state.groups.insert(group, at: 0)
    }
  }

  /// In version 1 the window is the group's, and goes with it.
  func detach(_ group: IOMMUGroup) {
    changes.withLock { _ in
      let ended = state.withLock { state in
        guard state.groups.contains(where: { $0 === group }) else { return [any DMAMemory]() }
        state.groups.removeAll { $0 === group }
        guard version == .v1 else { return [] }
        defer { state.windows[0] = nil }
        return state.clear(TCEWindow.default.pages, window: 0)
      }
      iotlb.invalidate(0...UInt64.max)
      _ = consume ended
    }
  }

  func release() {
    changes.withLock { _ in
      // Returned, so that the memory ends outside the lock.
      let ended = state.withLock { state in
        defer { state = State() }
        return state.memories.all
      }
      iotlb.invalidate(0...UInt64.max)
      _ = consume ended
    }
  }
}

/// A range of IOVA, for which there is a table.
struct TCEWindow {
  /// A container's windows at a time; the kernel's `IOMMU_TABLE_GROUP_MAX_TABLES`.
  static let maximumCount = 2
  /// Where the windows begin, by number: the second is told from the first by address bit 59, as
  /// POWER's host bridges do it.
  static let starts: [UInt64] = [0, 1 << 59]
  /// Bytes of the largest window; the kernel's is the machine's memory.
  static let maximumSize: UInt64 = 1 << 46
  /// A bit for each page size: 4 KiB, 64 KiB, 2 MiB, 16 MiB, 1 GiB.
  static let pageSizes: UInt64 = 1 << 12 | 1 << 16 | 1 << 21 | 1 << 24 | 1 << 30
  static let maximumLevels: UInt32 = 5

  /// The 32-bit window, which a container has to begin with: 2 GiB in pages of 4 KiB.
  static let `default` = TCEWindow(number: 0, size: 1 << 31, pageShift: 12)

  let start: UInt64
  /// Bytes; a power of 2.
  let size: UInt64
  let pageShift: UInt64

  init(number: Int, size: UInt64, pageShift: UInt64) {
    start = Self.starts[number]
    self.size = size
    self.pageShift = pageShift
  }

  var pageSize: UInt64 { 1 << pageShift }
  /// The numbers of its pages.
  var pages: Range<UInt64> { 0..<size >> pageShift }

  /// Bytes of the hardware's table, which count as locked whether they are used or not: 8 for each
  /// entry, and whole pages.
  var tableSize: UInt64 { max(SPAPR.pageSize, (size >> pageShift) * 8) }

  func contains(_ iova: UInt64) -> Bool { iova >= start && iova - start < size }

  /// The numbers of the pages of a range. `EINVAL` unless it begins with a page and ends in the window.
  func pages(_ iova: UInt64, size: UInt64) throws(Errno) -> Range<UInt64> {
    guard iova.isMultiple(of: pageSize), contains(iova), size <= self.size - (iova - start) else {
      throw .invalidArgument
    }
    let first = (iova - start) >> pageShift
    return first..<first + size >> pageShift
  }
}
