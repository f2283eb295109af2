import Testing
import VFIOClient

extension `The client` {
  @Suite struct `A container with sPAPR TCE` {
    let world: World
    init() throws { world = try World() }

    private func container(_ type: IOMMUType) throws -> (Container, Group) {
      let container = try world.vfio.openContainer()
      let group = try world.vfio.openGroup(27)
      try group.setContainer(container)
      try container.setIOMMU(type)
      return (container, group)
    }

    @Test func `of version 1 is enabled, mapped and disabled`() throws {
      let (container, group) = try container(.spaprTCE)
      let info = try container.tceInfo()
      #expect(info.windowStart == 0 && info.windowSize == 1 << 31 && info.windows == 0)
      let memory = try Memory(size: 0x1000)
      #expect(errno { () throws(VFIOError) in try container.map(memory, at: 0) } == .notPermitted)
      try container.enable()
      #expect(errno { () throws(VFIOError) in try container.enable() } == .resourceBusy)
      try container.map(memory, at: 0).unmap()
      #expect(try container.unmap(at: 0, size: 0x4000) == 0x4000)
      try container.disable()
      #expect(
        errno { () throws(VFIOError) in try container.register(memory) }
          == .inappropriateIOCTLForDevice)
      group.close()
    }

    @Test func `of version 2 has memory registered, and windows made and removed`() throws {
      let (container, group) = try container(.spaprTCEv2)
      let info = try container.tceInfo()
      #expect(info.windows == 2 && info.levels == 5 && info.pageSizes & 1 << 16 != 0)
      let memory = try Memory(size: 0x40000)
      try container.register(memory, offset: 0x20000)
      let start = try container.createWindow(pageShift: 16, size: 1 << 40)
      #expect(start == 1 << 59)
      let mapping = try container.map(memory, at: start, offset: 0x20000)
      let error = #expect(throws: VFIOError.self) {
        try container.unregister(memory, offset: 0x20000)
      }
      #expect(error?.description == "unregister 0x20000 bytes of memory: device or resource busy")
      try mapping.unmap()
      try container.unregister(memory, offset: 0x20000, size: 0x20000)
      try container.removeWindow(at: start)
      #expect(
        errno { () throws(VFIOError) in try container.removeWindow(at: start) } == .invalidArgument)
      group.close()
    }
  }
}
