import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

/// `VFIO_UPDATE_VADDR`, which isn't there: as in the kernel, where devices are emulated.
@Suite struct Type1UpdateAddressTests {
  private let flag: UInt32 = 4

  @Test(arguments: Version.allCases)
  func `no address can be declared invalid: EBUSY, whatever the range`(version: Version) throws {
    let iommu = try version.open()
    try iommu.mapDMA(0, size: page)
    #expect(throws: Errno.resourceBusy) { try iommu.unmapDMA(0, size: page, flags: flag) }
    #expect(throws: Errno.resourceBusy) { try iommu.unmapDMA(1, size: 0, flags: flag) }
    #expect(throws: Errno.resourceBusy) { try iommu.unmapDMA(0, size: 0, flags: flag | 2) }
    #expect(try iommu.availableMappings == 65534)
  }

  @Test(arguments: Version.allCases)
  func `a new address for what isn't mapped fails with ENOENT, for what is with EINVAL`(
    version: Version
  ) throws {
    let iommu = try version.open()
    #expect(throws: Errno.noSuchFileOrDirectory) {
      try iommu.mapDMA(0, size: page, flags: flag)
    }
    try iommu.mapDMA(page, size: page)
    #expect(throws: Errno.noSuchFileOrDirectory) {
      try iommu.mapDMA(0, size: page, flags: flag)
    }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(page, size: page, flags: flag) }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: 9 * page, flags: flag) }
    #expect(try iommu.availableMappings == 65534)
  }

  @Test(arguments: Version.allCases)
  func `a new address meets a map's checks first`(version: Version) throws {
    let iommu = try version.open()
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: 0, flags: flag) }
    #expect(throws: Errno.overflow) { try iommu.mapDMA(lastPage, size: 2 * page, flags: flag) }
    #expect(throws: Errno.overflow) {
      try iommu.mapDMA(0, size: 2 * page, at: lastPage, flags: flag)
    }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(1, size: page, flags: flag) }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: page, flags: flag | 1) }
  }
}
