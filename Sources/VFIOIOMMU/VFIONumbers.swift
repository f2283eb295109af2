// The numbers of <linux/vfio.h> that IOMMU drivers share, each under its C name.

/// Container operations that reach an IOMMU driver: `_IO(';', 100 + n)`.
enum VFIOIoctl {
  /// `VFIO_IOMMU_GET_INFO`.
  static let iommuGetInfo: UInt32 = 0x3B70
  /// `VFIO_IOMMU_MAP_DMA`.
  static let iommuMapDMA: UInt32 = 0x3B71
  /// `VFIO_IOMMU_UNMAP_DMA`.
  static let iommuUnmapDMA: UInt32 = 0x3B72
  /// `VFIO_IOMMU_DIRTY_PAGES`.
  static let iommuDirtyPages: UInt32 = 0x3B75

  // sPAPR TCE's own, some with the numbers of type1's.
  /// `VFIO_IOMMU_SPAPR_TCE_GET_INFO`.
  static let spaprTCEGetInfo: UInt32 = 0x3B70
  /// `VFIO_IOMMU_ENABLE`.
  static let iommuEnable: UInt32 = 0x3B73
  /// `VFIO_IOMMU_DISABLE`.
  static let iommuDisable: UInt32 = 0x3B74
  /// `VFIO_IOMMU_SPAPR_REGISTER_MEMORY`.
  static let spaprRegisterMemory: UInt32 = 0x3B75
  /// `VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY`.
  static let spaprUnregisterMemory: UInt32 = 0x3B76
  /// `VFIO_IOMMU_SPAPR_TCE_CREATE`.
  static let spaprTCECreate: UInt32 = 0x3B77
  /// `VFIO_IOMMU_SPAPR_TCE_REMOVE`.
  static let spaprTCERemove: UInt32 = 0x3B78
}

/// What `VFIO_CHECK_EXTENSION` is asked about; some are also types for `VFIO_SET_IOMMU`.
enum VFIOExtension {
  /// `VFIO_TYPE1_IOMMU`.
  static let type1: UInt64 = 1
  /// `VFIO_SPAPR_TCE_IOMMU`.
  static let spaprTCE: UInt64 = 2
  /// `VFIO_TYPE1v2_IOMMU`.
  static let type1v2: UInt64 = 3
  /// `VFIO_DMA_CC_IOMMU`: DMA is coherent with the processors' caches.
  static let dmaCacheCoherent: UInt64 = 4
  /// `VFIO_SPAPR_TCE_v2_IOMMU`.
  static let spaprTCEv2: UInt64 = 7
  /// `VFIO_NOIOMMU_IOMMU`.
  static let noIOMMU: UInt64 = 8
  /// `VFIO_UNMAP_ALL`.
  static let unmapAll: UInt64 = 9
}

/// `VFIO_IOMMU_INFO_*`, the flags of `struct vfio_iommu_type1_info`.
enum InfoFlag {
  /// `VFIO_IOMMU_INFO_PGSIZES`.
  static let pageSizes: UInt32 = 1
  /// `VFIO_IOMMU_INFO_CAPS`.
  static let capabilities: UInt32 = 2
}

/// `VFIO_IOMMU_TYPE1_INFO_*`, the capabilities behind `struct vfio_iommu_type1_info`.
enum InfoCapability {
  /// `VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`.
  static let iovaRange: UInt16 = 1
  /// `VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION`.
  static let migration: UInt16 = 2
  /// `VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL`.
  static let dmaAvailable: UInt16 = 3
}

/// `VFIO_DMA_MAP_FLAG_*` beside those of `DMAAccess`.
enum MapFlag {
  /// `VFIO_DMA_MAP_FLAG_VADDR`.
  static let virtualAddress: UInt32 = 4
  /// The two of `DMAAccess`, and this.
  static let all: UInt32 = 7
}

/// `VFIO_DMA_UNMAP_FLAG_*`.
enum UnmapFlag {
  /// `VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP`.
  static let getDirtyBitmap: UInt32 = 1
  /// `VFIO_DMA_UNMAP_FLAG_ALL`.
  static let all: UInt32 = 2
  /// `VFIO_DMA_UNMAP_FLAG_VADDR`, which belongs to `VFIO_UPDATE_VADDR`.
  static let virtualAddress: UInt32 = 4
}

/// `VFIO_IOMMU_DIRTY_PAGES_FLAG_*`; a request has exactly one.
enum DirtyPagesFlag {
  /// `VFIO_IOMMU_DIRTY_PAGES_FLAG_START`.
  static let start: UInt32 = 1
  /// `VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP`.
  static let stop: UInt32 = 2
  /// `VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP`.
  static let getBitmap: UInt32 = 4
}

/// `VFIO_IOMMU_SPAPR_INFO_*`, the flags of `struct vfio_iommu_spapr_tce_info`.
enum SPAPRInfoFlag {
  /// `VFIO_IOMMU_SPAPR_INFO_DDW`: windows can be made and removed.
  static let dynamicWindows: UInt32 = 1
}
