import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

@Suite struct SPAPRMemoryTests {
  private let source = TestSource(memory: TestMemory((0..<16 * page).map { UInt8($0 / page) }))

  @Test func `memory that isn't registered fails with EINVAL to be mapped, and changes nothing`()
    throws
  {
    let iommu = try SPAPRVersion.v2.open()
    try iommu.register(page, size: 4 * page, from: source)
    try iommu.mapDMA(0, size: page, at: page, from: source)
    for (address, pages) in [(0, 1), (0, 2), (4, 2), (5, 1), (1, 5)] as [(UInt64, UInt64)] {
      #expect(throws: Errno.invalidArgument) {
        try iommu.mapDMA(0, size: pages * page, at: address * page, from: source)
      }
    }
    #expect(try iommu.dmaRead(0, count: 1) == [1])
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: 2 * page, at: lastPage) }
  }

  @Test func `memory of another file or process fails with EINVAL to be mapped`() throws {
    let iommu = try SPAPRVersion.v2.open()
    try iommu.register(0, size: 4 * page, from: source)
    let other = TestSource(memory: TestMemory(size: Int(4 * page)))
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: page, from: other) }
    try iommu.register(0, size: 4 * page, from: other)
    try iommu.mapDMA(0, size: page, from: other)
  }

  @Test func `a map may cross ranges that touch, whatever the order of registering them`() throws {
    let iommu = try SPAPRVersion.v2.open()
    try iommu.register(2 * page, size: 2 * page, from: source)
    try iommu.register(0, size: 2 * page, from: source)
    try iommu.register(4 * page, size: page, from: source)
    try iommu.mapDMA(0, size: 5 * page, from: source)
    #expect(try iommu.dmaRead(2 * page - 1, count: 2) == [1, 2])
    #expect(try iommu.dmaRead(4 * page - 1, count: 2) == [3, 4])
  }

  @Test func `a large page is in one range, or fails with EINVAL`() throws {
    let iommu = try SPAPRVersion.v2.open()
    try iommu.createWindow(pageShift: 16, size: 1 << 20)
    try iommu.register(0, size: 8 * page, from: source)
    try iommu.register(8 * page, size: 24 * page, from: source)
    #expect(throws: Errno.invalidArgument) {
      try iommu.mapDMA(secondWindow, size: 0x10000, from: source)
    }
    try iommu.mapDMA(secondWindow, size: 0x10000, at: 0x10000, from: source)
  }

  @Test func `registering the same range again fails with EBUSY, and an overlap with EINVAL`()
    throws
  {
    let iommu = try SPAPRVersion.v2.open()
    try iommu.register(4 * page, size: 4 * page, from: source)
    #expect(throws: Errno.resourceBusy) {
      try iommu.register(4 * page, size: 4 * page, from: source)
    }
    for (address, pages) in [(4, 1), (7, 1), (3, 2), (7, 2), (0, 16)] as [(UInt64, UInt64)] {
      #expect(throws: Errno.invalidArgument) {
        try iommu.register(address * page, size: pages * page, from: source)
      }
    }
    try iommu.register(3 * page, size: page, from: source)
    try iommu.register(8 * page, size: page, from: source)
  }

  @Test func `a flag, an unaligned range or one that reaches 2^64 fails with EINVAL`() throws {
    let iommu = try SPAPRVersion.v2.open()
    #expect(throws: Errno.invalidArgument) { try iommu.register(0, size: page, flags: 1) }
    #expect(throws: Errno.invalidArgument) { try iommu.register(1, size: page) }
    #expect(throws: Errno.invalidArgument) { try iommu.register(0, size: page + 1) }
    #expect(throws: Errno.invalidArgument) { try iommu.register(lastPage, size: page) }
    #expect(throws: Errno.invalidArgument) { try iommu.register(lastPage, size: 2 * page) }
    #expect(throws: Errno.noMemory) { try iommu.register(0, size: 0) }
    #expect(throws: Errno.invalidArgument) { try iommu.unregister(0, size: page, flags: 1) }
    #expect(throws: Errno.invalidArgument) { try iommu.unregister(1, size: page) }
  }

  @Test func `what the source throws is answered, and memory must be writable`() throws {
    let iommu = try SPAPRVersion.v2.open(.locked(page))
    #expect(throws: Errno.badAddress) {
      try iommu.register(0, size: page, from: TestSource(error: .badAddress))
    }
    #expect(throws: Errno.permissionDenied) {
      try iommu.register(0, size: page, from: TestSource(isReadOnly: true))
    }
    // It isn't counted as locked.
    try iommu.register(0, size: page)
  }

  @Test func `nothing to unregister fails with ENOENT, and with EPERM before anything was asked`()
    throws
  {
    let iommu = try SPAPRVersion.v2.open()
    #expect(throws: Errno.notPermitted) { try iommu.unregister(0, size: page, argsz: 0) }
    try iommu.register(0, size: 4 * page, from: source)
    for (address, pages) in [(0, 1), (1, 3), (0, 5), (8, 1), (0, 0)] as [(UInt64, UInt64)] {
      #expect(throws: Errno.noSuchFileOrDirectory) {
        try iommu.unregister(address * page, size: pages * page, from: source)
      }
    }
    #expect(throws: Errno.noSuchFileOrDirectory) { try iommu.unregister(0, size: 4 * page) }
    #expect(throws: Errno.noSuchFileOrDirectory) { try iommu.unregister(lastPage, size: page) }
    try iommu.unregister(0, size: 4 * page, from: source)
    #expect(throws: Errno.noSuchFileOrDirectory) {
      try iommu.unregister(0, size: 4 * page, from: source)
    }
  }

  @Test func `unregistering fails with EBUSY while an entry refers to the memory`() throws {
    let iommu = try SPAPRVersion.v2.open()
    try iommu.register(0, size: 4 * page, from: source)
    try iommu.register(4 * page, size: 4 * page, from: source)
    try iommu.mapDMA(0, size: 2 * page, at: page, from: source)
    try iommu.mapDMA(8 * page, size: page, at: page, from: source)
    try iommu.unregister(4 * page, size: 4 * page, from: source)
    try iommu.unmapDMA(0, size: 2 * page)
    #expect(throws: Errno.resourceBusy) { try iommu.unregister(0, size: 4 * page, from: source) }
    #expect(try iommu.dmaRead(8 * page, count: 1) == [1])
    // The last entry is replaced by one of other memory.
    let other = TestSource(memory: TestMemory(size: Int(page)))
    try iommu.register(0, size: page, from: other)
    try iommu.mapDMA(8 * page, size: page, from: other)
    try iommu.unregister(0, size: 4 * page, from: source)
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: page, from: source) }
  }

  @Test func `a failed map doesn't keep memory registered`() throws {
    let iommu = try SPAPRVersion.v2.open()
    try iommu.register(0, size: page, from: source)
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: 2 * page, from: source) }
    try iommu.unregister(0, size: page, from: source)
  }

  @Test func `registered memory is locked, and fails with ENOMEM beyond the limit`() throws {
    let iommu = try SPAPRVersion.v2.open(.locked(8 * page))
    try iommu.register(0, size: 6 * page, from: source)
    #expect(throws: Errno.noMemory) { try iommu.register(8 * page, size: 3 * page, from: source) }
    try iommu.register(8 * page, size: 2 * page, from: source)
    try iommu.unregister(0, size: 6 * page, from: source)
    try iommu.register(0, size: 6 * page, from: source)
    #expect(throws: Errno.noMemory) {
      try iommu.register(1 << 62, size: 1 << 63, from: source)
    }
  }

  @Test func `ranges are limited as mappings are, with ENOSPC`() throws {
    let iommu = try SPAPRVersion.v2.open(.mappings(2))
    try iommu.register(0, size: page, from: source)
    try iommu.register(2 * page, size: page, from: source)
    #expect(throws: Errno.noSpace) { try iommu.register(4 * page, size: page, from: source) }
    try iommu.unregister(0, size: page, from: source)
    try iommu.register(4 * page, size: page, from: source)
  }
}
