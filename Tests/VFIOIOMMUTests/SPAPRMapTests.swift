import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

@Suite struct SPAPRMapTests {
  @Test(arguments: SPAPRVersion.allCases)
  func `a map answers 0 and writes nothing back, an unmap returns its structure as it was`(
    version: SPAPRVersion
  ) throws {
    let source = TestSource()
    let iommu = try version.ready(source)
    #expect(try iommu.mapDMA(page, size: page, from: source) == OperationResult())
    let request = structure(.u32(24), .u32(0), .u64(page), .u64(4 * page))
    #expect(try iommu.perform(0x3B72, request) == OperationResult(structure: request))
  }

  @Test(arguments: SPAPRVersion.allCases, [4, 7, 8, 0x8000_0003] as [UInt32])
  func `an unknown flag fails with EINVAL, even outside the window`(
    version: SPAPRVersion, flags: UInt32
  ) throws {
    let iommu = try version.ready()
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(1 << 40, size: page, flags: flags) }
    #expect(throws: Errno.invalidArgument) { try iommu.unmapDMA(1 << 40, size: page, flags: 1) }
    #expect(throws: Errno.invalidArgument) { try iommu.unmapDMA(0, size: page, flags: 2) }
  }

  @Test(arguments: SPAPRVersion.allCases, [1 << 31, 1 << 40, 1 << 59, UInt64.max])
  func `an IOVA in no window fails with ENXIO, even unaligned or without permission`(
    version: SPAPRVersion, iova: UInt64
  ) throws {
    let iommu = try version.ready()
    #expect(throws: Errno.noSuchAddressOrDevice) { try iommu.mapDMA(iova, size: 1, flags: 0) }
    #expect(throws: Errno.noSuchAddressOrDevice) { try iommu.unmapDMA(iova, size: 1) }
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `no permission, or an unaligned IOVA, address or size fails with EINVAL`(
    version: SPAPRVersion
  ) throws {
    let iommu = try version.ready()
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: page, flags: 0) }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(1, size: page) }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: page, at: 0x800) }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: page + 1) }
    #expect(throws: Errno.invalidArgument) { try iommu.unmapDMA(1, size: page) }
    #expect(throws: Errno.invalidArgument) { try iommu.unmapDMA(0, size: page - 1) }
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `a range that ends outside the window fails with EINVAL`(version: SPAPRVersion) throws {
    let source = TestSource()
    let iommu = try version.ready(source)
    let last = (1 << 31) - page
    try iommu.mapDMA(last, size: page, from: source)
    try iommu.unmapDMA(last, size: page)
    for size in [2 * page, 1 << 40, UInt64.max - page + 1] {
      #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(last, size: size, from: source) }
      #expect(throws: Errno.invalidArgument) { try iommu.unmapDMA(last, size: size) }
    }
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `a size of 0 maps and unmaps nothing`(version: SPAPRVersion) throws {
    let iommu = try version.ready(TestSource(error: version == .v1 ? .badAddress : nil))
    try iommu.mapDMA(0, size: 0)
    #expect(throws: DMAFault(iova: 0, completed: 0)) { try iommu.dmaRead(0, count: 1) }
    try iommu.unmapDMA(0, size: 0)
  }

  @Test func `version 1 answers with what the source throws, and maps nothing then`() throws {
    let iommu = try SPAPRVersion.v1.ready()
    let source = TestSource(memory: TestMemory([1]), isReadOnly: true)
    #expect(throws: Errno.permissionDenied) { try iommu.mapDMA(0, size: page, from: source) }
    #expect(throws: Errno.badAddress) {
      try iommu.mapDMA(0, size: page, from: TestSource(error: .badAddress))
    }
    #expect(throws: DMAFault(iova: 0, completed: 0)) { try iommu.dmaRead(0, count: 1) }
    try iommu.mapDMA(0, size: page, flags: 1, from: source)
    #expect(try iommu.dmaRead(0, count: 1) == [1])
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `a transfer reaches the entry's place in its memory`(version: SPAPRVersion) throws {
    let source = TestSource(memory: TestMemory((0..<8 * page).map { UInt8($0 / page) }))
    let iommu = try version.ready(source, size: 8 * page)
    try iommu.mapDMA(0x10_0000, size: 4 * page, at: 2 * page, from: source)
    #expect(try iommu.dmaRead(0x10_0000, count: 1) == [2])
    #expect(try iommu.dmaRead(0x10_0000 + 2 * page - 1, count: 2) == [3, 4])
    try iommu.dmaWrite([9], to: 0x10_0000 + 4 * page - 1)
    #expect((source.memory as? TestMemory)?.bytes[Int(6 * page) - 1] == 9)
    #expect(throws: DMAFault(iova: 0x10_0000 + 4 * page, completed: 1)) {
      try iommu.dmaRead(0x10_0000 + 4 * page - 1, count: 2)
    }
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `a transfer without the entry's permission faults at its page`(version: SPAPRVersion) throws
  {
    let source = TestSource(memory: TestMemory(size: Int(2 * page)))
    let iommu = try version.ready(source, size: 2 * page)
    try iommu.mapDMA(0, size: page, flags: 1, from: source)
    try iommu.mapDMA(page, size: page, at: page, flags: 2, from: source)
    #expect(throws: DMAFault(iova: page, completed: 1)) { try iommu.dmaRead(page - 1, count: 2) }
    #expect(throws: DMAFault(iova: 5, completed: 0)) { try iommu.dmaWrite([1], to: 5) }
    try iommu.dmaWrite([1], to: page)
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `a map over entries replaces them`(version: SPAPRVersion) throws {
    let source = TestSource(memory: TestMemory((0..<4 * page).map { UInt8($0 / page + 1) }))
    let iommu = try version.ready(source, size: 4 * page)
    try iommu.mapDMA(0, size: 3 * page, from: source)
    try iommu.mapDMA(page, size: page, at: 3 * page, flags: 1, from: source)
    #expect(try iommu.dmaRead(page - 1, count: 2) == [1, 4])
    #expect(try iommu.dmaRead(2 * page - 1, count: 2) == [4, 3])
    #expect(throws: DMAFault(iova: page, completed: 0)) { try iommu.dmaWrite([0], to: page) }
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `an unmap takes any pages away, mapped or not, and splits what was mapped at once`(
    version: SPAPRVersion
  ) throws {
    let source = TestSource(memory: TestMemory(size: Int(8 * page)))
    let iommu = try version.ready(source, size: 8 * page)
    try iommu.mapDMA(0, size: 8 * page, from: source)
    try iommu.unmapDMA(2 * page, size: page)
    try iommu.unmapDMA(6 * page, size: 100 * page)
    #expect(throws: DMAFault(iova: 2 * page, completed: Int(2 * page))) {
      try iommu.dmaRead(0, count: Int(8 * page))
    }
    #expect(throws: DMAFault(iova: 6 * page, completed: Int(3 * page))) {
      try iommu.dmaRead(3 * page, count: Int(8 * page))
    }
    try iommu.unmapDMA(0, size: 1 << 31)
    #expect(throws: DMAFault(iova: 0, completed: 0)) { try iommu.dmaRead(0, count: 1) }
  }

  @Test func `version 1's memory goes with its last entry`() throws {
    let iommu = try SPAPRVersion.v1.ready()
    var source = TestSource(memory: TestMemory(size: Int(2 * page)))
    weak let memory = source.memory
    try iommu.mapDMA(0, size: 2 * page, from: source)
    try iommu.mapDMA(1 << 20, size: page, from: source)
    source.memory = TestMemory(size: 0)
    try iommu.unmapDMA(0, size: 2 * page)
    #expect(memory != nil)
    try iommu.mapDMA(1 << 20, size: page, from: source)
    #expect(memory == nil)
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `entries fail with ENOSPC beyond as many runs of 64 pages as mappings are allowed`(
    version: SPAPRVersion
  ) throws {
    let source = TestSource()
    let iommu = try version.ready(source, .mappings(3))
    let run = 64 * page
    try iommu.mapDMA(0, size: run + page, from: source)
    try iommu.mapDMA(10 * run, size: page, from: source)
    #expect(throws: Errno.noSpace) { try iommu.mapDMA(20 * run, size: page, from: source) }
    #expect(throws: Errno.noSpace) { try iommu.mapDMA(page, size: 2 * run, from: source) }
    #expect(throws: Errno.noSpace) { try iommu.mapDMA(0, size: 1 << 30, from: source) }
    try iommu.mapDMA(10 * run, size: run, from: source)
    try iommu.unmapDMA(0, size: run)
    try iommu.mapDMA(20 * run, size: page, from: source)
  }
}
