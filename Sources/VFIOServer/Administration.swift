import Dispatch
import JSON
import LinuxIO
import Locks
import SystemPackage
import VFIOCore

/// What changes the topology: the configuration at start, and the administrator afterwards. One request
/// at a time, on a queue of its own, except that a removal waits for its device beside the others.
final class Administration: Sendable {
  private let service: Service
  private let directory: String
  private let queue = DispatchQueue(label: "vfiod.administration")
  private let listenerQueue: DispatchQueue

  init(_ service: Service, directory: String, listenerQueue: DispatchQueue) {
    self.service = service
    self.directory = directory
    self.listenerQueue = listenerQueue
    // Dispatch opens a descriptor for its first timer and keeps it. Now, so that a change of their
    // number later is a leak.
    queue.asyncAfter(deadline: .now() + .seconds(3600)) {}
  }

  // MARK: devices

  /// Adds all devices of a configuration; errors name `file`.
  func add(_ configuration: Configuration, file: String) throws {
    for (groupIndex, group) in configuration.groups.enumerated() {
      let access = Topology.Access(
        owner: group.owner ?? effectiveUser(), group: effectiveGroup(), mode: group.mode)
      for (index, device) in group.devices.enumerated() {
        do {
          try add(
            device, toGroup: group.id, hasIOMMU: group.hasIOMMU, access: access,
            place: "groups[\(groupIndex)].devices[\(index)].")
        } catch let error as JSONError {
          throw ConfigurationError(file: file, error: error)
        } catch let error as ServerError where device.socket != nil {
          let place = "groups[\(groupIndex)].devices[\(index)].socket"
          throw ConfigurationError(
            file: file, error: JSONError(place: place, problem: error.description))
        }
      }
    }
  }

  /// Puts a device on the bus and binds its driver. The group appears with its first device.
  ///
  /// Throws `EBUSY` for an address that is taken, `JSONError` for an option that the model refuses, and
  /// `ServerError` when its socket cannot be made.
  func add(
    _ configuration: Configuration.Device, toGroup id: UInt32, hasIOMMU: Bool = true,
    access: Topology.Access, place: String = ""
  ) throws {
    let topology = service.topology
    guard topology.find(configuration.address) == nil else { throw Errno.resourceBusy }
    let isVFIO = configuration.driver == Topology.vfioDriver
    let operations = isVFIO ? try configuration.makeOperations(place: place) : nil
    let group = topology.addGroup(id, hasIOMMU: hasIOMMU, access)
    let device = BusDevice(
      name: configuration.address, iommuGroup: group.iommuGroup,
      driver: isVFIO ? nil : configuration.driver,
      faults: DMAFaults { [logger = service.logger] faults in
        logger.warning(
          "a device's DMA met a fault",
          metadata: [
            "device": "\(configuration.address)", "iova": "0x\(String(faults.iova, radix: 16))",
            "access": faults.access.contains(.write) ? "write" : "read",
            "faults": "\(faults.count)",
          ])
      })
    topology.add(
      Topology.Device(
        bus: device, configuration: configuration,
        socket: configuration.socket ?? "\(directory)/devices/\(configuration.address).sock"),
      toGroup: id)
    do {
      try service.registry.plug(device)
      if let operations { try bind(device, operations) }
    } catch {
      try? service.registry.unplug(device)
      topology.remove(configuration.address)
      throw error
    }
  }

  /// Binds the VFIO driver and opens the device's socket, which it has if it has an IOMMU: an emulator's
  /// machine needs one.
  private func bind(_ device: BusDevice, _ operations: any DeviceOperations) throws {
    guard let (group, entry) = service.topology.find(device.name) else {
      throw Errno.operationNotSupportedByDevice
    }
    try service.registry.bind(device, to: Topology.vfioDriver) { [service] () throws(Errno) in
      try service.registry.addDevice(device, operations: operations)
    }
    guard group.iommuGroup.hasIOMMU else { return }
    do {
      let (id, name) = (group.iommuGroup.id, device.name)
      let listener = try Listener(
        at: entry.socket, mode: group.access.mode, owner: group.access.owner, on: listenerQueue
      ) { [service] socket in
        service.connected(socket, to: name) { peer, number in
          DeviceSession(
            service, SocketWay(group: id, device: name, process: peer.process), number: number)
        }
      }
      _ = service.topology.exchangeListener(of: name, with: listener)
    } catch {
      _ = try? service.registry.unbind(device)
      throw error
    }
  }

