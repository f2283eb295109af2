import LinuxIO
import SystemPackage
import VFIOStream
import VFIOWire

/// `struct vfio_iommu_spapr_tce_info`: the window that a sPAPR TCE container has to begin with, and which
/// others can be made.
public struct TCEInfo: Sendable, Equatable {
  public var windowStart: UInt64
  /// Bytes.
  public var windowSize: UInt64
  /// A bit for each page size that a window may have; 0 in version 1, as what follows.
  public var pageSizes: UInt64
  /// How many windows there may be at a time.
  public var windows: UInt32
  /// The most levels of a table.
  public var levels: UInt32
}

// Containers with the IOMMU `spaprTCE` or `spaprTCEv2`. What the other version has alone is `ENOTTY`.
extension Container {
  /// `VFIO_IOMMU_SPAPR_TCE_GET_INFO`.
  public func tceInfo() throws(VFIOError) -> TCEInfo {
    try connection.call(.spaprTCEGetInfo, "get the sPAPR TCE IOMMU's information") { output in
      output.append(UInt32(32))
      for _ in 0..<3 { output.append(UInt32(0)) }
    } decode: { reply throws(Errno) in
      let structure = try reply.structure()
      return TCEInfo(
        windowStart: UInt64(try structure.uint32(at: 8)),
        windowSize: UInt64(try structure.uint32(at: 12)),
        pageSizes: try structure.uint64(at: 16), windows: try structure.uint32(at: 24),
        levels: try structure.uint32(at: 28))
    }
  }

  /// `VFIO_IOMMU_ENABLE`, of version 1: must come before maps. `EBUSY` when enabled, `ENOMEM` where the
  /// window may not be locked.
  public func enable() throws(VFIOError) {
    try connection.call(.iommuEnable, "enable the IOMMU") { _ in }
  }

  /// `VFIO_IOMMU_DISABLE`, of version 1. What is mapped stays, but can't be changed.
  public func disable() throws(VFIOError) {
    try connection.call(.iommuDisable, "disable the IOMMU") { _ in }
  }

  /// `VFIO_IOMMU_SPAPR_REGISTER_MEMORY`, of version 2: only memory that is registered can be mapped. All of
  /// it when no `size` is given.
  ///
  /// `EBUSY` when exactly this is registered, `EINVAL` when a part is, `ENOMEM` beyond what may be locked.
  public func register(
    _ memory: Memory, offset: UInt64 = 0, size: UInt64? = nil
  ) throws(VFIOError) {
    try register(.spaprRegisterMemory, "register", memory, offset, size)
  }

  /// `VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY`. `ENOENT` unless exactly this is registered, `EBUSY` while a part
  /// is mapped.
  public func unregister(
    _ memory: Memory, offset: UInt64 = 0, size: UInt64? = nil
  ) throws(VFIOError) {
    try register(.spaprUnregisterMemory, "unregister", memory, offset, size)
  }

  /// `struct vfio_iommu_spapr_register_memory`.
  private func register(
    _ command: Command, _ verb: String, _ memory: Memory, _ offset: UInt64, _ size: UInt64?
  ) throws(VFIOError) {
    let size = size ?? (offset < memory.size ? memory.size - offset : 0)
    try connection.call(command, "\(verb) \(hex(size)) bytes of memory", with: [memory.file]) {
      $0.append(UInt32(24))
      $0.append(UInt32(0))  // flags
      $0.append(offset)
      $0.append(size)
    }
  }

  /// `VFIO_IOMMU_SPAPR_TCE_CREATE`, of version 2: makes a window of `size` bytes, a power of 2, in pages of
  /// `1 << pageShift` bytes, and returns its first address.
  ///
  /// `ENOSPC` when there are as many as there may be, `EINVAL` for what `tceInfo` doesn't allow.
  public func createWindow(
    pageShift: UInt32, size: UInt64, levels: UInt32 = 1
  ) throws(VFIOError) -> UInt64 {
    try connection.call(.spaprTCECreate, "make a window of \(hex(size)) bytes") { output in
      output.append(UInt32(40))
      output.append(UInt32(0))  // flags
      output.append(pageShift)
      output.append(UInt32(0))
      output.append(size)
      output.append(levels)
      output.append(UInt32(0))
      output.append(UInt64(0))
    } decode: { reply throws(Errno) in
      try reply.structure().uint64(at: 32)
    }
  }

  /// `VFIO_IOMMU_SPAPR_TCE_REMOVE`, of version 2: removes the window that has this address, with all that
  /// is mapped in it.
  public func removeWindow(at start: UInt64) throws(VFIOError) {
    try connection.call(.spaprTCERemove, "remove the window at \(hex(start))") { output in
      output.append(UInt32(16))
      output.append(UInt32(0))  // flags
      output.append(start)
    }
  }
}
