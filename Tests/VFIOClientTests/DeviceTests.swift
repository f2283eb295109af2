import Testing
import VFIOClient
import VFIOServer

extension `The client` {
  @Suite struct `A device` {
    let world: World
    init() throws { world = try World() }

    @Test func `tells its regions and interrupts`() throws {
      let device = try world.scratch()
      let info = try device.info()
      #expect(info.flags == [.reset, .pci])
      #expect(info.regions >= 9 && info.interrupts == 5)
      #expect(try device.regionInfo(.bar(0)).size == 1 << 20)
      #expect(try device.regionInfo(.bar(0)).mappable == [])
      #expect(try device.regionInfo(.bar(2)).mappable == [0x1000..<0x20_0000])
      let vectors = try device.interruptInfo(.msix)
      #expect(vectors.flags == [.eventfd, .maskable] && vectors.count == 8)
      let line = try device.interruptInfo(.intx)
      #expect(line.flags == [.eventfd, .maskable, .automasked] && line.count == 1)
      #expect(
        errno { () throws(VFIOError) in try device.regionInfo(RegionIndex(rawValue: 99)) }
          == .invalidArgument)
    }

    @Test func `loads what was stored, in every width`() throws {
      let bar = try world.scratch().region(.bar(0))
      try bar.store(0x1122_3344_5566_7788 as UInt64, at: 0x100)
      #expect(try bar.load(UInt8.self, at: 0x100) == 0x88)
      #expect(try bar.load(UInt16.self, at: 0x100) == 0x7788)
      #expect(try bar.load(UInt32.self, at: 0x104) == 0x1122_3344)
      #expect(try bar.load(Int64.self, at: 0x100) == 0x1122_3344_5566_7788)
      try bar.store(-1 as Int16, at: 0x102)
      #expect(try bar.load(at: 0x100) == 0x1122_3344_FFFF_7788 as UInt64)
    }

    @Test func `reads and writes more than one message may carry`() throws {
      let bar = try world.scratch().region(.bar(2))
      let bytes = (0..<(2 << 20)).map { UInt8(truncatingIfNeeded: $0 ^ $0 >> 8 ^ $0 >> 16) }
      try bar.write(bytes, at: 0)
      #expect(try bar.read(at: 0, count: bytes.count) == bytes)
      #expect(try bar.read(at: 0, count: 0) == [])
    }

