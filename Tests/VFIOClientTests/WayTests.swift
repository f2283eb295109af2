import Testing
import VFIOClient

extension `The client` {
  /// Of the article "From a container to DMA and back": keep both alike.
  @Test func `goes the whole way from a container to DMA and back`() throws {
    let world = try World()
    let vfio = try VFIO.connect(directory: world.directory)

    let container = try vfio.openContainer()
    #expect(try container.apiVersion() == 0)
    #expect(try container.checkExtension(.type1v2) > 0)

    let group = try vfio.openGroup(26)
    #expect(try group.status().contains(.viable))
    try group.setContainer(container)
    try container.setIOMMU(.type1v2)

    let memory = try Memory(size: 0x2000)
    let mapping = try container.map(memory, at: 0x100000)

    let device = try group.openDevice("0000:06:0d.0")
    let bar = device.region(.bar(0))
    #expect(try bar.load(UInt32.self, at: 0x00) == 0x0100_00ED)
    try device.enableBusMaster()

    let interrupt = try device.enableInterrupt(.msi, 0)
    try memory.write(Array("hello".utf8), at: 0)
    // To the device's buffer, which it has at 0x40000.
    try bar.store(0x100000 as UInt64, at: 0x80)
    try bar.store(0x40000 as UInt64, at: 0x88)
    try bar.store(5 as UInt64, at: 0x90)
    try bar.store(1 | 4 as UInt64, at: 0x98)
    #expect(try interrupt.wait(timeout: .seconds(10)) == 1)
    #expect(try bar.load(UInt32.self, at: 0x24) == 0x100)
    try bar.store(0x100 as UInt32, at: 0x64)
    // And back, a page further.
    try device.pipeline {
      $0.store(0x40000 as UInt64, to: .bar(0), at: 0x80)
      $0.store(0x101000 as UInt64, to: .bar(0), at: 0x88)
      $0.store(1 | 2 | 4 as UInt64, to: .bar(0), at: 0x98)
    }
    #expect(try interrupt.wait(timeout: .seconds(10)) == 1)
    #expect(try memory.read(at: 0x1000, count: 5) == Array("hello".utf8))

    interrupt.disable()
    try mapping.unmap()
    device.close()
    group.close()
    container.close()
  }
}
