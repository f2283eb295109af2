import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

@Suite struct Type1DriverTests {
  @Test func `the driver is called type1`() {
    #expect(Type1Driver().name == "type1")
  }

  @Test(arguments: [1, 3, 9] as [UInt64])
  func `both types and unmapping all are extensions, before and after a driver is set`(
    number: UInt64
  ) throws {
    #expect(Type1Driver().checkExtension(number) == 1)
    #expect(try Version.v1.open().checkExtension(number) == 1)
    #expect(try Version.v2.open().checkExtension(number) == 1)
  }

  @Test func `cache coherence is an extension once a driver is set`() throws {
    #expect(Type1Driver().checkExtension(4) == 0)
    #expect(try Version.v1.open().checkExtension(4) == 1)
    #expect(try Version.v2.open().checkExtension(4) == 1)
  }

  @Test(arguments: [0, 2, 5, 6, 7, 8, 10, 11, UInt64.max])
  func `nothing else is an extension`(number: UInt64) throws {
    #expect(Type1Driver().checkExtension(number) == 0)
    #expect(try Version.v2.open().checkExtension(number) == 0)
  }

  @Test(arguments: [0, 2, 4, 6, 7, 8, 9, UInt64.max])
  func `opening another type fails with EINVAL`(type: UInt64) {
    #expect(throws: Errno.invalidArgument) { try Type1Driver().open(type, .pc) }
  }

  @Test(arguments: Version.allCases)
  func `an unknown operation fails with ENOTTY`(version: Version) throws {
    let iommu = try version.open()
    for command in [0, 0x3B64, 0x3B73, 0x3B74, 0x3B76, 0x3B79, UInt32.max] as [UInt32] {
      #expect(throws: Errno.inappropriateIOCTLForDevice) { try iommu.perform(command, []) }
    }
  }

  @Test(arguments: Version.allCases)
  func `read, write and mmap of a container fail with EINVAL`(version: Version) throws {
    let iommu = try version.open()
    #expect(throws: Errno.invalidArgument) { try iommu.mmap(at: 0, size: page) }
    #expect(throws: Errno.invalidArgument) { try iommu.write([1].span, at: 0) }
  }

  @Test(arguments: Version.allCases)
  func `a group attaches once, and again after it was detached`(version: Version) throws {
    let iommu = try version.open()
    let group = IOMMUGroup(id: 26)
    try iommu.attach(group)
    try iommu.attach(IOMMUGroup(id: 27))
    #expect(throws: Errno.invalidArgument) { try iommu.attach(group) }
    iommu.detach(group)
    try iommu.attach(group)
  }

  @Test(arguments: Version.allCases)
  func `a structure that ends early fails with EINVAL, wherever it ends`(version: Version) throws {
    let iommu = try version.open()
    for (command, size) in [(0x3B70, 16), (0x3B71, 32), (0x3B72, 24)] as [(UInt32, Int)] {
      for length in 0..<size {
        let argument = Array(
          (structure(.u32(256)) + [UInt8](repeating: 0, count: 28)).prefix(length))
        #expect(throws: Errno.invalidArgument) { try iommu.perform(command, argument) }
      }
    }
  }

  @Test(arguments: Version.allCases)
  func `an argsz below the structure's size fails with EINVAL`(version: Version) throws {
    let iommu = try version.open()
    #expect(throws: Errno.invalidArgument) { try iommu.mapDMA(0, size: page, argsz: 31) }
    #expect(throws: Errno.invalidArgument) { try iommu.unmapDMA(0, size: page, argsz: 23) }
    #expect(throws: Errno.invalidArgument) {
      try iommu.perform(0x3B70, structure(.u32(15), .u32(0), .u64(0), .u64(0)))
    }
  }
}
