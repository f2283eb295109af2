import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

@Suite struct Type1InformationTests {
  private func info(_ iommu: any IOMMU, argsz: UInt32) throws -> [UInt8] {
    try iommu.perform(0x3B70, structure(.u32(argsz), .u32(0), .u64(0), .u64(0))).structure
  }

  /// 24 bytes, MIGRATION 32, DMA_AVAIL 16, IOVA_RANGE 16 and 16 for each of two ranges.
  private let whole: UInt32 = 24 + 32 + 16 + 16 + 32

  @Test(arguments: Version.allCases)
  func `all page sizes from 4 KiB on are supported`(version: Version) throws {
    let info = try info(version.open(), argsz: 16)
    #expect(info.integer(at: 4, size: 4) & 1 == 1)
    #expect(info.integer(at: 8, size: 8) == ~0xFFF)
  }

  @Test(arguments: Version.allCases)
  func `capabilities tell bitmap limits, available mappings and IOVA ranges`(
    version: Version
  ) throws {
    let iommu = try version.open()
    try iommu.mapDMA(0, size: page)
    let info = try info(iommu, argsz: 4096)
    #expect(info.count == Int(whole))
    #expect(info.integer(at: 0, size: 4) == 4096)
    #expect(info.integer(at: 4, size: 4) == 3)
    #expect(info.integer(at: 16, size: 4) == 24)

    var capabilities: [UInt64: ArraySlice<UInt8>] = [:]
    var offset = Int(info.integer(at: 16, size: 4))
    while offset != 0 {
      #expect(offset % 8 == 0)
      #expect(info.integer(at: offset + 2, size: 2) == 1)
      capabilities[info.integer(at: offset, size: 2)] = info[(offset + 8)...]
      offset = Int(info.integer(at: offset + 4, size: 4))
    }
    #expect(Set(capabilities.keys) == [1, 2, 3])
    let ranges = try #require(capabilities[1])
    #expect(ranges.integer(at: 0, size: 4) == 2)
    #expect(ranges.integer(at: 8, size: 8) == 0)
    #expect(ranges.integer(at: 16, size: 8) == 0xFEDF_FFFF)
    #expect(ranges.integer(at: 24, size: 8) == 0xFEF0_0000)
    #expect(ranges.integer(at: 32, size: 8) == 0xFFFF_FFFF_FFFF)
    let migration = try #require(capabilities[2])
    #expect(migration.integer(at: 0, size: 4) == 0)
    #expect(migration.integer(at: 8, size: 8) == 4096)
    #expect(migration.integer(at: 16, size: 8) == 256 << 20)
    #expect(try #require(capabilities[3]).integer(at: 0, size: 4) == 65534)
  }

  @Test(arguments: Version.allCases)
  func `an argsz too small for the capabilities gets the fixed part and the size needed`(
    version: Version
  ) throws {
    for argsz in [16, 20, 24, whole - 1] {
      let info = try info(version.open(), argsz: argsz)
      #expect(info.count == min(24, Int(argsz)))
      #expect(info.integer(at: 0, size: 4) == UInt64(whole))
      #expect(info.integer(at: 4, size: 4) == 3)
      #expect(info.integer(at: 16, size: 4) == 0)
    }
  }

  @Test(arguments: Version.allCases)
  func `an argsz of just the size needed gets the capabilities`(version: Version) throws {
    #expect(try info(version.open(), argsz: whole).count == Int(whole))
  }

  @Test func `a request may be the shortest structure and still ask for the capabilities`() throws {
    let result = try Version.v2.open().perform(0x3B70, structure(.u32(4096), .u32(0), .u64(0)))
    #expect(result.structure.count == Int(whole))
  }
}
