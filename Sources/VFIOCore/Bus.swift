import SystemPackage

/// What happens to a device of an IOMMU group; `IOMMU_GROUP_NOTIFY_*`.
enum BusNotification {
  case added, deleted, binding, bound, unbinding, unbound
}

// The bus: devices come and go, and drivers are bound to them. A group's users must never share it
// with a foreign driver, so the VFIO group is told of each step.
extension Registry {
  /// Adds a device, and the driver it may have, to its IOMMU group. `EINVAL` for one without group,
  /// `EEXIST` if the group has a device of that name. In a live group it is reported.
  public func plug(_ device: BusDevice) throws(Errno) {
    guard let iommuGroup = device.iommuGroup else { throw .invalidArgument }
    try iommuGroup.bus.withLock { bus throws(Errno) in
      guard !bus.contains(where: { $0.name == device.name }) else { throw .fileExists }
      bus.append(device)
      setHasDevices(true, iommuGroup)
    }
    notify(.added, device)
  }

  /// Takes a device off its bus. `ENODEV` if it isn't on one, `EBUSY` while a driver has it.
  public func unplug(_ device: BusDevice) throws(Errno) {
    guard let iommuGroup = device.iommuGroup else { throw .operationNotSupportedByDevice }
    try iommuGroup.bus.withLock { bus throws(Errno) in
      guard let index = bus.firstIndex(where: { $0 === device }) else {
        throw .operationNotSupportedByDevice
      }
      guard device.driver == nil, operations(of: device) == nil else { throw .resourceBusy }
      bus.remove(at: index)
      if bus.isEmpty { setHasDevices(false, iommuGroup) }
    }
    notify(.deleted, device)
  }

  /// Binds a driver to a device. `ENODEV` if the device isn't on its bus; `EBUSY` if it has a driver,
  /// or if the driver is foreign and the group live: that would put it among the group's users.
  ///
  /// With `force` a foreign driver gets into a live group, which is quarantined. A VFIO driver comes
  /// with a `probe` that calls `addDevice`; if it throws, the driver isn't bound.
  public func bind(
    _ device: BusDevice, to driver: String, force: Bool = false,
    probe: (() throws(Errno) -> Void)? = nil
  ) throws(Errno) {
    try whilePlugged(device) { group throws(Errno) in
      try device.beginBinding(driver)
      guard let group, group.isLive, probe == nil, !force, group.isForeign(device) else { return }
      device.endChange(bound: false)
      throw .resourceBusy
    }
    notify(.binding, device)
    do throws(Errno) {
      try probe?()
    } catch {
      device.endChange(bound: false)
      throw error
    }
    device.endChange(bound: true)
    notify(.bound, device)
  }

  /// Unbinds a device's driver. `ENODEV` if it has none, `EBUSY` while it is being bound or unbound.
  ///
  /// A VFIO driver waits for its device: the returned removal may be cancelled, after which the
  /// driver stays bound. Any other is unbound at once, and nil returned. `completion` is called once,
  /// when the driver is unbound, with what a VFIO device was added with.
  @discardableResult
  public func unbind(
    _ device: BusDevice,
    completion: @escaping @Sendable ((any DeviceOperations)?) -> Void = { _ in }
  ) throws(Errno) -> Removal? {
    try device.beginUnbinding()
    let end = { @Sendable [self] (operations: (any DeviceOperations)?) in
      device.endChange(bound: false)
      notify(.unbound, device)
      if let iommuGroup = device.iommuGroup { liftQuarantine(of: iommuGroup) }
      completion(operations)
    }
    do throws(Errno) {
      let removal = try beginRemoval(of: device, completion: end)
      notify(.unbinding, device)
      finish(removal)
      return removal
    } catch .operationNotSupportedByDevice {
      notify(.unbinding, device)
      end(nil)
      return nil
    } catch {
      device.endChange(bound: true)
      throw error
    }
  }

  /// Ends a quarantine for which there is no reason any more: the group has no users, who could have
  /// seen the foreign driver's doings, and no foreign driver.
  func liftQuarantine(of iommuGroup: IOMMUGroup) {
    guard iommuGroup.isQuarantined else { return }
    iommuGroup.bus.withLock { bus in
      let group = group(of: iommuGroup)
      guard group?.isLive != true,
        !bus.contains(where: { $0.hasForeignDriver(besides: group?.devices ?? []) })
      else { return }
      iommuGroup.quarantine.store(false, ordering: .releasing)
    }
  }

  /// Runs `body` with the VFIO group of a device, if there is one, while the device can't leave its
  /// bus and no other driver can get into its IOMMU group.
  private func whilePlugged(
    _ device: BusDevice, _ body: (Group?) throws(Errno) -> Void
  ) throws(Errno) {
    guard let iommuGroup = device.iommuGroup else { return try body(nil) }
    try iommuGroup.bus.withLock { bus throws(Errno) in
      guard bus.contains(where: { $0 === device }) else { throw .operationNotSupportedByDevice }
      try body(group(of: iommuGroup))
    }
  }

  /// Tells the VFIO group of a device what happens to it.
  private func notify(_ notification: BusNotification, _ device: BusDevice) {
    guard let iommuGroup = device.iommuGroup, let group = group(of: iommuGroup) else { return }
    let name = "device \(device.name)"
    let driver = device.driver ?? "none"
    switch notification {
    case .added:
      if group.isLive {
        report(.warning("\(name) added to live group \(iommuGroup.id), driver \(driver)"))
      } else {
        report(.debug("\(name) added to group \(iommuGroup.id), driver \(driver)"))
      }
    case .deleted:
      // A device in use can't go: its VFIO driver waits until it is unused.
      report(.debug("\(name) deleted from group \(iommuGroup.id)"))
    case .binding:
      report(.debug("\(name), group \(iommuGroup.id): binding to driver \(driver)"))
    case .bound:
      report(.debug("\(name), group \(iommuGroup.id): bound to driver \(driver)"))
      quarantine(iommuGroup, dueTo: device)
    case .unbinding:
      report(.debug("\(name), group \(iommuGroup.id): unbinding from driver \(driver)"))
    case .unbound:
      report(.debug("\(name), group \(iommuGroup.id): unbound"))
    }
  }

  /// Quarantines a live group of which a foreign driver has got a device. The kernel would stop the
  /// whole machine.
  private func quarantine(_ iommuGroup: IOMMUGroup, dueTo device: BusDevice) {
    let isNeeded = iommuGroup.bus.withLock { _ in
      guard let group = group(of: iommuGroup), group.isLive, group.isForeign(device) else {
        return false
      }
      iommuGroup.quarantine.store(true, ordering: .releasing)
      return true
    }
    guard isNeeded else { return }
    report(
      .warning(
        "group \(iommuGroup.id) quarantined: driver \(device.driver ?? "none") "
          + "bound to device \(device.name) while the group is in use"))
  }
}
