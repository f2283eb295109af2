import Locks
import SystemPackage

/// An IOMMU group of which VFIO has a device to give away; the kernel's `struct vfio_group`. All its
/// descriptors, devices and external users share it.
public final class Group: Sendable {
  public let iommuGroup: IOMMUGroup
  /// The number of its node in the file system, the lowest that was free.
  public let minor: Int
  /// Guards all that changes.
  let state = Mutex(State())

  struct State {
    /// Set exactly as long as `users` isn't 0.
    var container: Container?
    /// The open group that set the container, each open device, and each external user.
    var users = 0
    /// The opening that holds the group's only descriptor.
    var opening: ObjectIdentifier?
    /// Newest first.
    var devices: [Device] = []

    /// Ends one use of the container. The last one takes the group out of it.
    mutating func dropUser(of iommuGroup: IOMMUGroup) {
      users -= 1
      guard users == 0 else { return }
      container?.remove(iommuGroup)
      container = nil
    }
  }

  init(_ iommuGroup: IOMMUGroup, minor: Int) {
    self.iommuGroup = iommuGroup
    self.minor = minor
  }

  /// `VFIO_GROUP_GET_STATUS`.
  public var status: GroupStatus {
    withViability { state, isViable in
      var status: GroupStatus = []
      if isViable { status.insert(.viable) }
      if state.container != nil { status.insert(.containerSet) }
      return status
    }
  }

  /// Whether its container has users, so that a foreign driver in the group would be among them.
  var isLive: Bool { state.withLock { $0.users > 0 } }

  /// Runs `body` on the state and on whether the group is viable: not quarantined, and no device of
  /// the IOMMU group has a foreign driver. Neither changes before `body` returns.
  func withViability<Result: Sendable, E: Error>(
    _ body: (inout State, Bool) throws(E) -> Result
  ) throws(E) -> Result {
    try iommuGroup.bus.withLock { bus throws(E) in
      try state.withLock { state throws(E) in
        let isViable =
          !iommuGroup.isQuarantined
          && !bus.contains { $0.hasForeignDriver(besides: state.devices) }
        return try body(&state, isViable)
      }
    }
  }

  /// Makes `open` the opening that holds the group's descriptor.
  func open(by open: OpenGroup) throws(Errno) {
    try state.withLock { state throws(Errno) in
      guard state.opening == nil, state.container == nil else { throw .resourceBusy }
      state.opening = ObjectIdentifier(open)
    }
  }

  // MARK: Devices

  var devices: [Device] { state.withLock { $0.devices } }

  /// Whether the device's driver may not be among the group's users.
  func isForeign(_ device: BusDevice) -> Bool { device.hasForeignDriver(besides: devices) }

  /// False if the device is there.
  func add(_ device: Device) -> Bool {
    state.withLock { state in
      guard !state.devices.contains(where: { $0.device === device.device }) else { return false }
      state.devices.insert(device, at: 0)
      return true
    }
  }

  func operations(of device: BusDevice) -> (any DeviceOperations)? {
    state.withLock { state in state.devices.first { $0.device === device }?.operations }
  }

  /// The operations of a device that somebody other than its driver refers to.
  func operationsInUse(of device: BusDevice) -> (any DeviceOperations)? {
    state.withLock { state in
      state.devices.first { $0.device === device && $0.references > 1 }?.operations
    }
  }

  /// Closes the device to new users. The driver's reference stays until `drop`.
  func begin(_ removal: Removal) throws(Errno) {
    try state.withLock { state throws(Errno) in
      guard let index = state.devices.firstIndex(where: { $0.device === removal.device }) else {
        throw .operationNotSupportedByDevice
      }
      guard state.devices[index].removal == nil else { throw .resourceBusy }
      state.devices[index].removal = removal
    }
  }

  /// False if the device has gone, or was given back before.
  func cancel(_ removal: Removal) -> Bool {
    state.withLock { state in
      guard let index = state.devices.firstIndex(where: { $0.removal === removal }) else {
        return false
      }
      state.devices[index].removal = nil
      state.devices[index].references += 1
      return true
    }
  }

  /// Gives back a reference to a device. With the last one the device leaves, and the caller has to
  /// complete its removal.
  func drop(_ device: BusDevice) -> (any DeviceOperations, Removal)? {
    state.withLock { state in
      guard let index = state.devices.firstIndex(where: { $0.device === device }) else {
        return nil
      }
      state.devices[index].references -= 1
      guard state.devices[index].references == 0 else { return nil }
      // The driver gives its reference back in a removal only, so the last one to go has one.
      let last = state.devices.remove(at: index)
      return last.removal.map { (last.operations, $0) }
    }
  }
}

/// A device that its VFIO driver gave away; the kernel's `struct vfio_device`.
struct Device {
  let device: BusDevice
  let operations: any DeviceOperations
  let log = DirtyLog()
  /// One of the driver, and one of each descriptor.
  var references = 1
  /// Its driver wants it back: nobody can open it.
  var removal: Removal?
}

/// `VFIO_GROUP_FLAGS_*`.
public struct GroupStatus: OptionSet, Sendable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// Every device of the group is safe in the hands of a user.
  public static let viable = GroupStatus(rawValue: 1)
  public static let containerSet = GroupStatus(rawValue: 2)
}
