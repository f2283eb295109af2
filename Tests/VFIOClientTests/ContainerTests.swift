import Foundation
import Testing
import VFIOClient

extension `The client` {
  @Suite struct `A container` {
    let world: World
    init() throws { world = try World() }

    @Test func `knows its API version and what it has`() throws {
      let container = try world.vfio.openContainer()
      #expect(try container.apiVersion() == 0)
      #expect(try container.checkExtension(.type1) == 1)
      #expect(try container.checkExtension(.unmapAll) == 1)
      #expect(try container.checkExtension(IOMMUType(rawValue: 77)) == 0)
    }

    @Test func `without a group refuses an IOMMU with EINVAL, in a sentence`() throws {
      let container = try world.vfio.openContainer()
      let error = #expect(throws: VFIOError.self) { try container.setIOMMU(.type1v2) }
      #expect(error?.errno == .invalidArgument)
      #expect(error?.description == "set IOMMU type 3: invalid argument")
    }

    @Test func `tells the addresses that may be mapped, and how many mappings are left`() throws {
      let (container, group) = try world.group(27)
      let info = try container.iommuInfo()
      #expect(info.iovaRanges == [0...0xFEDF_FFFF, 0xFEF0_0000...0xFFFF_FFFF_FFFF])
      #expect(info.pageSizes & 0x1000 != 0)
      let mapping = try container.map(try Memory(size: 0x1000), at: 0)
      #expect(try container.iommuInfo().availableMappings == info.availableMappings.map { $0 - 1 })
      try mapping.unmap()
      group.close()
    }

    @Test func `unmaps what goes out of scope`() throws {
      let (container, group) = try world.group(27)
      let memory = try Memory(size: 0x1000)
      func mapBriefly() throws { _ = try container.map(memory, at: 0x1000) }
      try mapBriefly()
      #expect(try container.unmapAll() == 0)
      group.close()
    }

    @Test func `refuses a mapping over another with EEXIST, and keeps the first`() throws {
      let (container, group) = try world.group(27)
      let memory = try Memory(size: 0x2000)
      let first = try container.map(memory, at: 0x1000, size: 0x1000)
      let error = #expect(throws: VFIOError.self) { _ = try container.map(memory, at: 0x1000) }
      #expect(error?.errno == .fileExists)
      #expect(error?.operation == "map 0x2000 bytes at 0x1000")
      try first.unmap()
      try first.unmap()
      #expect(try container.unmapAll() == 0)
      group.close()
    }

    @Test func `unmaps by address, and says how much`() throws {
      let (container, group) = try world.group(27)
      let memory = try Memory(size: 0x4000)
      let whole = try container.map(memory, at: 0x10000)
      #expect(
        errno { () throws(VFIOError) in try container.unmap(at: 0x10000, size: 0x1000) }
          == .invalidArgument)
      #expect(try container.unmap(at: 0, size: 0x100000) == 0x4000)
      withExtendedLifetime(whole) {}
      group.close()
    }

    @Test func `maps a part of a memory`() throws {
      let (container, group) = try world.group(26)
      let device = try group.openDevice(edu)
      try device.enableBusMaster()
      let memory = try Memory(size: 0x3000)
      let mapping = try container.map(memory, at: 0x5000, offset: 0x1000, size: 0x1000)
      try memory.store(0x1234_5678 as UInt32, at: 0x1004)
      try copy(device, from: 0x5004, to: 0x40000, count: 4, command: 1)
      try memory.store(0 as UInt32, at: 0x1004)
      try copy(device, from: 0x40000, to: 0x5004, count: 4, command: 3)
      #expect(try memory.load(UInt32.self, at: 0x1004) == 0x1234_5678)
      try mapping.unmap()
    }

    @Test func `maps this process's own memory by its address`() throws {
      let (container, group) = try world.group(27)
      let bytes = UnsafeMutableRawPointer.allocate(byteCount: 0x1000, alignment: 0x1000)
      defer { unsafe bytes.deallocate() }
      try container.map(address: UInt64(UInt(bitPattern: bytes)), size: 0x1000, at: 0x1000)
      #expect(try container.unmap(at: 0x1000, size: 0x1000) == 0x1000)
      group.close()
    }

    @Test func `has no read, write or mmap with type1`() throws {
      let (container, group) = try world.group(27)
      #expect(
        errno { () throws(VFIOError) in try container.read(at: 0, count: 4) } == .invalidArgument)
      #expect(errno { () throws(VFIOError) in try container.write([1], at: 0) } == .invalidArgument)
      #expect(
        errno { () throws(VFIOError) in try container.mapped(at: 0, size: 4096) }
          == .invalidArgument)
      group.close()
    }

    @Test func `takes any ioctl by its number`() throws {
      let (container, group) = try world.group(27)
      let reply = try container.operation(0x3B64)
      #expect(reply.result == 0 && reply.structure.isEmpty)
      // VFIO_IOMMU_DIRTY_PAGES with START: argsz, flags.
      #expect(try container.operation(0x3B75, [8, 0, 0, 0, 1, 0, 0, 0]).result == 0)
      let error = #expect(throws: VFIOError.self) { try container.operation(0x3BFF) }
      #expect(error?.errno == .inappropriateIOCTLForDevice)
      #expect(error?.operation == "operation 0x3bff")
      group.close()
    }

    @Test func `lives on with the mappings that are made in it`() throws {
      var mapping: DMAMemory?
      var container: Container? = try world.vfio.openContainer()
      let group = try world.vfio.openGroup(27)
      if let container {
        try group.setContainer(container)
        try container.setIOMMU(.type1v2)
        mapping = try container.map(try Memory(size: 0x1000), at: 0)
      }
      container = nil
      try mapping?.unmap()
    }

    @Test func `that was closed fails with EBADF`() throws {
      let container = try world.vfio.openContainer()
      container.close()
      #expect(container.isClosed)
      #expect(errno { () throws(VFIOError) in try container.apiVersion() } == .badFileDescriptor)
      let group = try world.vfio.openGroup(27)
      let error = #expect(throws: VFIOError.self) { try group.setContainer(container) }
      #expect(error?.description == "put group 27 into a container: bad file descriptor")
    }

    @Test func `can be adopted by its descriptor`() throws {
      let container = try world.vfio.openContainer()
      let copy = Container(adopting: try container.descriptor().duplicate())
      container.close()
      #expect(try copy.apiVersion() == 0)
    }
  }
}

/// A DMA of edu's, waited for by its command register.
func copy(
  _ device: Device, from source: UInt64, to destination: UInt64, count: UInt64, command: UInt64
) throws(VFIOError) {
  let bar = device.region(.bar(0))
  try bar.store(source, at: 0x80)
  try bar.store(destination, at: 0x88)
  try bar.store(count, at: 0x90)
  try bar.store(command, at: 0x98)
  while try bar.load(UInt64.self, at: 0x98) & 1 != 0 {}
}
