import Locks
import SystemPackage

// Lock order. A lock may be taken while those to its left are held, never the other way round:
//
//   IOMMUGroup.bus → Group.state → Container.state → Registry.drivers, Registry.groupList
//
// The registry's locks and `BusDevice.binding` are leaves: nothing is locked and nobody is called
// under them. Drivers are asked and opened, and groups attached and detached, under the container's
// lock; `DeviceOperations.open` is called under the bus's and the group's. All else, such as a
// driver's operations, a device's other functions, completions and reports, is called without a lock.

/// What VFIO knows: the IOMMU drivers and the groups with a device to give away; the kernel's
/// `static struct vfio`.
public final class Registry: Sendable {
  let report: @Sendable (Report) -> Void
  /// Guards the list of drivers, newest first.
  private let drivers = Mutex<[any IOMMUDriver]>([])
  /// Guards the IOMMU groups that have devices on their bus.
  private let buses = Mutex<[ObjectIdentifier: IOMMUGroup]>([:])
  /// Guards the list of groups, by minor, and their references.
  private let groupList = Mutex<[Int: Entry]>([:])

  private struct Entry {
    let group: Group
    /// One of each VFIO device, of the open descriptor, and of each external user.
    var references: Int
  }

  /// `report` gets what the kernel would log; it must not wait.
  public init(report: @escaping @Sendable (Report) -> Void = { _ in }) { self.report = report }

  // An IOMMU group and its devices refer to each other.
  deinit {
    for group in buses.withLock({ Array($0.values) }) { group.bus.withLock { $0 = [] } }
  }

  /// Called under the group's bus lock.
  func setHasDevices(_ hasDevices: Bool, _ iommuGroup: IOMMUGroup) {
    buses.withLock { $0[ObjectIdentifier(iommuGroup)] = hasDevices ? iommuGroup : nil }
  }

  // MARK: IOMMU drivers

  /// `vfio_register_iommu_driver`: the driver is the first that is asked from now on. `EINVAL` if it
  /// is registered already.
  public func register(_ driver: any IOMMUDriver) throws(Errno) {
    try drivers.withLock { drivers throws(Errno) in
      guard !drivers.contains(where: { $0 === driver }) else { throw .invalidArgument }
      drivers.insert(driver, at: 0)
    }
  }

  /// `vfio_unregister_iommu_driver`. Containers that use the driver keep it alive, and work on.
  public func unregister(_ driver: any IOMMUDriver) {
    drivers.withLock { $0.removeAll { $0 === driver } }
  }

  /// The registered drivers, newest first.
  public var iommuDrivers: [any IOMMUDriver] { drivers.withLock { $0 } }

  // MARK: Groups

  /// The groups that have a VFIO device or are in use, by minor.
  public var groups: [Group] {
    groupList.withLock { list in list.sorted { $0.key < $1.key }.map(\.value.group) }
  }

  /// The group with a minor number, if there is one.
  public func group(minor: Int) -> Group? { groupList.withLock { $0[minor]?.group } }

  /// `open("/dev/vfio/26")`. `ENODEV` unless the group has a VFIO device; `EPERM` for a group without
  /// an IOMMU, unless an administrator opens it; `EBUSY` while it is open, or while devices or external
  /// users of an earlier opening still hold its container.
  public func openGroup(
    _ id: UInt32, asAdministrator isAdministrator: Bool = false
  ) throws(Errno) -> OpenGroup {
    let group = groupList.withLock { list -> Group? in
      guard let minor = list.first(where: { $0.value.group.iommuGroup.id == id })?.key else {
        return nil
      }
      list[minor]?.references += 1
      return list[minor]?.group
    }
    guard let group else { throw .operationNotSupportedByDevice }
    let open = OpenGroup(group, registry: self)
    do throws(Errno) {
      guard group.iommuGroup.hasIOMMU || isAdministrator else { throw .notPermitted }
      try group.open(by: open)
      return open
    } catch {
      drop(group)
      throw error
    }
  }

  /// The VFIO group of an IOMMU group, if there is one.
  func group(of iommuGroup: IOMMUGroup) -> Group? {
    groupList.withLock { list in
      list.values.first { $0.group.iommuGroup === iommuGroup }?.group
    }
  }

