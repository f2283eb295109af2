import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

@Suite struct SPAPRDriverTests {
  @Test func `the driver is called spapr-tce, and is for groups with an IOMMU`() {
    #expect(SPAPRDriver().name == "spapr-tce")
    #expect(!SPAPRDriver().isForGroupsWithoutIOMMU)
  }

  @Test func `both types are extensions, before and after a driver is set; EEH and all else isn't`()
    throws
  {
    let drivers = [SPAPRDriver().checkExtension, try SPAPRVersion.v1.open().checkExtension]
    for check in drivers {
      for number: UInt64 in [2, 7] { #expect(check(number) == 1) }
      for number: UInt64 in [0, 1, 3, 4, 5, 6, 8, 9, UInt64.max] { #expect(check(number) == 0) }
    }
  }

  @Test(arguments: [0, 1, 3, 5, 8, UInt64.max])
  func `opening another type fails with EINVAL`(type: UInt64) {
    #expect(throws: Errno.invalidArgument) { try SPAPRDriver().open(type, .pc) }
  }

  @Test func `version 1 takes one group, and fails with EBUSY to take a second until it has gone`()
    throws
  {
    let iommu = try SPAPRDriver().open(2, .pc)
    let (first, second) = (IOMMUGroup(id: 1), IOMMUGroup(id: 2))
    try iommu.attach(first)
    #expect(throws: Errno.resourceBusy) { try iommu.attach(second) }
    #expect(throws: Errno.resourceBusy) { try iommu.attach(first) }
    iommu.detach(second)
    #expect(throws: Errno.resourceBusy) { try iommu.attach(second) }
    iommu.detach(first)
    try iommu.attach(second)
  }

  @Test func `version 2 takes several groups, each once`() throws {
    let iommu = try SPAPRDriver().open(7, .pc)
    let first = IOMMUGroup(id: 1)
    try iommu.attach(first)
    try iommu.attach(IOMMUGroup(id: 2))
    #expect(throws: Errno.resourceBusy) { try iommu.attach(first) }
    iommu.detach(first)
    try iommu.attach(first)
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `an unknown operation fails with ENOTTY, and so does that of EEH`(version: SPAPRVersion)
    throws
  {
    let iommu = try version.open()
    for command in [0, 0x3B64, 0x3B79, 0x3B7A, UInt32.max] as [UInt32] {
      #expect(throws: Errno.inappropriateIOCTLForDevice) { try iommu.perform(command, []) }
    }
  }

  @Test func `what only the other version has fails with ENOTTY`() throws {
    let (first, second) = (try SPAPRVersion.v1.open(), try SPAPRVersion.v2.open())
    for command: UInt32 in 0x3B75...0x3B78 {
      #expect(throws: Errno.inappropriateIOCTLForDevice) { try first.perform(command, []) }
    }
    #expect(throws: Errno.inappropriateIOCTLForDevice) { try second.enable() }
    #expect(throws: Errno.inappropriateIOCTLForDevice) { try second.disable() }
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `DMA_MAP of a device's socket fails with ENOTTY`(version: SPAPRVersion) throws {
    let iommu = try version.ready()
    #expect(throws: Errno.inappropriateIOCTLForDevice) {
      try iommu.map(
        DMAMapping(iova: 0, size: page, offset: 0, access: .read, owner: DMAOwner(number: 1)),
        from: TestSource())
    }
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `a structure that ends early fails with EINVAL, wherever it ends`(version: SPAPRVersion)
    throws
  {
    let iommu = try version.ready()
    var sizes: [(UInt32, Int)] = [(0x3B70, 16), (0x3B71, 32), (0x3B72, 24)]
    if version == .v2 { sizes += [(0x3B75, 24), (0x3B76, 24), (0x3B77, 40), (0x3B78, 16)] }
    for (command, size) in sizes {
      for length in 0..<size {
        let argument = Array(
          (structure(.u32(256)) + [UInt8](repeating: 0, count: 40)).prefix(length))
        #expect(throws: Errno.invalidArgument, "\(command) \(length)") {
          try iommu.perform(command, argument)
        }
      }
    }
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `an argsz below the structure's size fails with EINVAL`(version: SPAPRVersion) throws {
    let iommu = try version.ready()
    #expect(throws: Errno.invalidArgument) { try iommu.tceInfo(argsz: 15) }
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: page, argsz: 31) }
    #expect(throws: Errno.invalidArgument) { try iommu.unmapDMA(0, size: page, argsz: 23) }
    guard version == .v2 else { return }
    #expect(throws: Errno.invalidArgument) { try iommu.register(0, size: page, argsz: 23) }
    #expect(throws: Errno.invalidArgument) { try iommu.unregister(0, size: page, argsz: 23) }
    #expect(throws: Errno.invalidArgument) { try iommu.createWindow(size: 1 << 20, argsz: 39) }
    #expect(throws: Errno.invalidArgument) { try iommu.removeWindow(0, argsz: 15) }
  }

  // MARK: GET_INFO

  @Test func `version 1 tells of its window of 2 GiB at 0, and of no others`() throws {
    let info = try SPAPRVersion.v1.open().tceInfo()
    #expect(
      info == structure(.u32(32), .u32(0), .u32(0), .u32(1 << 31), .u64(0), .u32(0), .u32(0)))
  }

  @Test func `version 2 tells also of the windows that can be made`() throws {
    let pages: UInt64 = 1 << 12 | 1 << 16 | 1 << 21 | 1 << 24 | 1 << 30
    let info = try SPAPRVersion.v2.open().tceInfo()
    #expect(
      info == structure(.u32(32), .u32(1), .u32(0), .u32(1 << 31), .u64(pages), .u32(2), .u32(5)))
  }

