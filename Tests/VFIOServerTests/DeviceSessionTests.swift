import LinuxIO
import SystemPackage
import Testing
import VFIOCore
import VFIOStream
import VFIOWire

@testable import VFIOServer

@Suite struct `A device's socket` {
  private let world: World
  private let device: DeviceSession

  init() throws {
    world = try World()
    device = try world.device()
  }

  @Test func `tells of nine regions, five kinds of interrupts, PCI and reset`() throws {
    let reply = try device.call(
      .deviceGetInfo, bytes(UInt32(16), UInt32(0), UInt32(0), UInt32(0)))
    #expect(reply.body == bytes(UInt32(16), UInt32(3), UInt32(9), UInt32(5)))
  }

  @Test func `tells of a kind of interrupt`() throws {
    let reply = try device.call(
      .deviceGetIRQInfo, bytes(UInt32(16), UInt32(0), UInt32(2), UInt32(0)))
    #expect(reply.uint32(at: 0) == 16 && reply.uint32(at: 8) == 2 && reply.uint32(at: 12) == 8)
    #expect(reply.body.count == 16)
  }

  @Test(
    arguments: [
      (.deviceGetInfo, 16, 15, 16), (.deviceGetInfo, 16, 16, 15), (.deviceGetInfo, 16, 0, 16),
      (.deviceGetIRQInfo, 16, 15, 16), (.deviceGetIRQInfo, 16, 16, 15),
      (.deviceGetRegionInfo, 32, 31, 32), (.deviceGetRegionInfo, 32, 32, 31),
      (.deviceGetRegionInfo, 32, 32, 4), (.deviceSetIRQs, 20, 19, 20), (.deviceSetIRQs, 20, 20, 19),
      (.deviceSetIRQs, 20, 20, 0), (.dmaMap, 32, 31, 32), (.dmaMap, 32, 32, 31),
      (.dmaMap, 32, 32, 0), (.dmaUnmap, 24, 23, 24), (.dmaUnmap, 24, 24, 23),
      (.dmaUnmap, 24, 24, 4), (.regionRead, 16, 0, 15), (.regionWrite, 16, 0, 15),
    ] as [(Command, Int, UInt32, Int)])
  func `fails with EINVAL for a structure or an argsz cut short`(
    _ command: Command, _ size: Int, _ argsz: UInt32, _ count: Int
  ) {
    let structure = bytes(argsz) + [UInt8](repeating: 0, count: size - 4)
    #expect(throws: Errno.invalidArgument) {
      try device.call(command, Array(structure.prefix(count)))
    }
  }

  @Test(arguments: [9, 100, UInt32.max])
  func `fails with EINVAL to tell of a region that there is not`(_ index: UInt32) {
    #expect(throws: Errno.invalidArgument) { try regionInfo(index, argsz: 32) }
  }

  @Test(arguments: [5, UInt32.max])
  func `fails with EINVAL to tell of a kind of interrupt that there is not`(_ index: UInt32) {
    #expect(throws: Errno.invalidArgument) {
      try device.call(.deviceGetIRQInfo, bytes(UInt32(16), UInt32(0), index, UInt32(0)))
    }
  }

  @Test(
    arguments: [
      .deviceSetIRQs, Command(rawValue: 11), Command(rawValue: 12),
      Command(rawValue: 14), Command(rawValue: 0), Command(rawValue: 19), .getAPIVersion,
      .iommuMapDMA, .openContainer, Command(rawValue: 0xFFFF),
    ].dropFirst() as ArraySlice<Command>)
  func `fails with ENOTSUP for an operation that it lacks`(_ command: Command) {
    #expect(throws: Errno.notSupported) {
      try device.call(command, [UInt8](repeating: 0, count: 64))
    }
  }

  // MARK: regions

  private func regionInfo(
    _ index: UInt32, argsz: UInt32, mayHandOut: Bool = true
  ) throws(Errno) -> Reply {
    try device.call(
      .deviceGetRegionInfo,
      bytes(argsz, UInt32(0), index, UInt32(0), UInt64(0), UInt64(0)), mayHandOut: mayHandOut)
  }

  @Test func `tells of a region that nobody may map in 32 bytes`() throws {
    let reply = try regionInfo(0, argsz: 32)
    #expect(
      reply.body
        == bytes(UInt32(32), UInt32(3), UInt32(0), UInt32(0), UInt64(1 << 20), UInt64(0)))
    #expect(reply.descriptors.isEmpty)
  }

  @Test func `tells of a BAR that the device lacks as one of no size`() throws {
    let reply = try regionInfo(3, argsz: 32)
    #expect(reply.body == bytes(UInt32(32), UInt32(0), UInt32(3), UInt32(0), UInt64(0), UInt64(0)))
  }

  @Test(arguments: [32, 63] as [UInt32])
  func `tells how much room the areas of a region need, and keeps its descriptor meanwhile`(
    _ argsz: UInt32
  ) throws {
    let reply = try regionInfo(2, argsz: argsz)
    #expect(
      reply.body
        == bytes(UInt32(64), UInt32(7), UInt32(2), UInt32(0), UInt64(2 << 20), UInt64(0)))
    #expect(reply.descriptors.isEmpty)
  }

  @Test func `lets nothing be mapped by one who takes no descriptors`() throws {
    let world = try World()
    let device = world.socket()
    try device.call(.version, version01 + text("{\"capabilities\":{\"max_msg_fds\":0}}"))
    let reply = try device.call(
      .deviceGetRegionInfo,
      bytes(UInt32(64), UInt32(0), UInt32(2), UInt32(0), UInt64(0), UInt64(0)))
    #expect(
      reply.body
        == bytes(UInt32(32), UInt32(3), UInt32(2), UInt32(0), UInt64(2 << 20), UInt64(0)))
    #expect(reply.descriptors.isEmpty)
  }

  @Test func `tells what a region of the device's own is for, behind its areas`() throws {
    let areas: [Range<UInt64>] = [0x1000..<0x2000, 0x4000..<0x6000]
    let memory = try DeviceMemory(size: 0x8000)
    for (mappable, needed) in [([], 48), (areas, 96)] as [([Range<UInt64>], UInt32)] {
      let own = OwnRegion(
        information: RegionInformation(
          readable: true, writable: false, size: 0x8000, mappable: mappable,
          memory: mappable.isEmpty ? nil : memory,
          type: RegionType(type: 0x8000_1234, subtype: 7)))
      for argsz in [32, needed - 1, needed] {
        let fits = argsz == needed
        var output = Output()
        let header = Header(id: 1, command: .deviceGetRegionInfo, messageSize: 48)
        output.begin(replyTo: header)
        try device.getRegionInfo(
          Request(header: header),
          bytes(argsz, UInt32(0), UInt32(9), UInt32(0), UInt64(0), UInt64(0)).span, own, &output)
        output.finish()
        let body = try output.withBytes(output.next.range) { sent throws(Errno) in
          (Header.size..<sent.count).map { sent[$0] }
        }
        let flags: UInt32 = (mappable.isEmpty ? 1 : 5) | (fits ? 8 : 0)
        var expected = bytes(
          needed, flags, UInt32(9), UInt32(fits ? 32 : 0), UInt64(0x8000), UInt64(0))
        if fits, !mappable.isEmpty {
          expected += bytes(UInt16(1), UInt16(1), UInt32(80), UInt32(2), UInt32(0))
          expected += bytes(UInt64(0x1000), UInt64(0x1000), UInt64(0x4000), UInt64(0x2000))
        }
        if fits {
          expected += bytes(UInt16(2), UInt16(1), UInt32(0), UInt32(0x8000_1234), UInt32(7))
        }
        #expect(body == expected)
        #expect(output.next.descriptors.count == (fits && !mappable.isEmpty ? 1 : 0))
      }
    }
  }

  @Test(arguments: [64, 4096] as [UInt32])
  func `tells which areas of a region may be mapped, with the descriptor`(_ argsz: UInt32) throws {
    let reply = try regionInfo(2, argsz: argsz)
    #expect(
      reply.body
        == bytes(UInt32(64), UInt32(15), UInt32(2), UInt32(32), UInt64(2 << 20), UInt64(0))
        + bytes(UInt16(1), UInt16(1), UInt32(0), UInt32(1), UInt32(0))
        + bytes(UInt64(0x1000), UInt64(0x1F_F000)))
    #expect(reply.descriptors.count == 1)
  }

  @Test func `fails with ETOOMANYREFS to give a descriptor to one who does not collect`() throws {
    #expect(throws: Errno.tooManyReferences) { try regionInfo(2, argsz: 64, mayHandOut: false) }
    _ = try regionInfo(2, argsz: 32, mayHandOut: false)
    _ = try regionInfo(0, argsz: 64, mayHandOut: false)
  }

  @Test func `writes and reads a region, and repeats the request in front of the data`() throws {
    let access = bytes(UInt64(8), UInt32(0), UInt32(4))
    #expect(try device.call(.regionWrite, access + [1, 2, 3, 4]).body == access)
    #expect(try device.call(.regionRead, access).body == access + [1, 2, 3, 4])
  }

  @Test(
    arguments: [
      (UInt64.max, 0, 1), (UInt64.max - 3, 0, 8), (1 << 20, 0, 1), (0, 9, 4), (0, UInt32.max, 4),
      (0, 0, (1 << 20) + 1), (0, 0, UInt32.max), (1, 0, 1 << 20),
    ] as [(UInt64, UInt32, UInt32)])
  func `fails with EINVAL for an access outside its regions or larger than the limit`(
    _ offset: UInt64, _ region: UInt32, _ count: UInt32
  ) {
    let access = bytes(offset, region, count)
    #expect(throws: Errno.invalidArgument) { try device.call(.regionRead, access) }
    #expect(throws: Errno.invalidArgument) {
      try device.call(
        .regionWrite, access + [UInt8](repeating: 0, count: min(Int(count), (1 << 20) + 1)))
    }
  }

  @Test(arguments: [0, 1, 3])
  func `fails with EINVAL for a write without all of its data`(_ count: Int) {
    #expect(throws: Errno.invalidArgument) {
      try device.call(
        .regionWrite, bytes(UInt64(0), UInt32(0), UInt32(4)) + [UInt8](repeating: 0, count: count))
    }
  }

  @Test func `fails with EIO for memory whose decoding is off`() throws {
    try device.call(.regionWrite, bytes(UInt64(4), UInt32(7), UInt32(2), UInt16(0)))
    #expect(throws: Errno.ioError) {
      try device.call(.regionRead, bytes(UInt64(0), UInt32(0), UInt32(4)))
    }
  }

  @Test func `resets with an empty reply`() throws {
    #expect(try device.call(.deviceReset).body.isEmpty)
  }

  // MARK: DMA

  private func map(
    _ iova: UInt64, flags: UInt32 = 3, size: UInt64 = 4096
  ) -> [UInt8] {
    bytes(UInt32(32), flags, UInt64(0), iova, size)
  }

  private func unmap(_ iova: UInt64, flags: UInt32 = 0, size: UInt64 = 4096) -> [UInt8] {
    bytes(UInt32(24), flags, iova, size)
  }

  @Test func `maps with an empty reply, and unmaps with the request as the reply`() throws {
    #expect(try device.call(.dmaMap, map(0)).body.isEmpty)
    #expect(try device.call(.dmaUnmap, unmap(0)).body == unmap(0))
  }

  @Test func `maps anywhere in 64 bits on the device's own socket`() throws {
    for iova: UInt64 in [0xFEE0_0000, 1 << 48, UInt64.max - 4095] {
      _ = try device.call(.dmaMap, map(iova))
    }
  }

  @Test func `fails with EEXIST to map what is mapped`() throws {
    _ = try device.call(.dmaMap, map(0, size: 8192))
    for body in [map(0), map(4096), map(0, size: 8192)] {
      #expect(throws: Errno.fileExists) { try device.call(.dmaMap, body) }
    }
  }

  @Test func `fails with ENOENT to unmap anything but what was mapped`() throws {
    _ = try device.call(.dmaMap, map(0, size: 8192))
    for body in [unmap(0), unmap(4096), unmap(0, size: 12288), unmap(1 << 20)] {
      #expect(throws: Errno.noSuchFileOrDirectory) { try device.call(.dmaUnmap, body) }
    }
  }

  @Test func `unmaps all with flag 2, and neither address nor size`() throws {
    _ = try device.call(.dmaMap, map(0))
    #expect(throws: Errno.invalidArgument) {
      try device.call(.dmaUnmap, unmap(0, flags: 2, size: 1))
    }
    #expect(throws: Errno.invalidArgument) {
      try device.call(.dmaUnmap, unmap(1, flags: 2, size: 0))
    }
    _ = try device.call(.dmaUnmap, unmap(0, flags: 2, size: 0))
    _ = try device.call(.dmaMap, map(0))
  }

  @Test func `fails with EINVAL for unknown flags, no access and several files`() throws {
    let file = try makeMemoryFile("test", size: 4096)
    for flags: UInt32 in [0, 4, 8, 1 << 31] {
      #expect(throws: Errno.invalidArgument) { try device.call(.dmaMap, map(0, flags: flags)) }
    }
    #expect(throws: Errno.invalidArgument) {
      try device.call(.dmaMap, map(0), with: [file, file])
    }
    for flags: UInt32 in [3, 4, 1 << 31] {
      #expect(throws: Errno.invalidArgument) { try device.call(.dmaUnmap, unmap(0, flags: flags)) }
    }
  }

  @Test func `unmaps with a dirty bitmap while DMA is logged, and else fails with EINVAL`() throws {
    _ = try device.call(.dmaMap, map(0))
    let request = bytes(UInt32(48), UInt32(1), UInt64(0), UInt64(4096), UInt64(4096), UInt64(8))
    #expect(throws: Errno.invalidArgument) { try device.call(.dmaUnmap, unmap(0, flags: 1)) }
    #expect(throws: Errno.invalidArgument) { try device.call(.dmaUnmap, request) }
    let start = bytes(UInt32(24), UInt32(6 | 1 << 17), UInt64(4096), UInt32(0), UInt32(0))
    #expect(try device.call(.deviceFeature, start).body == start)
    #expect(try device.call(.dmaUnmap, request).body == request + bytes(UInt64(0)))
    #expect(throws: Errno.noSuchFileOrDirectory) { try device.call(.dmaUnmap, request) }
  }

  @Test func `reads and writes no more of a state at once than the client said it takes`() throws {
    device.close()
    let device = world.socket()
    let limit = text(#"{"capabilities":{"max_data_xfer_size":4}}"#)
    try device.call(.version, version01 + limit)
    func go(_ state: UInt32) throws {
      try device.call(
        .deviceFeature, bytes(UInt32(16), UInt32(2 | 1 << 17), state, UInt32.max))
    }
    try go(6)
    #expect(try device.call(.migrationDataRead, bytes(UInt32(12), UInt32(4))).body.count == 12)
    #expect(throws: Errno.invalidArgument) {
      try device.call(.migrationDataRead, bytes(UInt32(13), UInt32(5)))
    }
    try go(4)
    #expect(throws: Errno.invalidArgument) {
      try device.call(.migrationDataWrite, bytes(UInt32(16), UInt32(8), UInt64(0)))
    }
  }

  @Test func `forgets its mappings when it closes`() throws {
    _ = try device.call(.dmaMap, map(0))
    device.close()
    _ = try world.device().call(.dmaMap, map(0))
  }

  // MARK: whose it is

  @Test func `is refused with EBUSY and closed while another client has it`() throws {
    for process: ProcessID in [100, 101] {
      let second = world.socket(process: process)
      #expect(throws: Errno.resourceBusy) { try second.call(.version, version01) }
      #expect(second.isFinished)
      second.close()
    }
    #expect(try device.call(.deviceReset).body.isEmpty)
  }

  @Test func `is refused with EBUSY while its group is open`() throws {
    let (group, _) = try world.group(26)
    let other = world.socket("0000:06:0d.0", group: 26)
    #expect(throws: Errno.resourceBusy) { try other.call(.version, version01) }
    group.close()
    _ = try world.socket("0000:06:0d.0", group: 26).call(.version, version01)
  }

  @Test func `holds its group as long as it is open`() throws {
    #expect(throws: Errno.resourceBusy) { try world.service.registry.openGroup(World.group) }
    device.close()
    try world.service.registry.openGroup(World.group).release()
  }

  @Test func `of a group that is not viable fails with EINVAL and may be tried again`() throws {
    let other = world.socket("0000:08:00.0", group: 28)
    for _ in 0..<2 {
      #expect(throws: Errno.invalidArgument) { try other.call(.version, version01) }
    }
    #expect(!other.isFinished)
  }

  @Test func `wants a loop of its own once it has its device`() throws {
    #expect(device.wantsOwnLoop && !world.socket().wantsOwnLoop)
  }
}

