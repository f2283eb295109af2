import SystemPackage

/// A descriptor of a group: one opening of `/dev/vfio/26`, which ends with `release`, or with the last
/// Swift reference. Afterwards every operation throws `EBADF`.
public final class OpenGroup: Sendable {
  public let group: Group
  private let registry: Registry

  /// Takes over the caller's reference to the group.
  init(_ group: Group, registry: Registry) {
    self.group = group
    self.registry = registry
  }

  deinit { release() }

  public var iommuGroup: IOMMUGroup { group.iommuGroup }
  public var minor: Int { group.minor }
  /// `VFIO_GROUP_GET_STATUS`.
  public var status: GroupStatus { group.status }

  /// `VFIO_GROUP_SET_CONTAINER`. `EINVAL` if a container is set. If the container has an IOMMU driver,
  /// the group attaches to it, or the driver's error is thrown.
  public func setContainer(_ container: Container) throws(Errno) {
    try group.state.withLock { state throws(Errno) in
      try checkOpen(state)
      guard state.users == 0 else { throw .invalidArgument }
      try container.add(iommuGroup)
      state.container = container
      state.users = 1
    }
  }

  /// `VFIO_GROUP_UNSET_CONTAINER`. `EINVAL` without a container, `EBUSY` while a device is open or an
  /// external user holds the group.
  public func unsetContainer() throws(Errno) {
    try group.state.withLock { state throws(Errno) in
      try checkOpen(state)
      guard state.users > 0 else { throw .invalidArgument }
      guard state.users == 1 else { throw .resourceBusy }
      state.dropUser(of: iommuGroup)
    }
    registry.liftQuarantine(of: iommuGroup)
  }

  /// `VFIO_GROUP_GET_DEVICE_FD`. `EINVAL` unless the group has a container, the container an IOMMU
  /// driver, and the group is viable; `ENODEV` for a device that isn't in the group or is being
  /// removed; otherwise the device's own error.
  ///
  /// The first of several openings resets the device unless it is `keepingState`, and its `messages` are
  /// the device's way to its client by message. With an `ownIOMMU` the device reaches only what is mapped
  /// through this opening, not what the container maps.
  public func openDevice(
    _ name: String, keepingState: Bool = false, ownIOMMU: Bool = false,
    messages: (any RemoteMemory)? = nil
  ) throws(Errno) -> OpenDevice {
    // The lock keeps container and viability as they are until the device counts as a user.
    try group.withViability { state, isViable throws(Errno) in
      try checkOpen(state)
      guard let container = state.container, let common = container.iommu, isViable else {
        throw .invalidArgument
      }
      guard let index = state.devices.firstIndex(where: { $0.device.name == name }),
        state.devices[index].removal == nil
      else { throw .operationNotSupportedByDevice }
      let device = state.devices[index]
      let own = ownIOMMU ? try container.anotherIOMMU(for: iommuGroup) : nil
      let iommu = own?.iommu ?? common
      try device.operations.open(
        DMA(
          iommu: iommu, group: iommuGroup, faults: device.device.faults, log: device.log,
          messages: messages),
        keepingState: keepingState)
      state.devices[index].references += 1
      state.users += 1
      return OpenDevice(device, of: group, iommu: iommu, ownIOMMU: own, registry: registry)
    }
  }

  /// `vfio_group_get_external_user`: lets something other than a device (in the kernel, KVM) hold the
  /// group. `EINVAL` unless the group has a container, the container an IOMMU driver, and the group is
  /// viable; `EPERM` for a group without an IOMMU.
  public func externalUser() throws(Errno) -> ExternalUser {
    try group.withViability { state, isViable throws(Errno) in
      try checkOpen(state)
      guard let container = state.container else { throw .invalidArgument }
      guard iommuGroup.hasIOMMU else { throw .notPermitted }
      guard container.iommu != nil, isViable else { throw .invalidArgument }
      state.users += 1
      registry.refer(to: group)
      return ExternalUser(of: group, container: container, registry: registry)
    }
  }

  /// The descriptor closed. Calls after the first do nothing.
  ///
  /// Open devices and external users keep the container set, and the group cannot be opened again
  /// before they have gone.
  public func release() {
    let isFirst = group.state.withLock { state in
      guard state.opening == ObjectIdentifier(self) else { return false }
      state.opening = nil
      if state.users > 0 { state.dropUser(of: iommuGroup) }
      return true
    }
    guard isFirst else { return }
    registry.liftQuarantine(of: iommuGroup)
    registry.drop(group)
  }

  /// A request may race with the close of its own descriptor, and must not act for a later opening.
  private func checkOpen(_ state: Group.State) throws(Errno) {
    guard state.opening == ObjectIdentifier(self) else { throw .badFileDescriptor }
  }
}
