import Dispatch
import Logging
import SystemPackage
import VFIOCore
import VFIOIOMMU
import VFIOWire

@testable import LinuxIO
@testable import VFIOServer

let quiet = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }

/// What sessions share, and sessions: the built-in topology, and a loop that isn't started.
final class World {
  let service: Service
  let administration: Administration
  private let directory = try! TemporaryDirectory()
  /// The group of `scratch`.
  static let group: UInt32 = 27
  static let scratch = "0000:07:00.0"
  static let type1v2 = bytes(UInt64(3))

  init(
    _ configuration: Configuration = .builtIn, driver: any IOMMUDriver = Type1Driver()
  ) throws {
    let registry = Registry()
    try registry.register(driver)
    service = Service(
      registry: registry, limits: configuration.limits, loop: try ControlLoop(), logger: quiet)
    _ = try makeDirectory("\(directory.path)/devices")
    administration = Administration(
      service, directory: directory.path, listenerQueue: DispatchQueue(label: "test"))
    try administration.add(configuration, file: "test")
  }

  deinit {
    administration.closeListeners()
    // Closes what was handed out.
    service.loop.start()
    service.loop.stop()
    administration.removeDevices()
  }

  /// A client's root session, after VERSION.
  func root(user: UInt32 = effectiveUser()) throws(Errno) -> RootSession {
    let root = RootSession(
      service, administration, peer: Credentials(process: 1, user: user, group: user))
    _ = try root.call(.version, version01)
    return root
  }

  /// A container's session, and the client's descriptor of the container.
  func container() throws(Errno) -> (ContainerSession, Descriptor) {
    let container = Container(registry: service.registry, limits: service.limits.iommu)
    let session = ContainerSession(service, container, number: service.nextNumber())
    let descriptor = try service.handOut(
      session, as: .container(container), number: service.nextNumber())
    return (session, descriptor)
  }

  /// A group's session, and the client's descriptor of the group.
  func group(_ id: UInt32 = World.group) throws(Errno) -> (GroupSession, Descriptor) {
    let group = try service.registry.openGroup(id)
    let session = GroupSession(service, group, number: service.nextNumber())
    let descriptor = try service.handOut(
      session, as: .group(group), number: service.nextNumber())
    return (session, descriptor)
  }

  /// A group in a container with a driver.
  func attachedGroup(
    _ id: UInt32 = World.group
  ) throws(Errno) -> (group: GroupSession, container: ContainerSession, descriptor: Descriptor) {
    let (container, containerDescriptor) = try container()
    let (group, groupDescriptor) = try group(id)
    _ = try group.call(.groupSetContainer, with: [containerDescriptor])
    _ = try container.call(.setIOMMU, World.type1v2)
    return (group, container, groupDescriptor)
  }

  /// A session on a device's own socket, before VERSION.
  func socket(
    _ device: String = World.scratch, group: UInt32 = World.group, process: ProcessID = 100
  ) -> DeviceSession {
    DeviceSession(
      service, SocketWay(group: group, device: device, process: process),
      number: service.nextNumber())
  }

  /// A session on a device's own socket, after VERSION.
  func device(
    _ device: String = World.scratch, group: UInt32 = World.group
  ) throws(Errno) -> DeviceSession {
    let session = socket(device, group: group)
    _ = try session.call(.version, version01)
    return session
  }
}
