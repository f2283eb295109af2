import Locks
import SystemPackage
import VFIOCore

import struct Synchronization.Atomic

/// One container's type1 IOMMU.
///
/// What changes the map does so one after the other. Devices look addresses up meanwhile, and keep what
/// they find until it is invalidated.
final class Type1: IOMMU {
  enum Version { case v1, v2 }

  /// The smallest page: what addresses, sizes and dirty pages are counted in.
  static let pageSize: UInt64 = 4096

  let version: Version
  let limits: IOMMULimits
  let iotlb = IOTLB()
  /// Held while mappings or the tracking of dirty pages change, from the first check until no transfer
  /// uses what was there before. The IOTLB's locks come after it, and then that of the state.
  let changes = Mutex(())
  let state = Mutex(State())
  /// Whether `state.dirtyPages` is there, for writes to ask without its lock.
  let isTracking = Atomic(false)

  struct State {
    var map = IOVAMap()
    var groups: [IOMMUGroup] = []
    /// Pages of all mappings. Counted in pages, since all of 64 bits has 2^64 bytes.
    var lockedPages: UInt64 = 0
    /// The pages written since they were last reported; nil while tracking is off.
    var dirtyPages: DirtyPages?

    mutating func insert(_ mapping: Mapping) {
      map.insert(mapping)
      lockedPages += mapping.pages
    }

    /// Whoever has the mapping lets go of it after unlocking, because the end of its memory may take long.
    mutating func remove(_ mapping: Mapping) {
      guard map.remove(startingAt: mapping.iova) != nil else { return }
      lockedPages -= mapping.pages
    }
  }

  init(version: Version, _ limits: IOMMULimits) {
    self.version = version
    self.limits = limits
  }

  /// The numbers of the pages that a range of addresses touches.
  static func pages(_ range: ClosedRange<UInt64>) -> ClosedRange<UInt64> {
    range.lowerBound / pageSize...range.upperBound / pageSize
  }

  /// As the driver's, and `VFIO_DMA_CC_IOMMU` is 1: copies are always coherent.
  func checkExtension(_ number: UInt64) -> Int64 {
    number == VFIOExtension.dmaCacheCoherent ? 1 : Type1Driver().checkExtension(number)
  }

  /// `EINVAL` for a group that is attached already.
  func attach(_ group: IOMMUGroup) throws(Errno) {
    try state.withLock { (state) throws(Errno) in
      guard !state.groups.contains(where: { $0 === group }) else { throw .invalidArgument }
      state.groups.append(group)
    }
  }

  func detach(_ group: IOMMUGroup) {
    state.withLock { $0.groups.removeAll { $0 === group } }
  }

  func release() {
    changes.withLock { _ in
      // Returned, so that the memory ends outside the lock.
      let map = state.withLock { state in
        defer { state = State() }
        return state.map
      }
      isTracking.store(false, ordering: .releasing)
      iotlb.invalidate(0...UInt64.max)
      _ = consume map
    }
  }