  private func closeListener(of name: String) {
    service.topology.exchangeListener(of: name, with: nil)?.close()
  }

  /// Closes the sockets of all devices.
  func closeListeners() {
    for group in service.topology.groups {
      for device in group.devices { closeListener(of: device.bus.name) }
    }
  }

  /// Takes the devices off the bus, once nobody uses them: a group and its devices refer to each other,
  /// and would stay for ever.
  func removeDevices() {
    for group in service.topology.groups {
      for device in group.devices {
        _ = try? service.registry.unbind(device.bus)
        try? service.registry.unplug(device.bus)
      }
    }
  }

  // MARK: requests

  /// Carries out a request of the administrator; the reply comes later.
  func request(_ request: AdministratorRequest) -> Later {
    let later = Later()
    queue.async { [self] in
      do throws(Errno) {
        switch request {
        case .add(let group, let device):
          try add(device, toGroup: group)
          later.complete(.success(()))
        case .bind(let name, let driver, let force):
          try bind(name, driver, force: force)
          later.complete(.success(()))
        case .unbind(let name, let driver, let timeout):
          try unbind(name, driver, timeout, later) {}
        case .remove(let name, let timeout):
          try remove(name, timeout, later)
        }
      } catch {
        later.complete(.failure(error))
      }
    }
    return later
  }

  private func add(_ device: Configuration.Device, toGroup id: UInt32) throws(Errno) {
    do {
      try add(
        device, toGroup: id,
        access: Topology.Access(
          owner: effectiveUser(), group: effectiveGroup(), mode: Configuration.Group.defaultMode))
    } catch let error as Errno {
      throw error
    } catch {
      service.logger.warning("device \(device.address) not added: \(error)")
      throw .invalidArgument
    }
    service.logger.debug(
      "device added", metadata: ["device": "\(device.address)", "group": "\(id)"])
  }

  private func bind(_ name: String, _ driver: String, force: Bool) throws(Errno) {
    guard let (_, device) = service.topology.find(name) else {
      throw .operationNotSupportedByDevice
    }
    guard driver == Topology.vfioDriver else {
      return try service.registry.bind(device.bus, to: driver, force: force)
    }
    guard device.configuration.model != nil else { throw .invalidArgument }
    guard device.bus.driver == nil else { throw .resourceBusy }
    do {
      try bind(device.bus, try device.configuration.makeOperations(place: ""))
    } catch let error as Errno {
      throw error
    } catch {
      service.logger.warning("device \(name) not bound: \(error)")
      throw .ioError
    }
  }

  /// Unbinds a driver. A VFIO driver asks the device's user to let go and waits, `ETIMEDOUT` at most;
  /// then the device is as before. `then` runs before the reply.
  private func unbind(
    _ name: String, _ driver: String?, _ timeout: Int, _ later: Later,
    then: @escaping @Sendable () throws(Errno) -> Void
  ) throws(Errno) {
    guard let (_, device) = service.topology.find(name), let bound = device.bus.driver else {
      throw .operationNotSupportedByDevice
    }
    guard driver == nil || driver == bound else { throw .invalidArgument }
    let removal = try service.registry.unbind(device.bus) { [self] _ in
      // The last descriptor may close on any thread.
      queue.async { [self] in
        closeListener(of: name)
        service.logger.debug(
          "driver unbound", metadata: ["device": "\(name)", "driver": "\(bound)"])
        do throws(Errno) {
          try then()
          later.complete(.success(()))
        } catch {
          later.complete(.failure(error))
        }
      }
    }
    // The device holds its removal as long as that lasts; a timer that outlives it holds nothing.
    queue.asyncAfter(deadline: .now() + .seconds(timeout)) {
      [weak removal, weak later, logger = service.logger] in
      guard let removal, removal.cancel() else { return }
      logger.debug("device still in use", metadata: ["device": "\(name)", "seconds": "\(timeout)"])
      later?.complete(.failure(.timedOut))
    }
  }

  private func remove(_ name: String, _ timeout: Int, _ later: Later) throws(Errno) {
    guard let (_, device) = service.topology.find(name) else {
      throw .operationNotSupportedByDevice
    }
    let unplug = { @Sendable [service] () throws(Errno) in
      try service.registry.unplug(device.bus)
      service.topology.remove(name)
      service.logger.debug("device removed", metadata: ["device": "\(name)"])
    }
    guard device.bus.driver != nil else {
      try unplug()
      return later.complete(.success(()))
    }
    try unbind(name, nil, timeout, later, then: unplug)
  }
}