    @Test func `says which access failed`() throws {
      let bar = try world.scratch().region(.bar(0))
      let error = #expect(throws: VFIOError.self) { try bar.store(1 as UInt32, at: 1 << 20) }
      #expect(
        error?.description == "store 4 bytes at 0x100000 of 0000:07:00.0 bar 0: invalid argument")
      #expect(
        errno { () throws(VFIOError) in try bar.load(UInt64.self, at: .max) } == .invalidArgument)
    }

    @Test func `whose decoding is off fails with EIO`() throws {
      let device = try world.scratch()
      try device.config.store(0 as UInt16, at: 4)
      #expect(
        errno { () throws(VFIOError) in try device.region(.bar(0)).load(UInt32.self, at: 0) }
          == .ioError)
    }

    @Test func `does posted stores before what is asked afterwards`() throws {
      let bar = try world.scratch().region(.bar(0))
      for value in 0..<1000 as Range<UInt32> { try bar.post(value, at: 0x40) }
      #expect(try bar.load(UInt32.self, at: 0x40) == 999)
    }

    @Test func `keeps silent about posted stores that fail`() throws {
      let bar = try world.scratch().region(.bar(0))
      try bar.post(1 as UInt32, at: .max)
      #expect(try bar.load(UInt32.self, at: 0) == 0)
    }

    @Test func `has doorbells that are rung without a message`() throws {
      let name = "0000:09:00.0"
      let world = try World(
        Configuration(groups: [
          .init(id: 29, devices: [.init(name, model: "doorbell", driver: "vfio-pci")])
        ]))
      let (_, group) = try world.group(29)
      let device = try group.openDevice(name)
      let bar = device.region(.bar(0))
      let doorbells = try bar.doorbells()
      #expect(doorbells.map(\.offset) == [4] + Array(repeating: 8, count: 8))
      #expect(doorbells.map(\.value) == [nil, 0, 1, 2, 3, 4, 5, 6, 7])
      #expect(doorbells.allSatisfy { $0.size == 4 })
      let interrupt = try device.enableInterrupt(.msix, 6)
      doorbells[0].ring()
      doorbells[7].ring()
      #expect(try interrupt.wait() == 1)
      #expect(try bar.load(UInt32.self, at: 0) == 1)
      #expect(try device.region(.bar(4)).doorbells().isEmpty)
      #expect(
        errno { () throws(VFIOError) in try device.region(.bar(5)).doorbells() }
          == .invalidArgument)
    }

    @Test func `is reset, and keeps COMMAND`() throws {
      let (_, device) = try world.edu()
      try device.enableBusMaster()
      let bar = device.region(.bar(0))
      try bar.store(7 as UInt32, at: 4)
      try device.reset()
      #expect(try bar.load(UInt32.self, at: 4) == 0)
      #expect(try device.config.load(UInt16.self, at: 4) & 4 != 0)
    }

    @Test func `shares its mappable memory`() throws {
      let bar = try world.scratch().region(.bar(2))
      let area = try #require(try bar.mappedAreas().first)
      #expect(area.offset == 0x1000 && area.size == 0x1F_F000 && area.isWritable)
      try area.store(0xDEAD_BEEF as UInt32, at: 0x1FFFFC)
      #expect(try bar.load(UInt32.self, at: 0x1FFFFC) == 0xDEAD_BEEF)
      try bar.write([1, 2, 3], at: 0x2001)
      #expect(try area.read(at: 0x2001, count: 3) == [1, 2, 3])
      #expect(try area.load(UInt16.self, at: 0x2002) == 0x0302)
    }

    @Test func `is not reached beyond a mapped area`() throws {
      let area = try #require(try world.scratch().region(.bar(2)).mappedAreas().first)
      let error = #expect(throws: VFIOError.self) { try area.load(UInt32.self, at: 0xFFC) }
      #expect(error?.description == "load 4 bytes at 0xffc of 0000:07:00.0 bar 2: invalid argument")
      #expect(
        errno { () throws(VFIOError) in try area.store(1 as UInt32, at: 0x1FFFFD) }
          == .invalidArgument)
      #expect(
        errno { () throws(VFIOError) in try area.load(UInt8.self, at: .max) } == .invalidArgument)
      #expect(
        errno { () throws(VFIOError) in try area.write([0, 0], at: 0x1FFFFF) } == .invalidArgument)
      #expect(
        errno { () throws(VFIOError) in try area.read(at: 0x1000, count: -1) } == .invalidArgument)
    }

    @Test func `without mappable memory has no areas`() throws {
      #expect(try world.scratch().region(.bar(0)).mappedAreas().isEmpty)
    }

    @Test func `answers a command that it hasn't got with ENOTSUP, and goes on`() throws {
      let device = try world.scratch()
      #expect(errno { () throws(VFIOError) in try device.operation(19, [0]) } == .notSupported)
      #expect(try device.info().interrupts == 5)
    }
  }

  @Suite struct `Shared memory` {
    @Test func `is read and written within its bounds`() throws {
      let memory = try Memory(size: 0x1000)
      try memory.store(0x0102_0304 as UInt32, at: 0xFFC)
      #expect(try memory.read(at: 0xFFC, count: 4) == [4, 3, 2, 1])
      try memory.write([9], at: 0xFFF)
      #expect(try memory.load(UInt8.self, at: 0xFFF) == 9)
      #expect(
        errno { () throws(VFIOError) in try memory.load(UInt64.self, at: 0xFF9) }
          == .invalidArgument)
      #expect(
        errno { () throws(VFIOError) in try memory.write([1], at: 0x1000) } == .invalidArgument)
    }

    @Test func `of no size is refused with EINVAL`() {
      #expect(errno { () throws(VFIOError) in try Memory(size: 0) } == .invalidArgument)
    }
  }
}
