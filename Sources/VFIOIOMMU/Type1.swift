import Locks
import SystemPackage
import VFIOCore

/// One container's type1 IOMMU.
///
/// A lock guards the map, and every transfer holds it from its look-up to the end of its copy, a
/// piece at a time. So an unmap returns when nothing uses the range any more.
final class Type1: IOMMU {
  enum Version { case v1, v2 }

  /// The smallest page: what addresses, sizes and dirty pages are counted in.
  static let pageSize: UInt64 = 4096

  let version: Version
  let limits: IOMMULimits
  let state = Mutex(State())

  struct State {
    var map = IOVAMap()
    var groups: [IOMMUGroup] = []
    /// The pages written since they were last reported; nil while tracking is off.
    var dirtyPages: DirtyPages?

    /// Removes a mapping and forgets its dirty pages. Whoever gets it lets go of it after unlocking,
    /// because the end of its memory may take long.
    mutating func remove(_ mapping: Mapping) {
      map.remove(startingAt: mapping.iova)
      dirtyPages?.clear(Type1.pages(mapping.iova...mapping.last))
    }

    /// Takes a mapping away from one owner, and removes it when that was the last.
    mutating func remove(_ mapping: Mapping, of owner: DMAOwner) {
      var mapping = mapping
      mapping.owners.removeAll { $0 == owner }
      if mapping.owners.isEmpty { remove(mapping) } else { map.update(mapping) }
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
    // Returned, so that the memory ends outside the lock.
    _ = state.withLock { state in
      defer { state = State() }
      return state.map
    }
  }

  /// `VFIO_IOMMU_MAP_DMA` and vfio-user's DMA_MAP, with the kernel's checks in its order:
  ///
  /// - `EINVAL`: the size is 0;
  /// - `EOVERFLOW`: the range of IOVA, or of what the source gives, wraps at 2^64;
  /// - `EINVAL`: no access or an unknown one, or an address or the size is no multiple of 4 KiB;
  /// - `EEXIST`: a part is mapped already, and is no identical mapping that may be shared;
  /// - `ENOSPC`: as many mappings are alive as may be;
  /// - `EINVAL`: the range isn't inside one of the apertures;
  /// - what `source` throws;
  /// - `EINVAL`: dirty pages are tracked, and the mapping has more than 2^31 - 1.
  ///
  /// `source` is asked under the lock, so that nothing else takes the place meanwhile.
  func map(_ request: DMAMapping, from source: any MemorySource) throws(Errno) {
    guard request.size > 0 else { throw .invalidArgument }
    let (last, wraps) = request.iova.addingReportingOverflow(request.size - 1)
    let offsetWraps = request.offset.addingReportingOverflow(request.size - 1).overflow
    guard !wraps, !offsetWraps else { throw .overflow }
    guard !request.access.isEmpty, request.access.isSubset(of: [.read, .write]),
      (request.iova | request.offset | request.size).isMultiple(of: Self.pageSize)
    else { throw .invalidArgument }

    func memory() throws(Errno) -> any DMAMemory {
      try source.memory(
        at: request.offset, size: request.size, writable: request.access.contains(.write))
    }
    try state.withLock { (state) throws(Errno) in
      if var existing = state.map.first(from: request.iova), existing.iova <= last {
        guard request.mayShare, existing.iova == request.iova, existing.last == last,
          existing.offset == request.offset, existing.access == request.access,
          !existing.owners.contains(request.owner),
          try memory() === existing.memory
        else { throw .fileExists }
        existing.owners.append(request.owner)
        state.map.update(existing)
        return
      }
      guard state.map.count < limits.mappings else { throw .noSpace }
      guard limits.apertures.contains(where: { $0.contains(request.iova) && $0.contains(last) })
      else { throw .invalidArgument }
      let mapping = Mapping(
        iova: request.iova, last: last, memory: try memory(), offset: request.offset,
        access: request.access, owners: [request.owner])
      guard state.dirtyPages == nil || mapping.canTrackDirtyPages else { throw .invalidArgument }
      state.map.insert(mapping)
    }
  }

  func unmap(iova: UInt64, size: UInt64, owner: DMAOwner) throws(Errno) {
    // Returned, so that the memory ends outside the lock.
    _ = try state.withLock { (state) throws(Errno) in
      guard let mapping = state.map.first(from: iova), mapping.iova == iova,
        mapping.size == size, mapping.owners.contains(owner)
      else { throw .noSuchFileOrDirectory }
      state.remove(mapping, of: owner)
      return mapping
    }
  }

  /// Counts also the bytes of mappings that live on because others made them too.
  func unmapAll(owner: DMAOwner) -> UInt64 {
    let removed = state.withLock { state in
      let removed = state.map.all.filter { $0.owners.contains(owner) }
      for mapping in removed { state.remove(mapping, of: owner) }
      return removed
    }
    return removed.totalSize
  }
}

extension Mapping {
  /// Whether a bitmap can have a bit for each of its pages.
  var canTrackDirtyPages: Bool { size / Type1.pageSize <= DirtyPages.maximumPages }
}

extension Sequence<Mapping> {
  /// Bytes, modulo 2^64: mappings may cover all of the address space.
  var totalSize: UInt64 { reduce(0) { $0 &+ $1.size } }
}
