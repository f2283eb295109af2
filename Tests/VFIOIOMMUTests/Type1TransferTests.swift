import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

@Suite struct Type1TransferTests {
  @Test(arguments: Version.allCases)
  func `a transfer reaches the mapping's place in its memory`(version: Version) throws {
    let iommu = try version.open()
    let memory = TestMemory(size: Int(4 * page))
    try iommu.mapDMA(0x10_0000, size: page, at: 2 * page, from: TestSource(memory: memory))
    try iommu.dmaWrite([1, 2, 3], to: 0x10_0010)
    #expect(memory.bytes[0x2010..<0x2013] == [1, 2, 3])
    #expect(try iommu.dmaRead(0x10_000F, count: 5) == [0, 1, 2, 3, 0])
  }

  @Test(arguments: Version.allCases)
  func `a transfer crosses mappings that touch, whatever their memory`(version: Version) throws {
    let iommu = try version.open()
    let first = TestMemory([UInt8](repeating: 1, count: Int(page)))
    let second = TestMemory([UInt8](repeating: 2, count: Int(page)))
    try iommu.mapDMA(page, size: page, from: TestSource(memory: second))
    try iommu.mapDMA(0, size: page, from: TestSource(memory: first))
    #expect(try iommu.dmaRead(page - 2, count: 4) == [1, 1, 2, 2])
    try iommu.dmaWrite([7, 8], to: page - 1)
    #expect(first.bytes.last == 7)
    #expect(second.bytes.first == 8)
  }

  @Test(arguments: Version.allCases)
  func `a hole faults at its first address after what was before it`(version: Version) throws {
    let iommu = try version.open()
    let memory = TestMemory(size: Int(4 * page))
    try iommu.mapDMA(0, size: page, from: TestSource(memory: memory))
    try iommu.mapDMA(2 * page, size: page, from: TestSource(memory: memory))
    #expect(throws: DMAFault(iova: page, completed: 3)) { try iommu.dmaRead(page - 3, count: 8) }
    #expect(throws: DMAFault(iova: page, completed: 2)) {
      try iommu.dmaWrite([5, 6, 7], to: page - 2)
    }
    #expect(memory.bytes[Int(page) - 2..<Int(page)] == [5, 6])
    #expect(throws: DMAFault(iova: page + 1, completed: 0)) {
      try iommu.dmaRead(page + 1, count: 1)
    }
  }

  @Test(arguments: Version.allCases)
  func `a mapping without the permission faults`(version: Version) throws {
    let iommu = try version.open()
    let source = TestSource(memory: TestMemory(size: Int(page)))
    try iommu.mapDMA(0, size: page, flags: 1, from: source)
    try iommu.mapDMA(page, size: page, flags: 2, from: source)
    #expect(throws: DMAFault(iova: 4, completed: 0)) { try iommu.dmaWrite([1], to: 4) }
    #expect(throws: DMAFault(iova: page, completed: 1)) { try iommu.dmaRead(page - 1, count: 2) }
    #expect(throws: DMAFault(iova: page - 1, completed: 0)) {
      try iommu.dmaWrite([1, 2], to: page - 1)
    }
    try iommu.dmaWrite([1], to: page)
  }

  @Test(arguments: Version.allCases)
  func `memory that was truncated faults at the first page that is gone`(version: Version) throws {
    let iommu = try version.open()
    let memory = TestMemory([UInt8](repeating: 9, count: Int(64 * page)))
    try iommu.mapDMA(0, size: 64 * page, from: TestSource(memory: memory))
    memory.truncate(to: Int(21 * page))
    #expect(throws: DMAFault(iova: 21 * page, completed: Int(21 * page) - 100)) {
      try iommu.dmaRead(100, count: Int(40 * page))
    }
    #expect(throws: DMAFault(iova: 21 * page, completed: 1)) {
      try iommu.dmaWrite([1, 2], to: 21 * page - 1)
    }
    #expect(try iommu.dmaRead(21 * page - 1, count: 1) == [1])
  }

  @Test(arguments: Version.allCases)
  func `a transfer that goes on behind 2^64 faults there`(version: Version) throws {
    let iommu = try version.open(.all)
    let source = TestSource(memory: TestMemory(size: Int(page)))
    try iommu.mapDMA(lastPage, size: page, from: source)
    try iommu.mapDMA(0, size: page, from: source)
    #expect(throws: DMAFault(iova: 0, completed: 2)) {
      try iommu.dmaRead(UInt64.max - 1, count: 4)
    }
    #expect(throws: DMAFault(iova: 0, completed: 1)) {
      try iommu.dmaWrite([1, 2], to: UInt64.max)
    }
  }

  @Test(arguments: Version.allCases)
  func `a transfer of no bytes never faults`(version: Version) throws {
    let iommu = try version.open()
    #expect(try iommu.dmaRead(UInt64.max, count: 0) == [])
    try iommu.dmaWrite([], to: 0)
  }

  @Test(arguments: Version.allCases)
  func `a transfer larger than what is copied at a time arrives whole`(version: Version) throws {
    let iommu = try version.open()
    let size = 3 * 65536 + 4096
    let memory = TestMemory(size: size)
    try iommu.mapDMA(0, size: UInt64(size), from: TestSource(memory: memory))
    let bytes = (0..<size - 77).map { UInt8(truncatingIfNeeded: $0 * 31 >> 3) }
    try iommu.dmaWrite(bytes, to: 77)
    #expect(Array(memory.bytes.dropFirst(77)) == bytes)
    #expect(try iommu.dmaRead(77, count: bytes.count) == bytes)
  }
}
