import Testing
import VFIOClient

extension `The client` {
  @Suite struct `A migration` {
    let world: World
    init() throws { world = try World() }

    @Test func `moves a device to another server`() throws {
      let other = try World()
      let (source, destination) = (try world.scratch(), try other.scratch())
      try source.region(.bar(0)).store(0x1122_3344 as UInt32, at: 8)
      var state: [UInt8] = []
      for phase in [.preCopy, .stopCopy] as [MigrationState] {
        try source.setMigrationState(phase)
        var piece: [UInt8]
        repeat {
          piece = try source.readMigrationData(1 << 20)
          state += piece
        } while piece.count == 1 << 20
      }
      #expect(try source.migrationState() == .stopCopy)
      try destination.setMigrationState(.resuming)
      for start in stride(from: 0, to: state.count, by: 1 << 20) {
        try destination.writeMigrationData(Array(state[start...].prefix(1 << 20)))
      }
      try destination.setMigrationState(.running)
      #expect(try destination.region(.bar(0)).load(UInt32.self, at: 8) == 0x1122_3344)
    }

    @Test func `to a state that can't be reached fails with EINVAL`() throws {
      let device = try world.scratch()
      #expect(
        errno { () throws(VFIOError) in try device.setMigrationState(.error) } == .invalidArgument)
      #expect(try device.migrationState() == .running)
    }

    @Test func `is told which pages a device has written`() throws {
      let (container, device) = try world.edu()
      let memory = try Memory(size: 0x4000)
      let mapping = try container.map(memory, at: 0x10_0000)
      try device.enableBusMaster()
      #expect(try device.startDMALog(ranges: [0x10_0000..<0x10_4000]) == 4096)
      let registers = device.region(.bar(0))
      try registers.store(0x40000 as UInt64, at: 0x80)
      try registers.store(0x10_1FFF as UInt64, at: 0x88)
      try registers.store(2 as UInt64, at: 0x90)
      try registers.store(3 as UInt64, at: 0x98)
      while try registers.load(UInt64.self, at: 0x98) & 1 == 1 {}
      #expect(try device.dmaLog(0x10_0000..<0x10_4000) == [0b110, 0, 0, 0, 0, 0, 0, 0])
      #expect(try device.dmaLog(0x10_0000..<0x10_4000) == [0, 0, 0, 0, 0, 0, 0, 0])
      try device.stopDMALog()
      withExtendedLifetime(mapping) {}
    }
  }
}
