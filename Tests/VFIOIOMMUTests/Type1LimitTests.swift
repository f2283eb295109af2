import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

@Suite struct Type1LimitTests {
  private func limits(
    mappings: Int = 65535, lockedMemory: UInt64? = nil, bitmapSize: Int = 256 << 20
  ) -> IOMMULimits {
    IOMMULimits(
      apertures: [0...UInt64.max], mappings: mappings, lockedMemory: lockedMemory,
      bitmapSize: bitmapSize)
  }

  @Test(arguments: Version.allCases)
  func `mapping more memory than may be locked fails with ENOMEM`(version: Version) throws {
    let iommu = try version.open(limits(lockedMemory: 4 * page))
    try iommu.mapDMA(0, size: 3 * page)
    #expect(throws: Errno.noMemory) { try iommu.mapDMA(8 * page, size: 2 * page) }
    try iommu.mapDMA(8 * page, size: page)
    #expect(throws: Errno.noMemory) { try iommu.mapDMA(16 * page, size: page) }
    #expect(try iommu.availableMappings == 65533)
  }

  @Test(arguments: Version.allCases)
  func `every way of unmapping gives locked memory back`(version: Version) throws {
    let iommu = try version.open(limits(lockedMemory: 2 * page))
    let owner = DMAOwner(number: 1)
    let mapping = DMAMapping(iova: 0, size: 2 * page, offset: 0, access: .read, owner: owner)
    let ways: [() throws -> Void] = [
      { try iommu.unmapDMA(0, size: 2 * page) }, { try iommu.unmapDMA(0, size: 0, flags: 2) },
      { try iommu.unmap(iova: 0, size: 2 * page, owner: owner) },
      { iommu.unmapAll(owner: owner) }, { iommu.release() },
    ]
    for unmap in ways {
      try iommu.map(mapping, from: TestSource())
      #expect(throws: Errno.noMemory) { try iommu.mapDMA(2 * page, size: page) }
      try unmap()
    }
    try iommu.mapDMA(0, size: 2 * page)
  }

  @Test(arguments: Version.allCases)
  func `a part of a page that may be locked is none`(version: Version) throws {
    let iommu = try version.open(limits(lockedMemory: 2 * page - 1))
    try iommu.mapDMA(0, size: page)
    #expect(throws: Errno.noMemory) { try iommu.mapDMA(page, size: page) }
  }

  @Test(arguments: Version.allCases)
  func `memory that is mapped twice is locked twice`(version: Version) throws {
    let iommu = try version.open(limits(lockedMemory: 2 * page))
    let source = TestSource(memory: TestMemory(size: 0))
    try iommu.mapDMA(0, size: page, from: source)
    try iommu.mapDMA(page, size: page, from: source)
    #expect(throws: Errno.noMemory) { try iommu.mapDMA(2 * page, size: page, from: source) }
  }

  @Test(arguments: Version.allCases)
  func `without a limit all of a 64-bit address space may be mapped`(version: Version) throws {
    let iommu = try version.open(limits())
    try iommu.mapDMA(0, size: 1 << 63)
    try iommu.mapDMA(1 << 63, size: 1 << 63)
  }

  @Test(arguments: Version.allCases)
  func `overlap, number, aperture and memory are checked before locked memory`(
    version: Version
  ) throws {
    var limits = limits(mappings: 2, lockedMemory: page)
    limits.apertures = [0...0xF_FFFF]
    let iommu = try version.open(limits)
    try iommu.mapDMA(0, size: page)
    #expect(throws: Errno.fileExists) { try iommu.mapDMA(0, size: 2 * page) }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0x10_0000, size: 2 * page) }
    #expect(throws: Errno.badAddress) {
      try iommu.mapDMA(page, size: page, from: TestSource(error: .badAddress))
    }
    #expect(throws: Errno.noMemory) { try iommu.mapDMA(page, size: page) }
    try iommu.unmapDMA(0, size: page)
    limits.mappings = 0
    #expect(throws: Errno.noSpace) { try version.open(limits).mapDMA(0x10_0000, size: page) }
  }

  @Test func `a bitmap larger than an answer may be fails with ENOMEM and reports nothing`() throws
  {
    let iommu = try Version.v2.open(limits(bitmapSize: 16))
    try iommu.mapDMA(
      0, size: 256 * page, from: TestSource(memory: TestMemory(size: Int(page))))
    try iommu.dirtyPages(flags: 1)
    try iommu.dmaWrite([1], to: 0)
    #expect(throws: Errno.noMemory) { try iommu.dirtyBitmap(0, size: 256 * page) }
    #expect(throws: Errno.noMemory) {
      try iommu.unmapWithBitmap(0, size: 256 * page, bitmapSize: 32)
    }
    try iommu.unmapDMA(0, size: 256 * page)
    try iommu.mapDMA(0, size: 128 * page, from: TestSource(memory: TestMemory(size: Int(page))))
    try iommu.dmaWrite([1], to: 0)
    #expect(try iommu.dirtyBitmap(0, size: 128 * page).first == 1)
  }
}
