import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

@Suite struct Type1UnmapTests {
  @Test(arguments: Version.allCases)
  func `an unmap writes the structure back with the bytes unmapped as its size`(
    version: Version
  ) throws {
    let iommu = try version.open()
    try iommu.mapDMA(2 * page, size: 3 * page)
    let request = structure(.u32(40), .u32(0), .u64(0), .u64(16 * page))
    let result = try iommu.perform(0x3B72, request + [1, 2, 3])
    #expect(
      result
        == OperationResult(structure: structure(.u32(40), .u32(0), .u64(0), .u64(3 * page))))
  }

  @Test(arguments: Version.allCases)
  func `unmapping a hole succeeds with size 0`(version: Version) throws {
    let iommu = try version.open()
    #expect(try iommu.unmapDMA(0, size: page) == 0)
    try iommu.mapDMA(page, size: page)
    #expect(try iommu.unmapDMA(0, size: page) == 0)
    #expect(try iommu.unmapDMA(2 * page, size: 8 * page) == 0)
  }

  @Test(arguments: Version.allCases)
  func `one unmap takes several whole mappings and the holes between them`(
    version: Version
  ) throws {
    let iommu = try version.open()
    for iova in [1, 2, 5] as [UInt64] { try iommu.mapDMA(iova * page, size: page) }
    try iommu.mapDMA(8 * page, size: page)
    #expect(try iommu.unmapDMA(0, size: 8 * page) == 3 * page)
    #expect(try iommu.unmapDMA(0, size: 16 * page) == page)
  }

  @Test func `v2 refuses to split a mapping with EINVAL and unmaps nothing`() throws {
    let iommu = try Version.v2.open()
    try iommu.mapDMA(0, size: page)
    try iommu.mapDMA(4 * page, size: 4 * page)
    for (iova, size) in [(4, 1), (5, 1), (7, 1), (0, 5), (5, 10), (6, 2)] as [(UInt64, UInt64)] {
      #expect(throws: Errno.invalidArgument) {
        try iommu.unmapDMA(iova * page, size: size * page)
      }
    }
    #expect(try iommu.unmapDMA(0, size: 8 * page) == 5 * page)
  }

  @Test func `v1 unmaps the whole of a mapping that begins in the range and ends behind it`() throws
  {
    let iommu = try Version.v1.open()
    try iommu.mapDMA(4 * page, size: 4 * page)
    #expect(try iommu.unmapDMA(2 * page, size: 3 * page) == 4 * page)
    #expect(throws: DMAFault.self) { try iommu.dmaRead(7 * page, count: 1) }
  }

  @Test func `v1 unmaps nothing in a range that begins inside a mapping`() throws {
    let iommu = try Version.v1.open()
    try iommu.mapDMA(4 * page, size: 4 * page)
    try iommu.mapDMA(8 * page, size: page)
    #expect(try iommu.unmapDMA(5 * page, size: 8 * page) == 0)
    #expect(try iommu.availableMappings == 65533)
  }

  @Test(arguments: Version.allCases)
  func `a size of 0 or an unaligned IOVA or size fails with EINVAL`(version: Version) throws {
    let iommu = try version.open()
    #expect(throws: Errno.invalidArgument) { try iommu.unmapDMA(0, size: 0) }
    #expect(throws: Errno.invalidArgument) { try iommu.unmapDMA(1, size: page) }
    #expect(throws: Errno.invalidArgument) { try iommu.unmapDMA(0, size: page + 1) }
  }

  @Test(arguments: Version.allCases)
  func `an unmap that wraps fails with EOVERFLOW, but with EINVAL if it is unaligned`(
    version: Version
  ) throws {
    let iommu = try version.open(.all)
    #expect(throws: Errno.overflow) { try iommu.unmapDMA(lastPage, size: 2 * page) }
    #expect(throws: Errno.invalidArgument) { try iommu.unmapDMA(lastPage + 1, size: 2 * page) }
    #expect(throws: Errno.invalidArgument) { try iommu.unmapDMA(lastPage, size: UInt64.max) }
  }

  @Test(arguments: Version.allCases, [3, 5, 7, 8, 0x8000_0000] as [UInt32])
  func `unknown flags, and flags that exclude one another, fail with EINVAL`(
    version: Version, flags: UInt32
  ) throws {
    let iommu = try version.open()
    #expect(throws: Errno.invalidArgument) {
      try iommu.unmapWithBitmap(0, size: flags & 2 == 0 ? page : 0, flags: flags)
    }
  }

  @Test(arguments: Version.allCases)
  func `unmapping all returns the total size, and 0 the second time`(version: Version) throws {
    let iommu = try version.open(.all)
    try iommu.mapDMA(0, size: 3 * page)
    try iommu.mapDMA(1 << 40, size: 1 << 40)
    try iommu.mapDMA(lastPage, size: page)
    #expect(try iommu.unmapDMA(0, size: 0, flags: 2) == (1 << 40) + 4 * page)
    #expect(try iommu.unmapDMA(0, size: 0, flags: 2) == 0)
    #expect(try iommu.availableMappings == 65535)
  }

  @Test(arguments: Version.allCases)
  func `unmapping all with an IOVA or a size fails with EINVAL`(version: Version) throws {
    let iommu = try version.open()
    try iommu.mapDMA(0, size: page)
    #expect(throws: Errno.invalidArgument) { try iommu.unmapDMA(page, size: 0, flags: 2) }
    #expect(throws: Errno.invalidArgument) { try iommu.unmapDMA(0, size: page, flags: 2) }
    #expect(try iommu.availableMappings == 65534)
  }

  @Test(arguments: Version.allCases)
  func `all of a 64-bit address space in two mappings unmaps with a size that wraps to 0`(
    version: Version
  ) throws {
    let iommu = try version.open(.all)
    try iommu.mapDMA(0, size: 1 << 63)
    try iommu.mapDMA(1 << 63, size: 1 << 63)
    #expect(try iommu.unmapDMA(0, size: 0, flags: 2) == 0)
    #expect(try iommu.availableMappings == 65535)
  }

  @Test(arguments: Version.allCases)
  func `mappings unmap one by one from the last to the first`(version: Version) throws {
    let iommu = try version.open()
    for index in 0..<2_000 as Range<UInt64> { try iommu.mapDMA(index * page, size: page) }
    for index in (0..<2_000 as Range<UInt64>).reversed() {
      #expect(try iommu.unmapDMA(index * page, size: page) == page)
    }
    #expect(try iommu.availableMappings == 65535)
  }

  @Test(arguments: Version.allCases)
  func `after release every transfer faults and the memory is let go`(version: Version) throws {
    let iommu = try version.open()
    weak var memory: TestMemory?
    do {
      let mapped = TestMemory(size: Int(page))
      memory = mapped
      try iommu.mapDMA(0, size: page, from: TestSource(memory: mapped))
    }
    #expect(memory != nil)
    iommu.release()
    #expect(memory == nil)
    #expect(throws: DMAFault(iova: 8, completed: 0)) { try iommu.dmaRead(8, count: 1) }
    #expect(throws: DMAFault(iova: 8, completed: 0)) { try iommu.dmaWrite([1], to: 8) }
  }
}
