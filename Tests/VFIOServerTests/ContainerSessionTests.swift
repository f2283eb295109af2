import LinuxIO
import SystemPackage
import Testing
import VFIOCore
import VFIOWire

@testable import VFIOServer

@Suite struct `A container's socket` {
  private let world: World
  private let container: ContainerSession
  private let descriptor: Descriptor

  init() throws {
    world = try World()
    (container, descriptor) = try world.container()
  }

  /// A container with a group and a driver.
  private func ready() throws -> ContainerSession {
    let (group, _) = try world.group()
    _ = try group.call(.groupSetContainer, with: [descriptor])
    _ = try container.call(.setIOMMU, World.type1v2)
    return container
  }

  @Test func `speaks version 0 of the API`() throws {
    #expect(try container.call(.getAPIVersion).body == zero)
  }

  @Test(arguments: [(1, 1), (3, 1), (2, 0), (99, 0), (UInt64.max, 0)] as [(UInt64, Int64)])
  func `answers CHECK_EXTENSION with what the drivers have`(
    _ number: UInt64, _ answer: Int64
  ) throws {
    #expect(try container.call(.checkExtension, bytes(number)).body == bytes(answer))
  }

  @Test func `sets the IOMMU driver once it has a group, and only once`() throws {
    #expect(throws: Errno.invalidArgument) { try container.call(.setIOMMU, World.type1v2) }
    let (group, _) = try world.group()
    _ = try group.call(.groupSetContainer, with: [descriptor])
    for type: UInt64 in [0, 99, .max] {
      #expect(throws: Errno.operationNotSupportedByDevice) {
        try container.call(.setIOMMU, bytes(type))
      }
    }
    #expect(try container.call(.setIOMMU, World.type1v2).body == zero)
    #expect(throws: Errno.invalidArgument) { try container.call(.setIOMMU, World.type1v2) }
  }

  @Test(
    arguments: [
      (.checkExtension, 7), (.checkExtension, 0), (.setIOMMU, 7), (.setIOMMU, 0),
      (.containerRead, 15), (.containerRead, 0), (.containerWrite, 15), (.containerMmap, 15),
    ] as [(Command, Int)])
  func `fails with EINVAL for a structure cut short`(_ command: Command, _ count: Int) throws {
    let container = try ready()
    #expect(throws: Errno.invalidArgument) {
      try container.call(command, [UInt8](repeating: 0, count: count))
    }
  }

  @Test(
    arguments: [.iommuGetInfo, .iommuMapDMA, .containerRead, Command(rawValue: 0x1234)]
      as [Command])
  func `fails with EINVAL for what a driver would do while it has none`(_ command: Command) {
    #expect(throws: Errno.invalidArgument) {
      try container.call(command, [UInt8](repeating: 0, count: 32))
    }
  }

  @Test func `fails with ENOTTY for what its driver lacks`() throws {
    let container = try ready()
    for number: UInt16 in [0, 1, 0x3B67, 0x3B6A, 0x4000, 0x4001, 0x4004, 0xFFFF] {
      #expect(throws: Errno.inappropriateIOCTLForDevice) {
        try container.call(Command(rawValue: number))
      }
    }
  }

  @Test func `answers a driver's operation with its result and its structure`() throws {
    let reply = try ready().call(
      .iommuGetInfo, bytes(UInt32(24), UInt32(0), UInt64(0), UInt32(0), UInt32(0)))
    #expect(reply.body.prefix(8).elementsEqual(zero))
    #expect(reply.body.count == 8 + 24)
    #expect(reply.uint32(at: 8) > 24)
  }

  @Test func `maps a memory file whose descriptor comes along`() throws {
    let container = try ready()
    let file = try makeMemoryFile("test", size: 8192)
    let map = bytes(UInt32(32), UInt32(3), UInt64(4096), UInt64(0), UInt64(4096))
    #expect(try container.call(.iommuMapDMA, map, with: [file]).body == zero)
  }

  @Test func `fails with EINVAL to map two files, a short file, or what is no file`() throws {
    let container = try ready()
    let file = try makeMemoryFile("test", size: 4096)
    let map = bytes(UInt32(32), UInt32(3), UInt64(0), UInt64(0), UInt64(8192))
    for descriptors in [[file], [file, file], [try Descriptor.null()], [try EventFD().descriptor]] {
      #expect(throws: Errno.invalidArgument) {
        try container.call(.iommuMapDMA, map, with: descriptors)
      }
    }
  }

  @Test func `fails with EFAULT to map memory of a sender who is not known or has no such memory`()
    throws
  {
    let container = try ready()
    let map = bytes(UInt32(32), UInt32(3), UInt64(0), UInt64(0), UInt64(4096))
    #expect(throws: Errno.badAddress) { try container.call(.iommuMapDMA, map) }
    #expect(throws: Errno.badAddress) { try container.call(.iommuMapDMA, map, from: thisProcess) }
  }

  @Test func `fails with EFAULT to map memory of a process that is not the sender's any more`()
    throws
  {
    let container = try ready()
    let memory = Page()
    let map = bytes(UInt32(32), UInt32(3), memory.address, UInt64(0), UInt64(4096))
    var stranger = thisProcess
    stranger.user &+= 1000
    #expect(throws: Errno.badAddress) { try container.call(.iommuMapDMA, map, from: stranger) }
    #expect(try container.call(.iommuMapDMA, map, from: thisProcess).body == zero)
  }

  @Test func `fails with EOVERFLOW to map memory that wraps around`() throws {
    let map = bytes(UInt32(32), UInt32(3), UInt64.max - 4095, UInt64(0), UInt64(8192))
    let container = try ready()
    #expect(throws: Errno.overflow) { try container.call(.iommuMapDMA, map, from: thisProcess) }
  }

  @Test func `fails with EINVAL to read, write or map itself where the driver has no such thing`()
    throws
  {
    let container = try ready()
    let access = bytes(UInt64(0), UInt32(0), UInt32(4))
    for (command, body) in [
      (Command.containerRead, access), (.containerWrite, access + [1, 2, 3, 4]),
      (.containerMmap, bytes(UInt64(0), UInt64(4096))),
    ] {
      #expect(throws: Errno.invalidArgument) { try container.call(command, body) }
    }
  }
}

@Suite struct `A sender's memory` {
  @Test func `that would wrap around fails with EFAULT`() {
    #expect(throws: Errno.badAddress) {
      try Processes().memory(of: thisProcess, at: .max - 4095, size: 8192, writable: false)
    }
    #expect(throws: Errno.badAddress) {
      try Processes().memory(of: thisProcess, at: 0, size: 0, writable: false)
    }
  }

  @Test func `is one object for all of its mappings`() throws {
    let processes = Processes()
    let page = Page()
    let first = try processes.memory(of: thisProcess, at: page.address, size: 4096, writable: false)
    #expect(
      try processes.memory(of: thisProcess, at: page.address, size: 1, writable: false) === first)
  }
}
