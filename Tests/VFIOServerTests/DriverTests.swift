import LinuxIO
import Locks
import SystemPackage
import Testing
import VFIOCore
import VFIOWire

@testable import VFIOServer

/// An IOMMU driver that the core doesn't know: a container is a page of memory, to read, to write and
/// to map, and one ioctl turns its argument around.
private final class PageDriver: IOMMUDriver {
  static let type: UInt64 = 77
  static let reverse = Command(rawValue: 0x3BF0)

  let name = "page"
  func checkExtension(_ number: UInt64) -> Int64 { number == Self.type ? 5 : 0 }
  func open(_ type: UInt64, _ limits: IOMMULimits) throws(Errno) -> any IOMMU {
    PageIOMMU(try DeviceMemory(size: 4096))
  }
}

private final class PageIOMMU: IOMMU {
  private let page: DeviceMemory
  init(_ page: DeviceMemory) { self.page = page }

  func checkExtension(_ number: UInt64) -> Int64 { number == PageDriver.type ? 6 : -1 }
  func attach(_ group: IOMMUGroup) throws(Errno) {}
  func detach(_ group: IOMMUGroup) {}

  func operation(
    _ command: UInt32, _ argument: Span<UInt8>, _ source: any MemorySource
  ) throws(Errno) -> OperationResult {
    guard command == UInt32(PageDriver.reverse.rawValue) else {
      throw .inappropriateIOCTLForDevice
    }
    return OperationResult(value: -7, structure: argument.indices.reversed().map { argument[$0] })
  }

  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    try page.read(at: offset, into: &bytes)
  }
  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {
    try page.write(bytes, at: offset)
  }
  func mmap(at offset: UInt64, size: UInt64) throws(Errno) -> any MappableMemory {
    guard offset == 0, size == 4096 else { throw .noSuchAddressOrDevice }
    return page
  }
  let iotlb = IOTLB()
  func translate(_ iova: UInt64) -> Translation? { nil }
  func release() {}
}

@Suite struct `A container with a driver of its own` {
  private let world: World
  private let container: ContainerSession
  private let group: GroupSession

  init() throws {
    world = try World(driver: PageDriver())
    let descriptor: Descriptor
    (container, descriptor) = try world.container()
    (group, _) = try world.group()
    _ = try group.call(.groupSetContainer, with: [descriptor])
    _ = try container.call(.setIOMMU, bytes(PageDriver.type))
  }

  @Test func `has that driver's extensions`() throws {
    let (other, _) = try world.container()
    #expect(try other.call(.checkExtension, bytes(PageDriver.type)).body == bytes(Int64(5)))
    #expect(try container.call(.checkExtension, bytes(PageDriver.type)).body == bytes(Int64(6)))
    #expect(try container.call(.checkExtension, bytes(UInt64(1))).body == bytes(Int64(-1)))
  }

  @Test func `reads what was written, and repeats the request in front of the data`() throws {
    let access = bytes(UInt64(8), UInt32(9), UInt32(3))
    #expect(try container.call(.containerWrite, access + [1, 2, 3]).body == access)
    #expect(try container.call(.containerRead, access).body == access + [1, 2, 3])
  }

  @Test(arguments: [.max, 4094, 1 << 40] as [UInt64])
  func `answers with the driver's error`(_ offset: UInt64) {
    let access = bytes(offset, UInt32(0), UInt32(4))
    #expect(throws: Errno.badAddress) { try container.call(.containerRead, access) }
    #expect(throws: Errno.badAddress) {
      try container.call(.containerWrite, access + [1, 2, 3, 4])
    }
    #expect(throws: Errno.noSuchAddressOrDevice) {
      try container.call(.containerMmap, bytes(offset, UInt64(4096)))
    }
  }

  @Test(arguments: [(1 << 20) + 1, .max] as [UInt32])
  func `fails with EINVAL to read or write more than the limit`(_ count: UInt32) {
    let access = bytes(UInt64(0), UInt32(0), count)
    #expect(throws: Errno.invalidArgument) { try container.call(.containerRead, access) }
    #expect(throws: Errno.invalidArgument) {
      try container.call(.containerWrite, access + [UInt8](repeating: 0, count: (1 << 20) + 1))
    }
  }

  @Test func `fails with EINVAL to write data cut short`() {
    let access = bytes(UInt64(0), UInt32(0), UInt32(4))
    #expect(throws: Errno.invalidArgument) { try container.call(.containerWrite, access + [1]) }
  }

  @Test func `hands out its memory with an empty reply`() throws {
    let access = bytes(UInt64(0), UInt32(0), UInt32(2))
    _ = try container.call(.containerWrite, access + [5, 6])
    let reply = try container.call(.containerMmap, bytes(UInt64(0), UInt64(4096)))
    #expect(reply.body.isEmpty)
    let mapping = try SharedMapping(reply.descriptor, size: 4096, writable: true)
    var read: [UInt8] = [0, 0]
    var span = read.mutableSpan
    try mapping.read(at: 0, into: &span)
    #expect(read == [5, 6])
  }

  @Test func `fails with ETOOMANYREFS to hand out memory to one who does not collect`() {
    #expect(throws: Errno.tooManyReferences) {
      try container.call(.containerMmap, bytes(UInt64(0), UInt64(4096)), mayHandOut: false)
    }
  }

  @Test func `gives the driver an operation that nobody else knows, untouched`() throws {
    let reply = try container.call(PageDriver.reverse, [1, 2, 3])
    #expect(reply.body == bytes(Int64(-7)) + [3, 2, 1])
    #expect(try container.call(PageDriver.reverse).body == bytes(Int64(-7)))
    #expect(throws: Errno.inappropriateIOCTLForDevice) { try container.call(.iommuMapDMA) }
  }

  @Test func `fails with ENOTTY to map on a device's descriptor where the driver has no DMA_MAP`()
    throws
  {
    let open = try world.service.registry.openGroup(26)
    let container = Container(registry: world.service.registry)
    try open.setContainer(container)
    try container.setIOMMU(PageDriver.type)
    let device = DeviceSession(
      world.service, try open.openDevice("0000:06:0d.0"), number: world.service.nextNumber())
    _ = try device.call(.version, version01)
    #expect(throws: Errno.inappropriateIOCTLForDevice) {
      try device.call(
        .dmaMap, bytes(UInt32(32), UInt32(3), UInt64(0), UInt64(0), UInt64(4096)))
    }
    #expect(throws: Errno.inappropriateIOCTLForDevice) {
      try device.call(.dmaUnmap, bytes(UInt32(24), UInt32(0), UInt64(0), UInt64(4096)))
    }
  }
}
