import LinuxIO
import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU
import VFIOWire

@testable import VFIOServer

/// A container with sPAPR TCE's version 2, and the memory that a request may bring to it.
@Suite struct `A sPAPR TCE container's socket` {
  private let world: World
  private let group: GroupSession
  private let container: ContainerSession

  init() throws {
    world = try World(driver: SPAPRDriver())
    let descriptor: Descriptor
    (container, descriptor) = try world.container()
    (group, _) = try world.group()
    _ = try group.call(.groupSetContainer, with: [descriptor])
    _ = try container.call(.setIOMMU, bytes(UInt64(7)))
  }

  private func memory(
    _ command: UInt16, _ address: UInt64, _ size: UInt64, _ file: Descriptor?,
    from sender: Credentials? = nil
  ) throws(Errno) {
    _ = try container.call(
      Command(rawValue: command), bytes(UInt32(24), UInt32(0), address, size),
      with: file.map { [$0] } ?? [], from: sender)
  }

  private func register(
    _ address: UInt64, _ size: UInt64, _ file: Descriptor? = nil, from sender: Credentials? = nil
  ) throws(Errno) {
    try memory(0x3B75, address, size, file, from: sender)
  }

  private func unregister(
    _ address: UInt64, _ size: UInt64, _ file: Descriptor? = nil, from sender: Credentials? = nil
  ) throws(Errno) {
    try memory(0x3B76, address, size, file, from: sender)
  }

  private func map(
    _ iova: UInt64, _ size: UInt64, at address: UInt64, _ file: Descriptor? = nil,
    from sender: Credentials? = nil
  ) throws(Errno) {
    _ = try container.call(
      .iommuMapDMA, bytes(UInt32(32), UInt32(3), address, iova, size),
      with: file.map { [$0] } ?? [], from: sender)
  }

  @Test func `knows a file by any of its descriptors`() throws {
    let file = try makeMemoryFile("test", size: 8192)
    let other = try makeMemoryFile("test", size: 8192)
    try register(0, 8192, file)
    let again = try Descriptor(duplicating: file.borrowed)
    #expect(throws: Errno.resourceBusy) { try register(0, 8192, again) }
    #expect(throws: Errno.invalidArgument) { try map(0, 8192, at: 0, other) }
    try map(0, 8192, at: 0, again)
    #expect(throws: Errno.noSuchFileOrDirectory) { try unregister(0, 8192, other) }
    #expect(throws: Errno.resourceBusy) { try unregister(0, 8192, again) }
  }

  @Test func `knows a file that has grown, and was registered as far as it had`() throws {
    let directory = try TemporaryDirectory()
    let file = try openFile(making: "\(directory.path)/memory", size: 4096)
    try register(0, 4096, file)
    try file.borrowed.resize(to: 8192)
    try register(4096, 4096, file)
    try map(0, 8192, at: 0, file)
    try map(0, 4096, at: 4096, file)
    try unregister(0, 4096, file)
  }

  @Test func `knows a file that was cut off, which can be unregistered still`() throws {
    let directory = try TemporaryDirectory()
    let file = try openFile(making: "\(directory.path)/memory", size: 8192)
    try register(0, 8192, file)
    try file.borrowed.resize(to: 0)
    try unregister(0, 8192, file)
  }

  @Test func `knows the sender's own memory, also when it can't be reached any more`() throws {
    let memory = Page()
    let address = memory.address
    #expect(throws: Errno.badAddress) { try register(address, 4096) }
    try register(address, 4096, from: thisProcess)
    #expect(throws: Errno.resourceBusy) { try register(address, 4096, from: thisProcess) }
    try map(0, 4096, at: address, from: thisProcess)
    #expect(throws: Errno.invalidArgument) {
      try map(0, 4096, at: address + 4096, from: thisProcess)
    }
    let file = try makeMemoryFile("test", size: 4096)
    #expect(throws: Errno.invalidArgument) { try map(0, 4096, at: address, file) }
    var stranger = thisProcess
    stranger.process = 1
    #expect(throws: Errno.invalidArgument) { try map(0, 4096, at: address, from: stranger) }
    #expect(throws: Errno.invalidArgument) { try map(0, 4096, at: address) }
    #expect(throws: Errno.resourceBusy) { try unregister(address, 4096, from: thisProcess) }
    _ = try container.call(
      Command(rawValue: 0x3B72), bytes(UInt32(24), UInt32(0), UInt64(0), UInt64(4096)))
    try unregister(address, 4096, from: thisProcess)
  }

  @Test func `fails with EINVAL for two files`() throws {
    let file = try makeMemoryFile("test", size: 4096)
    for command: UInt16 in [0x3B75, 0x3B76] {
      #expect(throws: Errno.invalidArgument) {
        if command == 0x3B76 { try register(0, 4096, file) }
        try container.call(
          Command(rawValue: command), bytes(UInt32(24), UInt32(0), UInt64(0), UInt64(4096)),
          with: [file, file])
      }
    }
  }
}
