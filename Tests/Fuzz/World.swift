#if DEBUG || FUZZ
  import Dispatch
  import Foundation
  import LinuxIO
  import Logging
  import SystemPackage
  import VFIOCore
  import VFIOStream
  import VFIOWire

  @testable import VFIOServer

  /// A server without threads of its own for connections: its loop takes turns when it is told to, so that
  /// an input does the same each time. Devices do their work on their own queues all the same.
  final class World {
    let service: Service
    private let administration: Administration
    private let directory: String
    /// Of the devices that a client can open, and their groups.
    let devices: [(name: String, group: UInt32)]
    private var events: [Epoll.Event] = []
    /// What the topology is when nobody uses it.
    private let unused: [String]

    /// The built-in topology, and a device of each model that isn't in it.
    init() throws {
      var configuration = Configuration.builtIn
      let used = Set(configuration.groups.flatMap(\.devices).compactMap(\.model))
      for (index, model) in Server.names.models.filter({ !used.contains($0) }).enumerated() {
        let device = Configuration.Device(
          "0000:\(20 + index):00.0", model: model, driver: Topology.vfioDriver)
        configuration.groups.append(
          Configuration.Group(id: UInt32(40 + index), devices: [device]))
      }
      // A client in the fuzzer answers at once or never. Transfers then wait until it closes.
      configuration.limits.dmaTimeout = 60
      let registry = Registry()
      for driver in Server.iommuDrivers.sorted(by: { $0.key < $1.key }) {
        try registry.register(driver.value(nil))
      }
      directory = "/tmp/vfiod-fuzz-\(UUID().uuidString.prefix(8))"
      _ = try makeDirectory("\(directory)/devices")
      service = Service(
        registry: registry, limits: configuration.limits, loop: try ControlLoop(mostOwnLoops: 0),
        logger: Logger(label: "fuzz") { _ in SwiftLogNoOpLogHandler() })
      administration = Administration(
        service, directory: directory, listenerQueue: DispatchQueue(label: "fuzz"))
      try administration.add(configuration, file: "fuzz")
      devices = configuration.groups.flatMap { group in
        group.devices.filter { $0.driver == Topology.vfioDriver }.map { ($0.address, group.id) }
      }
      unused = Self.topology(service)
    }

    deinit {
      administration.closeListeners()
      service.loop.start()
      service.loop.stop()
      administration.removeDevices()
      service.events.waitUntilEnded()
      try? FileManager.default.removeItem(atPath: directory)
    }

    // MARK: clients

    func connectToRoot() throws -> Socket {
      let (ours, theirs) = try Socket.pair()
      service.connected(ours, to: "root") { peer, _ in
        RootSession(service, administration, peer: peer)
      }
      return theirs
    }

    func connect(toDevice index: Int, process: ProcessID) throws -> Socket {
      let device = devices[index % devices.count]
      let (ours, theirs) = try Socket.pair()
      service.connected(ours, to: device.name) { _, number in
        let way = SocketWay(group: device.group, device: device.name, process: process)
        return DeviceSession(service, way, number: number)
      }
      return theirs
    }

    /// Lets the server do what there is to do; false when there was nothing.
    func takeTurn() throws -> Bool {
      try service.loop.takeTurn(&events, wait: false)
      return !events.isEmpty
    }

    // MARK: after an input

    /// Throws unless all is as it was before anybody connected; false when an administrator has changed
    /// the topology, so that this world is to be replaced.
    func checkUnused(administered: Bool) throws -> Bool {
      var turns = 0
      while service.loop.count > 0, turns < 100_000 {
        turns += 1
        if try !takeTurn() { usleep(100) }
      }
      guard service.loop.count == 0 else {
        throw Failure("\(service.loop.count) connections are left")
      }
      if administered {
        // After those that were asked for, and the completions of those that waited for a client.
        for _ in 0..<2 {
          administration.request(.unbind("none", driver: nil, timeout: 0)).wait()
        }
      }
      let topology = Self.topology(service)
      guard topology == unused else {
        guard administered else { throw Failure("the topology is \(topology), was \(unused)") }
        return false
      }
      for (name, group) in devices {
        do throws(Errno) {
          let group = try service.registry.openGroup(group)
          defer { group.release() }
          guard name == devices.first?.name else { continue }
          try group.setContainer(Container(registry: service.registry, limits: .pc))
        } catch {
          throw Failure("group \(group) can't be opened: \(error)")
        }
      }
      return true
    }

    private static func topology(_ service: Service) -> [String] {
      let live = service.registry.groups
      return service.topology.groups.flatMap { group in
        let status = live.first { $0.iommuGroup === group.iommuGroup }?.status.rawValue
        return group.devices.map { device in
          "\(group.iommuGroup.id) \(status ?? 0) \(group.users.values.sorted()) "
            + "\(device.bus.name) \(device.bus.driver ?? "-") \(device.listener != nil)"
        }
      }
    }
  }

  /// How many descriptors this process has open.
  func openDescriptors() -> Int {
    (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count) ?? 0
  }
#endif
