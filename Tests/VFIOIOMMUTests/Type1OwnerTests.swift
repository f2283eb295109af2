import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

private let first = DMAOwner(number: 1)
private let second = DMAOwner(number: 2)

extension IOMMU {
  fileprivate func map(
    _ iova: UInt64, size: UInt64, offset: UInt64 = 0, access: DMAAccess = [.read, .write],
    owner: DMAOwner = first, _ memory: TestMemory = TestMemory(size: 0)
  ) throws(Errno) {
    try map(
      DMAMapping(
        iova: iova, size: size, offset: offset, access: access, owner: owner),
      from: TestSource(memory: memory))
  }
}

@Suite struct Type1OwnerTests {
  @Test(arguments: Version.allCases)
  func `a device socket's map meets the same checks`(version: Version) throws {
    let iommu = try version.open(IOMMULimits(apertures: [0...0xF_FFFF], mappings: 1))
    #expect(throws: Errno.invalidArgument) { try iommu.map(0, size: 0) }
    #expect(throws: Errno.invalidArgument) { try iommu.map(1, size: page) }
    #expect(throws: Errno.invalidArgument) { try iommu.map(0, size: page, offset: 1) }
    #expect(throws: Errno.invalidArgument) { try iommu.map(0, size: page, access: []) }
    #expect(throws: Errno.invalidArgument) {
      try iommu.map(0, size: page, access: DMAAccess(rawValue: 9))
    }
    #expect(throws: Errno.invalidArgument) { try iommu.map(0x10_0000, size: page) }
    #expect(throws: Errno.overflow) { try iommu.map(lastPage, size: 2 * page) }
    #expect(throws: Errno.overflow) { try iommu.map(0, size: 2 * page, offset: lastPage) }
    try iommu.map(0, size: page)
    #expect(throws: Errno.fileExists) { try iommu.map(0, size: page) }
    #expect(throws: Errno.noSpace) { try iommu.map(page, size: page) }
  }

  @Test(arguments: Version.allCases)
  func `a device socket unmaps exactly what it mapped, else ENOENT`(version: Version) throws {
    let iommu = try version.open()
    try iommu.map(4 * page, size: 2 * page)
    try iommu.mapDMA(8 * page, size: page)
    for (iova, size, owner) in [
      (4, 1, first), (5, 1, first), (4, 3, first), (3, 3, first), (4, 0, first), (0, 1, first),
      (4, 2, second), (8, 1, first), (4, 2, .container),
    ] as [(UInt64, UInt64, DMAOwner)] {
      #expect(throws: Errno.noSuchFileOrDirectory) {
        try iommu.unmap(iova: iova * page, size: size * page, owner: owner)
      }
    }
    #expect(throws: Errno.noSuchFileOrDirectory) {
      try iommu.unmap(iova: UInt64.max, size: UInt64.max, owner: first)
    }
    try iommu.unmap(iova: 4 * page, size: 2 * page, owner: first)
    #expect(try iommu.availableMappings == 65534)
  }

  @Test(arguments: Version.allCases)
  func `a container unmaps whatever is mapped, whoever did it`(version: Version) throws {
    let iommu = try version.open()
    try iommu.map(0, size: page, TestMemory(size: Int(page)))
    #expect(try iommu.unmapDMA(0, size: page) == page)
    #expect(try iommu.availableMappings == 65535)
    #expect(throws: Errno.noSuchFileOrDirectory) {
      try iommu.unmap(iova: 0, size: page, owner: first)
    }
  }

  @Test(arguments: Version.allCases)
  func `unmapping all of one owner leaves what others mapped`(version: Version) throws {
    let iommu = try version.open()
    let memory = TestMemory(size: Int(page))
    try iommu.mapDMA(0, size: page, from: TestSource(memory: memory))
    try iommu.map(page, size: page, owner: second, memory)
    try iommu.map(2 * page, size: 4 * page, memory)
    #expect(iommu.unmapAll(owner: first) == 4 * page)
    #expect(iommu.unmapAll(owner: first) == 0)
    try iommu.dmaWrite([1], to: 0)
    try iommu.dmaWrite([1], to: page)
    #expect(throws: DMAFault(iova: 2 * page, completed: 0)) {
      try iommu.dmaWrite([1], to: 2 * page)
    }
    #expect(iommu.unmapAll(owner: second) == page)
    #expect(iommu.unmapAll(owner: .container) == page)
    #expect(try iommu.availableMappings == 65535)
  }

  @Test func `a mapping that a device socket removed leaves no dirty pages`() throws {
    let iommu = try Version.v2.open()
    try iommu.dirtyPages(flags: 1)
    try iommu.map(0, size: page, TestMemory(size: Int(page)))
    try iommu.dmaWrite([1], to: 0)
    try iommu.unmap(iova: 0, size: page, owner: first)
    try iommu.map(0, size: page)
    #expect(try iommu.dirtyBitmap(0, size: page) == [UInt8](repeating: 0, count: 8))
  }
}