  @Test(arguments: SPAPRVersion.allCases, [(16, 16), (31, 16), (32, 32), (100, 32)])
  func `what further windows there may be is told if argsz has room for all of it`(
    version: SPAPRVersion, sizes: (UInt32, Int)
  ) throws {
    let info = try version.open().tceInfo(argsz: sizes.0)
    #expect(info.count == sizes.1)
    #expect(info.integer(at: 0, size: 4) == UInt64(sizes.0))
    #expect(info.integer(at: 4, size: 4) == (version == .v2 ? 1 : 0))
  }

  @Test func `GET_INFO fails with ENXIO without a group`() throws {
    let iommu = try SPAPRDriver().open(7, .pc)
    #expect(throws: Errno.noSuchAddressOrDevice) { try iommu.tceInfo() }
  }

  // MARK: ENABLE and DISABLE

  @Test func `enabling twice fails with EBUSY, and disabling never fails`() throws {
    let iommu = try SPAPRVersion.v1.open()
    try iommu.disable()
    try iommu.enable()
    #expect(throws: Errno.resourceBusy) { try iommu.enable() }
    try iommu.disable()
    try iommu.disable()
    try iommu.enable()
  }

  @Test func `enabling fails with ENODEV without a group`() throws {
    let iommu = try SPAPRDriver().open(2, .pc)
    #expect(throws: Errno.operationNotSupportedByDevice) { try iommu.enable() }
  }

  @Test func `enabling locks the whole window, and fails with ENOMEM where that is too much`()
    throws
  {
    #expect(throws: Errno.noMemory) {
      try SPAPRVersion.v1.open(.locked((1 << 31) - 1)).enable()
    }
    let iommu = try SPAPRVersion.v1.open(.locked(1 << 31))
    for _ in 0..<3 {
      try iommu.enable()
      try iommu.disable()
    }
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `maps and unmaps fail with EPERM before entries are allowed, whatever they are`(
    version: SPAPRVersion
  ) throws {
    let iommu = try version.open()
    for size in [0, 1, page] {
      #expect(throws: Errno.notPermitted) { try iommu.mapDMA(0, size: size, argsz: 0) }
      #expect(throws: Errno.notPermitted) { try iommu.unmapDMA(0, size: size, argsz: 0) }
    }
  }

  @Test func `what was mapped stays so when version 1 is disabled`() throws {
    let iommu = try SPAPRVersion.v1.ready()
    try iommu.mapDMA(0, size: page, from: TestSource(memory: TestMemory([7] + [])))
    try iommu.disable()
    #expect(try iommu.dmaRead(0, count: 1) == [7])
    #expect(throws: Errno.notPermitted) { try iommu.unmapDMA(0, size: page) }
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `the memory goes when the IOMMU is released`(version: SPAPRVersion) throws {
    var source = TestSource(memory: TestMemory([7]))
    weak let memory = source.memory
    let iommu = try version.ready(source)
    try iommu.mapDMA(0, size: page, from: source)
    source.memory = TestMemory(size: 0)
    #expect(memory != nil)
    iommu.release()
    #expect(memory == nil)
    #expect(throws: DMAFault(iova: 0, completed: 0)) { try iommu.dmaRead(0, count: 1) }
  }

  @Test func `version 1's entries go with its group`() throws {
    let iommu = try SPAPRDriver().open(2, .pc)
    let group = IOMMUGroup(id: 1)
    try iommu.attach(group)
    try iommu.enable()
    try iommu.mapDMA(0, size: page, from: TestSource(memory: TestMemory([7])))
    iommu.detach(group)
    try iommu.attach(group)
    #expect(throws: DMAFault(iova: 0, completed: 0)) { try iommu.dmaRead(0, count: 1) }
  }
}