@Suite struct `The sockets of two devices of one group` {
  private let world: World
  private let names = ["0000:01:00.0", "0000:01:00.1"]

  init() throws {
    world = try World(
      Configuration(groups: [
        .init(id: 1, devices: names.map { .init($0, model: "scratch", driver: "vfio-pci") })
      ]))
  }

  private func socket(_ index: Int, process: ProcessID) -> DeviceSession {
    world.socket(names[index], group: 1, process: process)
  }

  private let map = bytes(UInt32(32), UInt32(3), UInt64(0), UInt64(0), UInt64(4096))
  private let unmap = bytes(UInt32(24), UInt32(0), UInt64(0), UInt64(4096))

  @Test func `map apart from each other when one process connects to both`() throws {
    let first = socket(0, process: 100)
    _ = try first.call(.version, version01)
    let second = socket(1, process: 100)
    _ = try second.call(.version, version01)
    let file = try makeMemoryFile("test", size: 8192)
    _ = try first.call(.dmaMap, map, with: [file])
    #expect(throws: Errno.noSuchFileOrDirectory) { try second.call(.dmaUnmap, unmap) }
    // What the first has not unmapped yet, and the second maps anew in another size.
    let longer = bytes(UInt32(32), UInt32(3), UInt64(0), UInt64(0), UInt64(8192))
    _ = try second.call(.dmaMap, longer, with: [file])
    #expect(throws: Errno.fileExists) { try second.call(.dmaMap, map, with: [file]) }
    _ = try first.call(.dmaUnmap, unmap)
    #expect(throws: Errno.fileExists) { try second.call(.dmaMap, map, with: [file]) }
  }

