import Dispatch
import JSON
import LinuxIO
import Locks
import Logging
import SystemPackage
import VFIOCore
import VFIODevices
import VFIOIOMMU
import VFIOWire

/// The server: containers, groups and devices of a configuration, on the sockets of a directory.
public final class Server: Sendable {
  private let service: Service
  private let loop: ControlLoop
  private let directory: DirectoryLock
  private let administration: Administration
  private let rootListener: Listener

  /// The IOMMU drivers that a configuration may load, by name.
  static let iommuDrivers: [String: @Sendable (PhysicalMemory?) -> any IOMMUDriver] = [
    "type1": { _ in Type1Driver() },
    "spapr-tce": { _ in SPAPRDriver() },
    "noiommu": { NoIOMMUDriver(physicalMemory: $0) },
  ]

  /// The names that a configuration may use.
  public static var names: Configuration.Names {
    Configuration.Names(
      models: DeviceModels.names, iommuDrivers: iommuDrivers.keys.sorted(), userID: userID(named:))
  }

  /// Starts serving: makes `directory`, its sockets, and the configuration's devices.
  ///
  /// Throws `ServerError`, `ConfigurationError` or `Errno`, whose descriptions are sentences for
  /// whoever started it. `file` names the configuration in them.
  public init(
    directory path: String, configuration: Configuration, file: String = "built-in topology",
    logger: Logger
  ) throws {
    raiseDescriptorLimit()
    let directory = try DirectoryLock(path)
    let registry = Registry { report in
      switch report.level {
      case .debug: logger.debug("\(report.sentence)")
      case .warning: logger.warning("\(report.sentence)")
      }
    }
    let physicalMemory = try configuration.openPhysicalMemory(file: file)
    for name in configuration.iommuDrivers {
      if let make = Self.iommuDrivers[name] { try registry.register(make(physicalMemory)) }
    }

    let loop = try ControlLoop()
    let service = Service(
      registry: registry, limits: configuration.limits, loop: loop, logger: logger)
    let queue = DispatchQueue(label: "vfiod.listeners")
    let administration = Administration(
      service, directory: directory.path, listenerQueue: queue)
    do {
      try administration.add(configuration, file: file)
      // Last, since clients that wait for the root socket expect the others.
      rootListener = try Listener(
        at: "\(directory.path)/vfio.sock", mode: 0o666, owner: nil, on: queue
      ) { socket in
        service.connected(socket, to: "root") { peer, _ in
          RootSession(service, administration, peer: peer)
        }
      }
    } catch {
      administration.closeListeners()
      throw error
    }
    self.directory = directory
    self.loop = loop
    self.service = service
    self.administration = administration
    loop.start()
    logger.info("serving", metadata: ["directory": "\(directory.path)"])
  }

  /// Removes the sockets, closes every connection, and gives the directory back. Returns when nothing
  /// is left.
  public func stop() {
    rootListener.close()
    administration.closeListeners()
    loop.stop()
    administration.removeDevices()
    service.events.waitUntilEnded()
    directory.release()
    service.logger.info("stopped", metadata: ["directory": "\(directory.path)"])
  }
}

extension Service {
  /// Serves a new client, or turns it away when there are too many.
  func connected(
    _ socket: Socket, to name: String, _ session: (Credentials, UInt64) -> any Session
  ) {
    guard loop.count < limits.connections else {
      logger.warning("connection refused: \(limits.connections) are open, which is the limit")
      return
    }
    do throws(Errno) {
      let peer = try socket.peer()
      let number = nextNumber()
      let logger = logger
      logger.debug(
        "connected",
        metadata: [
          "connection": "\(number)", "to": "\(name)", "process": "\(peer.process)",
          "user": "\(peer.user)",
        ])
      try loop.add(
        connection(socket, session(peer, number), number: number) {
          logger.debug("disconnected", metadata: ["connection": "\(number)"])
        })
    } catch {
      logger.warning("connection lost: \(error)")
    }
  }
}

extension Configuration.Limits {
  /// vfio-user's largest message: a region access of the largest size.
  var messageSize: Int { Header.size + RegionAccess.size + maxDataTransferSize }

  /// What a container's IOMMU may hold.
  var iommu: IOMMULimits {
    IOMMULimits(
      apertures: apertures, mappings: mappings, lockedMemory: lockedMemory,
      bitmapSize: queuedReplies)
  }
}

extension Configuration {
  /// Maps the memory that devices without an IOMMU reach; `ConfigurationError` when that can't be done.
  fileprivate func openPhysicalMemory(file: String) throws -> PhysicalMemory? {
    guard let path = physicalMemory else { return nil }
    do throws(Errno) {
      let memory = try MappedFiles().mapping(
        of: try openFile(path), offset: 0, size: 1, writable: true)
      return PhysicalMemory(memory, size: memory.size)
    } catch {
      throw ConfigurationError(
        file: file,
        error: JSONError(
          place: "physical_memory", problem: "\"\(path)\" is no memory to share: \(error)"))
    }
  }
}
