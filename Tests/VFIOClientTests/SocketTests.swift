import Testing
import VFIOClient

extension `The client` {
  @Suite struct `A device's own socket` {
    let world: World
    init() throws { world = try World() }

    func connect() throws -> Device {
      try Device.connect(to: "\(world.directory)/devices/\(edu).sock")
    }

    @Test func `gives the device at once`() throws {
      let device = try connect()
      #expect(try device.region(.bar(0)).load(UInt32.self, at: 0) == 0x0100_00ED)
    }

    @Test func `that is taken is EBUSY, in a sentence`() throws {
      let device = try connect()
      let error = #expect(throws: VFIOError.self) { _ = try connect() }
      #expect(error?.errno == .resourceBusy)
      #expect(error?.operation.hasPrefix("agree with \(world.directory)/devices") == true)
      device.close()
      #expect(try connect().info().interrupts == 5)
    }

    @Test func `maps memory for DMA`() throws {
      let device = try connect()
      try device.enableBusMaster()
      // BAR decoding is the emulator's to turn on.
      try device.config.store(try device.config.load(UInt16.self, at: 4) | 2, at: 4)
      let memory = try Memory(size: 0x2000)
      let mapping = try device.map(memory, at: 0xFEE0_0000)
      #expect(
        errno { () throws(VFIOError) in try device.map(memory, at: 0xFEE0_1000) } == .fileExists)
      try mapping.unmap()
      let low = try device.map(memory, at: 0x1000, offset: 0x1000, size: 0x1000)
      try memory.write([1, 2, 3, 4], at: 0x1000)
      try copy(device, from: 0x1000, to: 0x40000, count: 4, command: 1)
      try copy(device, from: 0x40000, to: 0x1010, count: 4, command: 3)
      #expect(try memory.read(at: 0x1010, count: 4) == [1, 2, 3, 4])
      withExtendedLifetime(low) {}
    }

    @Test func `unmaps what goes out of scope`() throws {
      let device = try connect()
      let memory = try Memory(size: 0x1000)
      for _ in 0..<3 { _ = try device.map(memory, at: 0x1000) }
      for _ in 0..<3 { _ = try device.mapByMessage(memory, at: 0x1000) }
    }
  }
}
