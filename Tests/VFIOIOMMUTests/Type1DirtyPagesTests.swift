import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

@Suite struct Type1DirtyPagesTests {
  private func tracking(_ limits: IOMMULimits = .all, pages: UInt64 = 256) throws -> any IOMMU {
    let iommu = try Version.v2.open(limits)
    let memory = TestMemory(size: Int(pages * page))
    try iommu.mapDMA(0, size: pages * page, from: TestSource(memory: memory))
    try iommu.dirtyPages(flags: 1)
    return iommu
  }

  @Test func `v1 answers EACCES, even to a short structure`() throws {
    let iommu = try Version.v1.open()
    #expect(throws: Errno.permissionDenied) { try iommu.dirtyPages(flags: 1) }
    #expect(throws: Errno.permissionDenied) { try iommu.perform(0x3B75, []) }
  }

  @Test(arguments: [0, 3, 5, 6, 7, 8, 9] as [UInt32])
  func `other than exactly one known flag fails with EINVAL`(flags: UInt32) throws {
    let iommu = try Version.v2.open()
    #expect(throws: Errno.invalidArgument) { try iommu.dirtyPages(flags: flags, argsz: 48) }
  }

  @Test func `a short structure or argsz fails with EINVAL`() throws {
    let iommu = try tracking()
    for length in 0..<8 {
      let argument = Array(structure(.u32(48), .u32(1)).prefix(length))
      #expect(throws: Errno.invalidArgument) { try iommu.perform(0x3B75, argument) }
    }
    #expect(throws: Errno.invalidArgument) { try iommu.dirtyPages(flags: 1, argsz: 7) }
    #expect(throws: Errno.invalidArgument) { try iommu.dirtyPages(flags: 4, argsz: 48) }
    #expect(throws: Errno.invalidArgument) { try iommu.dirtyBitmap(0, size: 256 * page, argsz: 47) }
  }

  @Test func `starting twice and stopping twice succeed`() throws {
    let iommu = try tracking()
    try iommu.dmaWrite([1], to: 0)
    #expect(try iommu.dirtyPages(flags: 1) == OperationResult())
    #expect(try iommu.dirtyBitmap(0, size: 256 * page).first == 1)
    #expect(try iommu.dirtyPages(flags: 2) == OperationResult())
    try iommu.dirtyPages(flags: 2)
  }

