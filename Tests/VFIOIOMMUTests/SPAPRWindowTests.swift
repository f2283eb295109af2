import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

@Suite struct SPAPRWindowTests {
  private let source = TestSource(memory: TestMemory([1, 2, 3]))

  @Test func `the first window is there from the start, the second begins at 2^59`() throws {
    let iommu = try SPAPRVersion.v2.ready(source)
    #expect(try iommu.createWindow(size: 1 << 40) == secondWindow)
    try iommu.mapDMA(0, size: page, from: source)
    try iommu.mapDMA(secondWindow + (1 << 40) - 0x10000, size: 0x10000, from: source)
    #expect(try iommu.dmaRead(1, count: 2) == [2, 3])
    #expect(try iommu.dmaRead(secondWindow + (1 << 40) - 0x10000, count: 1) == [1])
  }

  @Test func `a third window fails with ENOSPC, whatever it is`() throws {
    let iommu = try SPAPRVersion.v2.open()
    try iommu.createWindow(size: 1 << 30)
    #expect(throws: Errno.noSpace) { try iommu.createWindow(size: 1 << 30) }
    #expect(throws: Errno.noSpace) { try iommu.createWindow(pageShift: 99, size: 0) }
  }

  @Test func `the first window can be removed, used or not, and made again with other pages`()
    throws
  {
    for isUsed in [false, true] {
      let iommu = try SPAPRVersion.v2.ready(source)
      if isUsed { try iommu.mapDMA(0, size: page, from: source) }
      try iommu.removeWindow(0)
      #expect(throws: Errno.noSuchAddressOrDevice) {
        try iommu.mapDMA(0, size: page, from: source)
      }
      #expect(throws: DMAFault(iova: 0, completed: 0)) { try iommu.dmaRead(0, count: 1) }
      #expect(throws: Errno.invalidArgument) { try iommu.removeWindow(0) }
      #expect(try iommu.createWindow(pageShift: 21, size: 1 << 40) == 0)
      #expect(throws: DMAFault(iova: 0, completed: 0)) { try iommu.dmaRead(0, count: 1) }
      try iommu.mapDMA(1 << 39, size: 1 << 21, from: source)
      #expect(try iommu.dmaRead(1 << 39, count: 1) == [1])
    }
  }

  @Test func `any address in a window names it to be removed, and another fails with EINVAL`()
    throws
  {
    let iommu = try SPAPRVersion.v2.open()
    try iommu.createWindow(size: 1 << 30)
    for start in [1 << 31, secondWindow - 1, secondWindow + (1 << 30), UInt64.max] {
      #expect(throws: Errno.invalidArgument) { try iommu.removeWindow(start) }
    }
    #expect(throws: Errno.invalidArgument) { try iommu.removeWindow(secondWindow, flags: 1) }
    try iommu.removeWindow(secondWindow + 5)
    try iommu.removeWindow(0)
    #expect(throws: Errno.invalidArgument) { try iommu.removeWindow(0) }
  }

  @Test func `entries go with their window, and with them the hold on registered memory`() throws {
    let iommu = try SPAPRVersion.v2.ready(source, size: 1 << 20)
    try iommu.createWindow(size: 1 << 30)
    try iommu.mapDMA(secondWindow, size: 1 << 20, from: source)
    #expect(throws: Errno.resourceBusy) { try iommu.unregister(0, size: 1 << 20, from: source) }
    try iommu.removeWindow(secondWindow)
    try iommu.unregister(0, size: 1 << 20, from: source)
  }

  @Test(arguments: [12, 16, 21, 24, 30] as [UInt32])
  func `addresses and sizes are multiples of the window's page`(shift: UInt32) throws {
    let iommu = try SPAPRVersion.v2.ready(source)
    let size: UInt64 = 1 << UInt64(shift)
    try iommu.createWindow(pageShift: shift, size: 8 * size)
    try iommu.register(1 << 40, size: 4 * size, from: source)
    try iommu.mapDMA(secondWindow + 7 * size, size: size, at: 1 << 40, from: source)
    for (iova, address, length) in [(1, 0, 2), (0, 1, 2), (0, 0, 1)] as [(UInt64, UInt64, UInt64)] {
      #expect(throws: Errno.invalidArgument) {
        try iommu.mapDMA(
          secondWindow + iova * size / 2, size: length * size / 2,
          at: 1 << 40 + address * size / 2, from: source)
      }
    }
    #expect(throws: Errno.invalidArgument) { try iommu.unmapDMA(secondWindow, size: size / 2) }
    #expect(throws: DMAFault(iova: secondWindow + 6 * size, completed: 0)) {
      try iommu.dmaRead(secondWindow + 6 * size, count: 1)
    }
  }

  @Test func `a page size that GET_INFO doesn't tell fails with EINVAL`() throws {
    let iommu = try SPAPRVersion.v2.open()
    for shift: UInt32 in [0, 11, 13, 20, 31, 63, 64, 76, UInt32.max] {
      #expect(throws: Errno.invalidArgument) {
        try iommu.createWindow(pageShift: shift, size: 1 << 31)
      }
    }
  }

  @Test func `no levels or more than 5 fail with EINVAL`() throws {
    let iommu = try SPAPRVersion.v2.open()
    for levels: UInt32 in [0, 6, UInt32.max] {
      #expect(throws: Errno.invalidArgument) {
        try iommu.createWindow(size: 1 << 31, levels: levels)
      }
    }
    for levels: UInt32 in 1...5 {
      try iommu.createWindow(size: 1 << 31, levels: levels)
      try iommu.removeWindow(secondWindow)
    }
  }

  @Test func `a window that is no power of 2, below a page or above 64 TiB fails with EINVAL`()
    throws
  {
    let iommu = try SPAPRVersion.v2.open()
    for size: UInt64 in [0, 1, 0x8000, 0x30000, 1 << 47, 1 << 63, UInt64.max] {
      #expect(throws: Errno.invalidArgument) { try iommu.createWindow(size: size) }
    }
    try iommu.createWindow(size: 0x10000)
    try iommu.removeWindow(secondWindow)
    try iommu.createWindow(pageShift: 12, size: 1 << 46)
  }

  @Test func `a flag fails with EINVAL, and what is reserved is ignored`() throws {
    let iommu = try SPAPRVersion.v2.open()
    #expect(throws: Errno.invalidArgument) { try iommu.createWindow(size: 1 << 30, flags: 1) }
    let request = structure(
      .u32(40), .u32(0), .u32(16), .u32(5), .u64(1 << 30), .u32(1), .u32(5), .u64(0))
    #expect(
      try iommu.perform(0x3B77, request).structure
        == request.prefix(32) + structure(.u64(secondWindow)))
  }

  @Test func `windows can't be made or removed without a group: ENXIO`() throws {
    let iommu = try SPAPRDriver().open(7, .pc)
    #expect(throws: Errno.noSuchAddressOrDevice) { try iommu.createWindow(size: 1, argsz: 0) }
    #expect(throws: Errno.noSuchAddressOrDevice) { try iommu.removeWindow(0, argsz: 0) }
  }

  @Test
  func `a window's table is locked, 8 bytes for a page, and fails with ENOMEM beyond the limit`()
    throws
  {
    // The first window has 2^19 pages, the second 2^14.
    let tables: UInt64 = 8 << 19 + 8 << 14
    let iommu = try SPAPRVersion.v2.open(.locked(tables + page))
    try iommu.createWindow(size: 1 << 30)
    try iommu.register(0, size: page)
    #expect(throws: Errno.noMemory) { try iommu.register(page, size: page) }
    try iommu.removeWindow(secondWindow)
    #expect(throws: Errno.noMemory) { try iommu.createWindow(size: 1 << 31) }
    try iommu.createWindow(size: 1 << 30)
    // A table has whole pages.
    try iommu.removeWindow(secondWindow)
    try iommu.register(page, size: 8 << 14 - page)
    try iommu.createWindow(size: 0x10000)
  }

  @Test func `no room for the first window's table is ENOMEM, until it is removed`() throws {
    let iommu = try SPAPRVersion.v2.ready(source, size: page, .locked(2 * page))
    #expect(throws: Errno.noMemory) { try iommu.mapDMA(0, size: page, from: source) }
    #expect(throws: Errno.noMemory) { try iommu.unmapDMA(0, size: page) }
    #expect(throws: Errno.noMemory) { try iommu.createWindow(size: 0x10000) }
    try iommu.removeWindow(0)
    #expect(try iommu.createWindow(pageShift: 12, size: 1 << 20) == 0)
    try iommu.mapDMA(0, size: page, from: source)
  }

  @Test func `windows stay when groups come and go, as long as there is one`() throws {
    let iommu = try SPAPRVersion.v2.ready(source)
    try iommu.mapDMA(0, size: page, from: source)
    let second = IOMMUGroup(id: 27)
    try iommu.attach(second)
    iommu.detach(second)
    #expect(try iommu.dmaRead(0, count: 1) == [1])
  }

  @Test func `a window of 64 TiB is made, used at its ends and removed in no time`() throws {
    let iommu = try SPAPRVersion.v2.ready(source)
    try iommu.createWindow(pageShift: 12, size: 1 << 46, levels: 5)
    let time = try ContinuousClock().measure {
      for _ in 0..<100 {
        try iommu.mapDMA(secondWindow, size: page, from: source)
        try iommu.mapDMA(secondWindow + (1 << 46) - page, size: page, from: source)
        try iommu.unmapDMA(secondWindow, size: 1 << 46)
        #expect(throws: DMAFault(iova: secondWindow, completed: 0)) {
          try iommu.dmaRead(secondWindow, count: 1)
        }
      }
    }
    #expect(time < .seconds(10))
  }
}
