import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

@Suite struct NoIOMMUTests {
  @Test func `the driver is called noiommu, and is for groups without an IOMMU`() {
    #expect(NoIOMMUDriver().name == "noiommu")
    #expect(NoIOMMUDriver().isForGroupsWithoutIOMMU)
  }

  @Test func `its type is its only extension, before and after it is set`() throws {
    let iommu = try NoIOMMUDriver().open(8, .pc)
    for number: UInt64 in [0, 1, 2, 3, 4, 5, 7, 9, UInt64.max] {
      #expect(NoIOMMUDriver().checkExtension(number) == 0)
      #expect(iommu.checkExtension(number) == 0)
    }
    #expect(NoIOMMUDriver().checkExtension(8) == 1)
    #expect(iommu.checkExtension(8) == 1)
  }

  @Test(arguments: [0, 1, 3, 7, 9, UInt64.max])
  func `opening another type fails with EINVAL`(type: UInt64) {
    #expect(throws: Errno.invalidArgument) { try NoIOMMUDriver().open(type, .pc) }
  }

  @Test func `every operation fails with ENOTTY`() throws {
    let iommu = try NoIOMMUDriver().open(8, .pc)
    #expect(throws: Errno.inappropriateIOCTLForDevice) { try iommu.mapDMA(0, size: page) }
    #expect(throws: Errno.inappropriateIOCTLForDevice) { try iommu.unmapDMA(0, size: page) }
    for command: UInt32 in [0, 0x3B70, 0x3B73, 0x3B75, 0x3B79, UInt32.max] {
      #expect(throws: Errno.inappropriateIOCTLForDevice) { try iommu.perform(command, []) }
    }
    #expect(throws: Errno.inappropriateIOCTLForDevice) {
      try iommu.map(
        DMAMapping(iova: 0, size: page, offset: 0, access: .read, owner: DMAOwner(number: 1)),
        from: TestSource())
    }
  }

  @Test(arguments: [0, page, UInt64.max])
  func `without physical memory every transfer faults`(iova: UInt64) throws {
    let iommu = try NoIOMMUDriver().open(8, .pc)
    #expect(throws: DMAFault(iova: iova, completed: 0)) { try iommu.dmaRead(iova, count: 1) }
    #expect(throws: DMAFault(iova: iova, completed: 0)) { try iommu.dmaWrite([1], to: iova) }
  }

  @Test func `with physical memory a transfer reaches the byte of its address, up to the end`()
    throws
  {
    let memory = TestMemory(size: Int(page))
    let driver = NoIOMMUDriver(physicalMemory: PhysicalMemory(memory, size: page))
    let iommu = try driver.open(8, .pc)
    try iommu.dmaWrite([1, 2, 3], to: 0x10)
    #expect(memory.bytes[0x10...0x12] == [1, 2, 3])
    #expect(try iommu.dmaRead(0x11, count: 2) == [2, 3])
    #expect(throws: DMAFault(iova: page, completed: 2)) {
      try iommu.dmaWrite([8, 9, 9], to: page - 2)
    }
    #expect(memory.bytes.suffix(2) == [8, 9])
    #expect(throws: DMAFault(iova: page, completed: 1)) { try iommu.dmaRead(page - 1, count: 9) }
    #expect(throws: DMAFault(iova: page, completed: 0)) { try iommu.dmaRead(page, count: 1) }
    #expect(throws: DMAFault(iova: UInt64.max, completed: 0)) {
      try iommu.dmaRead(UInt64.max, count: 2)
    }
  }

  @Test func `physical memory that was truncated faults`() throws {
    let memory = TestMemory(size: Int(page))
    let driver = NoIOMMUDriver(physicalMemory: PhysicalMemory(memory, size: page))
    let iommu = try driver.open(8, .pc)
    memory.truncate(to: 4)
    #expect(throws: DMAFault(iova: 8, completed: 0)) { try iommu.dmaRead(8, count: 1) }
    #expect(throws: DMAFault(iova: 8, completed: 0)) { try iommu.dmaWrite([1], to: 8) }
  }
}