  /// Takes a reference to the VFIO group of an IOMMU group, which comes into being with the first.
  private func referGroup(of iommuGroup: IOMMUGroup) throws(Errno) -> Group {
    try groupList.withLock { list throws(Errno) in
      if let (minor, entry) = list.first(where: { $0.value.group.iommuGroup.id == iommuGroup.id }) {
        // The name under /dev/vfio is taken.
        guard entry.group.iommuGroup === iommuGroup else { throw .fileExists }
        list[minor]?.references += 1
        return entry.group
      }
      var minor = 0
      while list[minor] != nil { minor += 1 }
      let group = Group(iommuGroup, minor: minor)
      list[minor] = Entry(group: group, references: 1)
      return group
    }
  }

  /// Takes a further reference to a group that the caller has one to.
  func refer(to group: Group) {
    groupList.withLock { $0[group.minor]?.references += 1 }
  }

  /// Gives back a reference to a group. With the last one its minor is free.
  func drop(_ group: Group) {
    groupList.withLock { list in
      list[group.minor]?.references -= 1
      if list[group.minor]?.references == 0 { list[group.minor] = nil }
    }
  }

  // MARK: Devices

  /// `vfio_add_group_dev`: a VFIO driver gives a device away. `EINVAL` for one without IOMMU group, or
  /// not plugged into it; `EBUSY` for one that was added before; `EEXIST` if another IOMMU group with
  /// VFIO devices has the same number.
  public func addDevice(
    _ device: BusDevice, operations: any DeviceOperations
  ) throws(Errno) {
    guard let iommuGroup = device.iommuGroup else { throw .invalidArgument }
    let isNew = try iommuGroup.bus.withLock { bus throws(Errno) in
      guard bus.contains(where: { $0 === device }) else { throw .invalidArgument }
      let group = try referGroup(of: iommuGroup)
      let isNew = group.add(Device(device: device, operations: operations))
      if !isNew { drop(group) }
      return isNew
    }
    guard isNew else {
      report(.warning("device \(device.name) already exists on group \(iommuGroup.id)"))
      throw .resourceBusy
    }
  }

  /// `vfio_device_get_from_dev` and `vfio_device_data`: what the device was added with.
  public func operations(of device: BusDevice) -> (any DeviceOperations)? {
    device.iommuGroup.flatMap { group(of: $0) }?.operations(of: device)
  }

  /// `vfio_del_group_dev`: the VFIO driver wants its device back. From now on nobody can open it, and
  /// its users are asked to let go.
  ///
  /// `completion` is called once, with what the device was added with, when the last descriptor of
  /// the device has closed: before this function returns, or later by whoever closes it. `ENODEV` for
  /// a device that isn't there, `EBUSY` for one that is being removed.
  @discardableResult
  public func removeDevice(
    _ device: BusDevice, completion: @escaping @Sendable (any DeviceOperations) -> Void
  ) throws(Errno) -> Removal {
    let removal = try beginRemoval(of: device, completion: completion)
    finish(removal)
    return removal
  }

  func beginRemoval(
    of device: BusDevice, completion: @escaping @Sendable (any DeviceOperations) -> Void
  ) throws(Errno) -> Removal {
    guard let group = device.iommuGroup.flatMap({ group(of: $0) }) else {
      throw .operationNotSupportedByDevice
    }
    let removal = Removal(of: device, in: group, completion: completion)
    try group.begin(removal)
    return removal
  }

  /// Gives back the driver's reference to the device.
  func finish(_ removal: Removal) {
    let group = removal.group
    if let inUse = group.operationsInUse(of: removal.device) { inUse.request() }
    dropDevice(removal.device, of: group)
  }

  /// Gives back a reference to a device. The last one to go ends its removal.
  func dropDevice(_ device: BusDevice, of group: Group) {
    guard let (operations, removal) = group.drop(device) else { return }
    drop(group)
    removal.completion(operations)
  }
}

/// What the kernel would log.
public struct Report: Sendable, Equatable {
  public enum Level: Sendable { case debug, warning }
  public var level: Level
  public var sentence: String

  static func debug(_ sentence: String) -> Report { Report(level: .debug, sentence: sentence) }
  static func warning(_ sentence: String) -> Report { Report(level: .warning, sentence: sentence) }
}
