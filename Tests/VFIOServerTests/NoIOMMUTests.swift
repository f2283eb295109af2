import JSON
import LinuxIO
import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU
import VFIOWire

@testable import VFIOServer

/// A group without an IOMMU, number 40, with a scratch.
private let bare = Configuration(
  groups: [
    .init(
      id: 40, mode: 0o666, hasIOMMU: false,
      devices: [.init(World.scratch, model: "scratch", driver: "vfio-pci")])
  ], iommuDrivers: ["type1", "noiommu"])

@Suite struct `A group without an IOMMU in the configuration` {
  @Test func `is for administrators, whatever its mode: EPERM`() throws {
    let world = try World(bare, driver: NoIOMMUDriver())
    let other = try world.root(user: effectiveUser() &+ 1000)
    #expect(throws: Errno.notPermitted) { try other.call(.openGroup, bytes(UInt32(40))) }
    let root = try world.root(user: 0)
    #expect(try root.call(.openGroup, bytes(UInt32(40))).descriptors.count == 1)
  }

  @Test func `is told in the topology, and its devices have no sockets`() throws {
    let world = try World(bare, driver: NoIOMMUDriver())
    let groups = JSONReader(world.service.topology.json(world.service.registry))["groups"]
    let group = try groups.elements()[0]
    #expect(try group["iommu"].string() == "none")
    #expect(try group["viable"].bool())
    #expect(try group["devices"].elements()[0]["socket"].isNull)
    let real = try World()
    let others = JSONReader(real.service.topology.json(real.service.registry))["groups"]
    #expect(try others.elements()[0]["iommu"].isNull)
  }

  @Test func `keeps its kind when a device is added, and has no socket for that either`() throws {
    let world = try World(bare, driver: NoIOMMUDriver())
    let access = try #require(world.service.topology.access(ofGroup: 40))
    try world.administration.add(
      .init("0000:0b:00.0", model: "edu", driver: "vfio-pci"), toGroup: 40, access: access)
    let (group, device) = try #require(world.service.topology.find("0000:0b:00.0"))
    #expect(!group.iommuGroup.hasIOMMU)
    #expect(device.listener == nil)
  }

  @Test func `has physical memory from a file that the server opens at start`() throws {
    let directory = try TemporaryDirectory()
    let path = "\(directory.path)/memory"
    var configuration = bare
    configuration.physicalMemory = path
    let error = #expect(throws: ConfigurationError.self) { try Running(configuration) }
    #expect(
      error?.description.contains("physical_memory: \"\(path)\" is no memory to share") == true)
    _ = try openFile(making: path, size: 0)
    #expect(throws: ConfigurationError.self) { try Running(configuration) }
    _ = try openFile(making: path, size: 4096)
    _ = try Running(configuration)
  }
}