  @Test func `a bitmap while tracking is off fails with EINVAL`() throws {
    let iommu = try tracking()
    try iommu.dirtyPages(flags: 2)
    #expect(throws: Errno.invalidArgument) { try iommu.dirtyBitmap(0, size: 256 * page) }
    #expect(throws: Errno.invalidArgument) {
      try iommu.unmapWithBitmap(0, size: 256 * page, bitmapSize: 32)
    }
  }

  @Test func `the answer is the structure and then the bitmap`() throws {
    let iommu = try tracking(pages: 64)
    try iommu.dmaWrite([1], to: 9 * page)
    let request = structure(
      .u32(48), .u32(4), .u64(0), .u64(64 * page), .u64(page), .u64(8), .u64(0x1234))
    let result = try iommu.perform(0x3B75, request)
    #expect(result == OperationResult(structure: request + [0, 2, 0, 0, 0, 0, 0, 0]))
  }

  @Test func `a bitmap tells the pages written since the last one, and no reads`() throws {
    let iommu = try tracking(pages: 64)
    try iommu.dmaWrite([UInt8](repeating: 1, count: Int(page) + 2), to: 3 * page - 1)
    _ = try iommu.dmaRead(20 * page, count: 100)
    #expect(try iommu.dirtyBitmap(0, size: 64 * page) == [0b11100, 0, 0, 0, 0, 0, 0, 0])
    #expect(try iommu.dirtyBitmap(0, size: 64 * page) == [UInt8](repeating: 0, count: 8))
  }

  @Test func `what was written before tracking started is not told`() throws {
    let iommu = try tracking(pages: 64)
    try iommu.dmaWrite([1], to: 0)
    try iommu.dirtyPages(flags: 2)
    try iommu.dmaWrite([1], to: page)
    try iommu.dirtyPages(flags: 1)
    #expect(try iommu.dirtyBitmap(0, size: 64 * page) == [UInt8](repeating: 0, count: 8))
  }

  @Test func `a write that faults marks what it wrote before`() throws {
    let iommu = try tracking(pages: 2)
    #expect(throws: DMAFault.self) {
      try iommu.dmaWrite([UInt8](repeating: 1, count: Int(3 * page)), to: page)
    }
    #expect(try iommu.dirtyBitmap(0, size: 8 * page) == [2, 0, 0, 0, 0, 0, 0, 0])
  }

  @Test func `bitmaps of random writes and ranges agree with a naive one`() throws {
    var random = SeededGenerator(seed: 11)
    let iommu = try Version.v2.open(.all)
    let memory = TestMemory(size: Int(300 * page))
    // Mappings of 3 pages, so that a bitmap covers many, at an odd place in the words.
    for index in 0..<100 as Range<UInt64> {
      try iommu.mapDMA(
        (7 + 3 * index) * page, size: 3 * page, at: 3 * index * page,
        from: TestSource(memory: memory))
    }
    try iommu.dirtyPages(flags: 1)
    var naive = [Bool](repeating: false, count: 300)
    for _ in 0..<500 {
      let address = Int.random(in: 0..<300 * Int(page), using: &random)
      let count = min(Int.random(in: 1..<20_000, using: &random), 300 * Int(page) - address)
      try iommu.dmaWrite([UInt8](repeating: 1, count: count), to: 7 * page + UInt64(address))
      for index in address / 4096...(address + count - 1) / 4096 { naive[index] = true }

      let first = Int.random(in: 0..<100, using: &random)
      let pages = 3 * first..<3 * Int.random(in: first + 1...100, using: &random)
      var expected = [UInt8](repeating: 0, count: (pages.count + 63) / 64 * 8)
      for index in pages where naive[index] {
        expected[(index - pages.lowerBound) / 8] |= 1 << UInt8((index - pages.lowerBound) % 8)
        naive[index] = false
      }
      let bitmap = try iommu.dirtyBitmap(
        UInt64(7 + pages.lowerBound) * page, size: UInt64(pages.count) * page)
      #expect(bitmap == expected)
    }
  }

  @Test func `a range that splits a mapping fails with EINVAL`() throws {
    let iommu = try tracking()
    #expect(throws: Errno.invalidArgument) { try iommu.dirtyBitmap(page, size: 255 * page) }
    #expect(throws: Errno.invalidArgument) { try iommu.dirtyBitmap(0, size: 255 * page) }
  }

  @Test func `a range of size 0 or unaligned fails with EINVAL, one that wraps with EOVERFLOW`()
    throws
  {
    let iommu = try tracking()
    #expect(throws: Errno.invalidArgument) { try iommu.dirtyBitmap(0, size: 0, bitmapSize: 8) }
    #expect(throws: Errno.invalidArgument) { try iommu.dirtyBitmap(1, size: page) }
    #expect(throws: Errno.invalidArgument) {
      try iommu.dirtyBitmap(0, size: page + 1, bitmapSize: 8)
    }
    #expect(throws: Errno.overflow) { try iommu.dirtyBitmap(lastPage, size: 2 * page) }
    #expect(throws: Errno.overflow) { try iommu.dirtyBitmap(2, size: UInt64.max, bitmapSize: 0) }
  }

  @Test(arguments: [0, 1, 2048, 8192, 1 << 63] as [UInt64])
  func `a page size other than 4096 fails with EINVAL`(pageSize: UInt64) throws {
    let iommu = try tracking()
    #expect(throws: Errno.invalidArgument) {
      try iommu.dirtyBitmap(0, size: 256 * page, pageSize: pageSize, bitmapSize: 4096)
    }
    #expect(throws: Errno.invalidArgument) {
      try iommu.unmapWithBitmap(0, size: 256 * page, pageSize: pageSize, bitmapSize: 4096)
    }
  }

  @Test(arguments: [0, 8, 31, (256 << 20) + 1, UInt64.max] as [UInt64])
  func `a bitmap too small for the range or above 256 MiB fails with EINVAL`(size: UInt64) throws {
    let iommu = try tracking()
    #expect(throws: Errno.invalidArgument) {
      try iommu.dirtyBitmap(0, size: 256 * page, bitmapSize: size)
    }
    #expect(throws: Errno.invalidArgument) {
      try iommu.unmapWithBitmap(0, size: 256 * page, bitmapSize: size)
    }
  }

  @Test func `a bitmap larger than needed is answered with what the range needs`() throws {
    #expect(try tracking().dirtyBitmap(0, size: 256 * page, bitmapSize: 256 << 20).count == 32)
  }

  @Test func `the last page of the address space is tracked`() throws {
    let iommu = try tracking()
    let memory = TestMemory(size: Int(page))
    try iommu.mapDMA(lastPage, size: page, from: TestSource(memory: memory))
    try iommu.dmaWrite([1], to: UInt64.max)
    #expect(try iommu.dirtyBitmap(lastPage, size: page) == [1, 0, 0, 0, 0, 0, 0, 0])
  }

  @Test func `a mapping of more than 2^31 - 1 pages cannot be tracked`() throws {
    let iommu = try Version.v2.open(.all)
    try iommu.mapDMA(0, size: 1 << 43)
    #expect(throws: Errno.invalidArgument) { try iommu.dirtyPages(flags: 1) }
    try iommu.unmapDMA(0, size: 0, flags: 2)
    try iommu.dirtyPages(flags: 1)
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: 1 << 43) }
    try iommu.mapDMA(0, size: (1 << 43) - page)
  }

  @Test func `unmapping with a bitmap tells the pages written, and then forgets them`() throws {
    let iommu = try tracking(pages: 64)
    try iommu.dmaWrite([1], to: 5 * page)
    let result = try iommu.unmapWithBitmap(0, size: 64 * page)
    #expect(
      result.structure
        == structure(
          .u32(48), .u32(1), .u64(0), .u64(64 * page), .u64(page), .u64(8), .u64(0))
        + [32, 0, 0, 0, 0, 0, 0, 0])
    try iommu.mapDMA(0, size: 64 * page)
    #expect(try iommu.dirtyBitmap(0, size: 64 * page) == [UInt8](repeating: 0, count: 8))
  }

  @Test func `a mapping in the place of another begins clean`() throws {
    let iommu = try tracking(pages: 64)
    try iommu.dmaWrite([1], to: 5 * page)
    try iommu.unmapDMA(0, size: 64 * page)
    try iommu.mapDMA(0, size: 64 * page)
    #expect(try iommu.dirtyBitmap(0, size: 64 * page) == [UInt8](repeating: 0, count: 8))
  }

  @Test func `an unmap with a bitmap that is refused unmaps nothing`() throws {
    let iommu = try tracking()
    #expect(throws: Errno.invalidArgument) {
      try iommu.unmapWithBitmap(0, size: 255 * page, bitmapSize: 32)
    }
    #expect(throws: Errno.invalidArgument) {
      try iommu.unmapWithBitmap(0, size: 256 * page, bitmapSize: 32, argsz: 47)
    }
    #expect(try iommu.availableMappings == 65534)
  }

  @Test func `v1 refuses to unmap with a bitmap`() throws {
    let iommu = try Version.v1.open()
    try iommu.mapDMA(0, size: page)
    #expect(throws: Errno.invalidArgument) { try iommu.unmapWithBitmap(0, size: page) }
  }
}