  @Test func `refuse a second process with EBUSY`() throws {
    _ = try socket(0, process: 100).call(.version, version01)
    #expect(throws: Errno.resourceBusy) { try socket(1, process: 101).call(.version, version01) }
  }

  @Test func `refuse a second process that this server cannot tell from the first`() throws {
    _ = try socket(0, process: 0).call(.version, version01)
    #expect(throws: Errno.resourceBusy) { try socket(1, process: 0).call(.version, version01) }
  }

  @Test func `give the group back with the last that closes`() throws {
    let sessions = [socket(0, process: 100), socket(1, process: 100)]
    for session in sessions { _ = try session.call(.version, version01) }
    sessions[0].close()
    #expect(throws: Errno.resourceBusy) { try socket(0, process: 101).call(.version, version01) }
    sessions[1].close()
    _ = try socket(0, process: 101).call(.version, version01)
  }
}

/// A device with one region, whatever its index.
private final class OwnRegion: DeviceOperations {
  private let own: RegionInformation
  init(information: RegionInformation) { own = information }

  var information: DeviceInformation { DeviceInformation(flags: 0, regions: 10, interrupts: 0) }
  func region(_ index: UInt32) throws(Errno) -> RegionInformation { own }
  func interrupt(_ index: UInt32) throws(Errno) -> InterruptInformation { throw .invalidArgument }
  func ioEvents(_ region: UInt32) throws(Errno) -> [IOEvent] { [] }
  func open(_ dma: DMA, keepingState: Bool) throws(Errno) {}
  func release() {}
  func read(
    _ region: UInt32, at offset: UInt64, into bytes: inout MutableSpan<UInt8>
  ) throws(Errno) { throw .invalidArgument }
  func write(_ bytes: Span<UInt8>, to region: UInt32, at offset: UInt64) throws(Errno) {
    throw .invalidArgument
  }
  func setInterrupts(_ request: InterruptRequest) throws(Errno) { throw .invalidArgument }
  func reset() throws(Errno) { throw .inappropriateIOCTLForDevice }
  func request() {}
}