  /// `VFIO_IOMMU_MAP_DMA` and vfio-user's DMA_MAP, with the kernel's checks in its order:
  ///
  /// - `EINVAL`: the size is 0;
  /// - `EOVERFLOW`: the range of IOVA, or of what the source gives, wraps at 2^64;
  /// - `EINVAL`: no access or an unknown one, or an address or the size is no multiple of 4 KiB;
  /// - `EEXIST`: a part is mapped already;
  /// - `ENOSPC`: as many mappings are alive as may be;
  /// - `EINVAL`: the range isn't inside one of the apertures;
  /// - what `source` throws;
  /// - `ENOMEM`: it would be more memory than the container may lock;
  /// - `EINVAL`: dirty pages are tracked, and the mapping has more than 2^31 - 1.
  ///
  /// `source` is asked while nothing else can take the place.
  func map(_ request: DMAMapping, from source: any MemorySource) throws(Errno) {
    guard request.size > 0 else { throw .invalidArgument }
    let (last, wraps) = request.iova.addingReportingOverflow(request.size - 1)
    let offsetWraps = request.offset.addingReportingOverflow(request.size - 1).overflow
    guard !wraps, !offsetWraps else { throw .overflow }
    guard !request.access.isEmpty, request.access.isSubset(of: [.read, .write]),
      (request.iova | request.offset | request.size).isMultiple(of: Self.pageSize)
    else { throw .invalidArgument }

    try changes.withLock { _ throws(Errno) in
      let (next, count, lockedPages, isTracking) = state.withLock { state in
        (
          state.map.first(from: request.iova), state.map.count, state.lockedPages,
          state.dirtyPages != nil
        )
      }
      if let next, next.iova <= last { throw .fileExists }
      guard count < limits.mappings else { throw .noSpace }
      guard limits.apertures.contains(where: { $0.contains(request.iova) && $0.contains(last) })
      else { throw .invalidArgument }
      let memory = try source.memory(
        at: request.offset, size: request.size, writable: request.access.contains(.write))
      let mapping = Mapping(
        iova: request.iova, last: last, memory: memory, offset: request.offset,
        access: request.access, owner: request.owner)
      if let limit = limits.lockedMemory {
        guard mapping.pages <= limit / Self.pageSize - lockedPages else { throw .noMemory }
      }
      guard !isTracking || mapping.canTrackDirtyPages else { throw .invalidArgument }
      state.withLock { $0.insert(mapping) }
    }
  }

  func unmap(iova: UInt64, size: UInt64, owner: DMAOwner) throws(Errno) {
    try changes.withLock { _ throws(Errno) in
      let mapping = try state.withLock { (state) throws(Errno) in
        guard let mapping = state.map.first(from: iova), mapping.iova == iova,
          mapping.size == size, mapping.owner == owner
        else { throw .noSuchFileOrDirectory }
        state.remove(mapping)
        return mapping
      }
      iotlb.invalidate(mapping.iova...mapping.last)
      forgetDirtyPages([mapping])
    }
  }

  func unmapAll(owner: DMAOwner) -> UInt64 {
    changes.withLock { _ in
      let removed = state.withLock { state in
        let removed = state.map.all.filter { $0.owner == owner }
        for mapping in removed { state.remove(mapping) }
        return removed
      }
      // One by one: transfers that wait for another owner's memory go on.
      for mapping in removed { iotlb.invalidate(mapping.iova...mapping.last) }
      forgetDirtyPages(removed)
      return removed.totalSize
    }
  }

  /// Transfers may have marked pages until they were invalidated, so this comes afterwards.
  func forgetDirtyPages(_ removed: [Mapping]) {
    guard isTracking.load(ordering: .relaxed) else { return }
    state.withLock { state in
      for mapping in removed { state.dirtyPages?.clear(Self.pages(mapping.iova...mapping.last)) }
    }
  }

  // MARK: Devices

  func translate(_ iova: UInt64) -> Translation? {
    let mapping = state.withLock { $0.map.mapping(containing: iova) }
    guard let mapping else { return nil }
    return Translation(
      range: mapping.iova...mapping.last, memory: mapping.memory, offset: mapping.offset,
      access: mapping.access)
  }

  func wrote(_ range: ClosedRange<UInt64>) {
    guard isTracking.load(ordering: .acquiring) else { return }
    state.withLock { $0.dirtyPages?.mark(Self.pages(range)) }
  }
}

extension Mapping {
  var pages: UInt64 { size / Type1.pageSize }

  /// Whether a bitmap can have a bit for each of its pages.
  var canTrackDirtyPages: Bool { pages <= DirtyPages.maximumPages }
}

extension Sequence<Mapping> {
  /// Bytes, modulo 2^64: mappings may cover all of the address space.
  var totalSize: UInt64 { reduce(0) { $0 &+ $1.size } }
}
