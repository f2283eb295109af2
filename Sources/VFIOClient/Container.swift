import LinuxIO
import SystemPackage
import VFIOStream
import VFIOWire

/// What `VFIO_SET_IOMMU` takes and `VFIO_CHECK_EXTENSION` knows.
public struct IOMMUType: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// `VFIO_TYPE1_IOMMU`.
  public static let type1 = IOMMUType(rawValue: 1)
  /// `VFIO_SPAPR_TCE_IOMMU`.
  public static let spaprTCE = IOMMUType(rawValue: 2)
  /// `VFIO_TYPE1v2_IOMMU`: as type1, but an unmap never splits a mapping.
  public static let type1v2 = IOMMUType(rawValue: 3)
  /// `VFIO_DMA_CC_IOMMU`: DMA is coherent with the processors' caches.
  public static let dmaCacheCoherent = IOMMUType(rawValue: 4)
  /// `VFIO_EEH`: no server has it.
  public static let eeh = IOMMUType(rawValue: 5)
  /// `VFIO_SPAPR_TCE_v2_IOMMU`.
  public static let spaprTCEv2 = IOMMUType(rawValue: 7)
  /// `VFIO_NOIOMMU_IOMMU`.
  public static let noIOMMU = IOMMUType(rawValue: 8)
  /// `VFIO_UNMAP_ALL`.
  public static let unmapAll = IOMMUType(rawValue: 9)
}

/// An address space for the DMA of the groups that are put into it.
public final class Container: Handle {
  public let connection: Connection

  init(_ connection: Connection) { self.connection = connection }

  /// The container behind a descriptor that another process passed on. Takes the descriptor over.
  public convenience init(adopting descriptor: FileDescriptor) {
    self.init(Connection(Socket(Descriptor(owning: descriptor.rawValue))))
  }

  /// `VFIO_GET_API_VERSION`.
  public func apiVersion() throws(VFIOError) -> Int64 {
    try connection.call(.getAPIVersion, "get the container's API version") {
      reply throws(Errno) in try reply.result()
    }
  }

  /// `VFIO_CHECK_EXTENSION`: positive when there is such an IOMMU or feature.
  public func checkExtension(_ type: IOMMUType) throws(VFIOError) -> Int64 {
    try connection.call(.checkExtension, "check extension \(type.rawValue)") { output in
      output.append(type.rawValue)
    } decode: { reply throws(Errno) in
      try reply.result()
    }
  }

  /// `VFIO_SET_IOMMU`: chooses the IOMMU driver. `EINVAL` without a group or when one is set, `ENODEV`
  /// when no driver has that type.
  public func setIOMMU(_ type: IOMMUType) throws(VFIOError) {
    try connection.call(.setIOMMU, "set IOMMU type \(type.rawValue)") { output in
      output.append(type.rawValue)
    }
  }

  /// `VFIO_IOMMU_GET_INFO`: page sizes, addresses that may be mapped, mappings left.
  public func iommuInfo() throws(VFIOError) -> IOMMUInfo {
    var size: UInt32 = 24
    while true {
      let structure = try connection.call(.iommuGetInfo, "get the IOMMU's information") { output in
        output.append(size)
        output.append(UInt32(0))
        output.append(UInt64(0))
        output.append(UInt64(0))
      } decode: { reply throws(Errno) in
        try reply.structure()
      }
      let needed = try naming("read the IOMMU's information") { () throws(Errno) in
        try structure.uint32(at: 0)
      }
      if needed <= size {
        return try naming("read the IOMMU's information") { () throws(Errno) in
          try IOMMUInfo(structure)
        }
      }
      size = needed
    }
  }

  /// `VFIO_IOMMU_MAP_DMA`: devices reach `memory`, from `offset` on, at the address `iova`. All the rest
  /// of it when no `size` is given.
  ///
  /// The mapping goes with what this returns. `EEXIST` over another mapping, `EINVAL` when something isn't
  /// a multiple of the page size or lies where the IOMMU has no addresses, `ENOSPC` beyond the limit of
  /// mappings.
  public func map(
    _ memory: Memory, at iova: UInt64, access: DMAAccess = [.read, .write], offset: UInt64 = 0,
    size: UInt64? = nil
  ) throws(VFIOError) -> DMAMemory {
    try DMAMemory(
      memory, offset, size, at: iova, access, connection, map: .iommuMapDMA, unmap: .iommuUnmapDMA)
  }

  /// `VFIO_IOMMU_MAP_DMA` of this process's own memory at `address`, as with the kernel. It stays until
  /// `unmap`.
  ///
  /// The server reaches it with `process_vm_readv`, which it must be allowed to do; `EFAULT` otherwise.
  /// The bytes must stay where they are as long as they are mapped.
  public func map(
    address: UInt64, size: UInt64, at iova: UInt64, access: DMAAccess = [.read, .write]
  ) throws(VFIOError) {
    try connection.call(.iommuMapDMA, "map \(hex(size)) bytes at \(hex(iova))") { output in
      output.append(DMARange(flags: access.rawValue, offset: address, iova: iova, size: size))
    }
  }

  /// `VFIO_IOMMU_UNMAP_DMA`: returns how many bytes were mapped there. `EINVAL` where it would split a
  /// mapping of type1 v2.
  @discardableResult
  public func unmap(at iova: UInt64, size: UInt64) throws(VFIOError) -> UInt64 {
    try unmap("unmap \(hex(size)) bytes at \(hex(iova))", flags: 0, iova, size)
  }

  /// `VFIO_IOMMU_UNMAP_DMA` with `VFIO_DMA_UNMAP_FLAG_ALL`: returns how many bytes were mapped.
  @discardableResult
  public func unmapAll() throws(VFIOError) -> UInt64 {
    try unmap("unmap all", flags: 2, 0, 0)
  }

  private func unmap(
    _ operation: @autoclosure () -> String, flags: UInt32, _ iova: UInt64, _ size: UInt64
  ) throws(VFIOError) -> UInt64 {
    try connection.call(.iommuUnmapDMA, operation()) { output in
      output.append(DMARange(flags: flags, iova: iova, size: size))
    } decode: { reply throws(Errno) in
      try reply.structure().uint64(at: 16)
    }
  }

  /// `read` of the container; `EINVAL` when its IOMMU driver has none.
  public func read(at offset: UInt64, count: Int) throws(VFIOError) -> [UInt8] {
    try connection.call(.containerRead, "read \(count) bytes at \(hex(offset)) of a container") {
      $0.append(RegionAccess(offset: offset, region: 0, count: count))
    } decode: { reply throws(Errno) in
      try reply.accessed(count)
    }
  }

  /// `write` to the container; `EINVAL` when its IOMMU driver has none.
  public func write(_ bytes: [UInt8], at offset: UInt64) throws(VFIOError) {
    try connection.call(
      .containerWrite, "write \(bytes.count) bytes at \(hex(offset)) of a container"
    ) {
      $0.append(RegionAccess(offset: offset, region: 0, count: bytes.count))
      $0.append(bytes)
    }
  }

  /// `mmap` of the container from `offset` on, which is the area's 0; `EINVAL` when its IOMMU driver has
  /// none.
  public func mapped(at offset: UInt64, size: UInt64) throws(VFIOError) -> MappedArea {
    try connection.call(.containerMmap, "map \(hex(size)) bytes of a container") {
      $0.append(offset)
      $0.append(size)
    } decode: { reply throws(Errno) in
      MappedArea(
        "a container", try SharedMapping(try reply.descriptor(), size: size, writable: true),
        offset: 0, size: size, at: 0, isWritable: true)
    }
  }
}
