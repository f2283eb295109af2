import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

@Suite struct Type1MapTests {
  @Test(arguments: Version.allCases)
  func `a map answers 0 and writes nothing back`(version: Version) throws {
    #expect(try version.open().mapDMA(page, size: page) == OperationResult())
  }

  @Test(arguments: Version.allCases, [0, 5, 6, 7, 8, 0x8000_0003] as [UInt32])
  func `no permission or an unknown flag fails with EINVAL`(version: Version, flags: UInt32) throws
  {
    let iommu = try version.open()
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: page, flags: flags) }
  }

  @Test(arguments: Version.allCases)
  func `a size of 0 fails with EINVAL`(version: Version) throws {
    let iommu = try version.open()
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: 0) }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(UInt64.max, size: 0) }
  }

  @Test(arguments: Version.allCases)
  func `an IOVA that wraps fails with EOVERFLOW, even unaligned or without permission`(
    version: Version
  ) throws {
    let iommu = try version.open(.all)
    #expect(throws: Errno.overflow) { try iommu.mapDMA(lastPage, size: 2 * page) }
    #expect(throws: Errno.overflow) { try iommu.mapDMA(UInt64.max, size: 2) }
    #expect(throws: Errno.overflow) { try iommu.mapDMA(2, size: UInt64.max) }
    #expect(throws: Errno.overflow) { try iommu.mapDMA(lastPage, size: 2 * page, flags: 0) }
  }

  @Test(arguments: Version.allCases)
  func `an address that wraps fails with EOVERFLOW`(version: Version) throws {
    let iommu = try version.open()
    #expect(throws: Errno.overflow) { try iommu.mapDMA(0, size: 2 * page, at: lastPage) }
  }

  @Test(arguments: Version.allCases)
  func `an unaligned IOVA, address or size fails with EINVAL`(version: Version) throws {
    let iommu = try version.open()
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(1, size: page) }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: page, at: 0x800) }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: page + 1) }
  }

  @Test(arguments: Version.allCases)
  func `a map that overlaps another fails with EEXIST`(version: Version) throws {
    let iommu = try version.open()
    try iommu.mapDMA(4 * page, size: 4 * page)
    for (iova, size) in [(4, 4), (4, 1), (7, 1), (3, 2), (7, 2), (0, 100)] as [(UInt64, UInt64)] {
      #expect(throws: Errno.fileExists) { try iommu.mapDMA(iova * page, size: size * page) }
    }
    try iommu.mapDMA(3 * page, size: page)
    try iommu.mapDMA(8 * page, size: page)
  }

  @Test(arguments: Version.allCases)
  func `one mapping more than the limit fails with ENOSPC until another goes`(
    version: Version
  ) throws {
    let iommu = try version.open(IOMMULimits(apertures: [0...UInt64.max], mappings: 2))
    try iommu.mapDMA(0, size: page)
    try iommu.mapDMA(page, size: page)
    #expect(try iommu.availableMappings == 0)
    #expect(throws: Errno.noSpace) { try iommu.mapDMA(2 * page, size: page) }
    #expect(throws: Errno.fileExists) { try iommu.mapDMA(page, size: page) }
    try iommu.unmapDMA(0, size: page)
    #expect(try iommu.availableMappings == 1)
    try iommu.mapDMA(2 * page, size: page)
  }

  @Test(arguments: Version.allCases)
  func `a map outside the IOVA ranges, or across two, fails with EINVAL`(version: Version) throws {
    let iommu = try version.open()
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0xFEE0_0000, size: page) }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0xFEDF_F000, size: 2 * page) }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0xFEDF_F000, size: 0x20_0000) }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(1 << 48, size: page) }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(lastPage, size: page) }
  }

  @Test(arguments: Version.allCases)
  func `the first and last page of each IOVA range can be mapped and unmapped`(
    version: Version
  ) throws {
    let iommu = try version.open()
    for iova in [0, 0xFEDF_F000, 0xFEF0_0000, 0xFFFF_FFFF_F000] as [UInt64] {
      try iommu.mapDMA(iova, size: page)
      #expect(try iommu.unmapDMA(iova, size: page) == page)
    }
  }

  @Test(arguments: Version.allCases)
  func `the last page of a 64-bit address space can be mapped, used and unmapped`(
    version: Version
  ) throws {
    let iommu = try version.open(.all)
    let memory = TestMemory(size: Int(page))
    try iommu.mapDMA(lastPage, size: page, from: TestSource(memory: memory))
    #expect(throws: Errno.fileExists) { try iommu.mapDMA(lastPage - page, size: 2 * page) }
    try iommu.dmaWrite([1, 2], to: UInt64.max - 1)
    #expect(memory.bytes.suffix(2) == [1, 2])
    #expect(try iommu.unmapDMA(lastPage, size: page) == page)
  }

  @Test(arguments: Version.allCases)
  func `a source's error is the answer, and nothing stays mapped`(version: Version) throws {
    let iommu = try version.open()
    #expect(throws: Errno.badAddress) {
      try iommu.mapDMA(0, size: page, from: TestSource(error: .badAddress))
    }
    #expect(throws: Errno.permissionDenied) {
      try iommu.mapDMA(0, size: page, flags: 2, from: TestSource(isReadOnly: true))
    }
    try iommu.mapDMA(0, size: page, flags: 1, from: TestSource(isReadOnly: true))
    #expect(try iommu.availableMappings == 65534)
  }

  @Test(arguments: Version.allCases)
  func `the driver's own checks come before the source is asked`(version: Version) throws {
    let iommu = try version.open()
    let source = TestSource(error: .ioError)
    try iommu.mapDMA(0, size: page)
    #expect(throws: Errno.fileExists) { try iommu.mapDMA(0, size: page, from: source) }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(1 << 48, size: page, from: source) }
  }

  @Test(arguments: Version.allCases)
  func `60,000 mappings live at a time and every one is found`(version: Version) throws {
    let iommu = try version.open()
    let memory = TestMemory((0..<251).flatMap { [UInt8](repeating: $0, count: Int(page)) })
    let source = TestSource(memory: memory)
    let order = (0..<60_000 as Range<UInt64>).map { $0 * 7919 % 60_000 }
    for index in order {
      try iommu.mapDMA(index * 2 * page, size: page, at: index % 251 * page, from: source)
    }
    #expect(try iommu.availableMappings == 5_535)
    var wrong = 0
    for index in order
    where try iommu.dmaRead(index * 2 * page + 9, count: 1) != [UInt8(index % 251)] {
      wrong += 1
    }
    #expect(wrong == 0)
    #expect(throws: DMAFault(iova: page, completed: 0)) { try iommu.dmaRead(page, count: 1) }
    #expect(try iommu.unmapDMA(0, size: 0, flags: 2) == 60_000 * page)
    #expect(try iommu.availableMappings == 65_535)
  }
}
