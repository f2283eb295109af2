import SystemPackage

import struct Synchronization.Atomic

/// A descriptor of a device, which ends with `release`, or with the last Swift reference: whoever
/// fails after opening a device has to do nothing to close it.
public final class OpenDevice: Sendable {
  public let operations: any DeviceOperations
  /// The IOMMU of the group's container, which stays until this descriptor closes, or the device's own.
  public let iommu: any IOMMU
  /// The pages that the device writes.
  public let log: DirtyLog
  /// Releases the device's own with the last reference.
  private let ownIOMMU: Container.OpenIOMMU?
  private let device: BusDevice
  private let group: Group
  private let registry: Registry
  private let isReleased = Atomic(false)

  init(
    _ device: Device, of group: Group, iommu: any IOMMU, ownIOMMU: Container.OpenIOMMU?,
    registry: Registry
  ) {
    operations = device.operations
    log = device.log
    self.device = device.device
    self.group = group
    self.iommu = iommu
    self.ownIOMMU = ownIOMMU
    self.registry = registry
  }

  deinit { release() }

  public var name: String { device.name }

  /// The descriptor closed: releases the device, the container if this was its last user, and the
  /// reference to the device, in this order. Calls after the first do nothing.
  public func release() {
    guard !isReleased.exchange(true, ordering: .acquiringAndReleasing) else { return }
    operations.release()
    group.state.withLock { $0.dropUser(of: group.iommuGroup) }
    registry.liftQuarantine(of: group.iommuGroup)
    registry.dropDevice(device, of: group)
  }
}

/// A user of a group's container that is neither its descriptor nor a device, such as KVM in the
/// kernel. It ends with `release`, or with the last Swift reference.
public final class ExternalUser: Sendable {
  private let group: Group
  private let container: Container
  private let registry: Registry
  private let isReleased = Atomic(false)

  /// Takes over a reference to the group and a use of its container.
  init(of group: Group, container: Container, registry: Registry) {
    self.group = group
    self.container = container
    self.registry = registry
  }

  deinit { release() }

  /// `vfio_external_user_iommu_id`.
  public var groupID: UInt32 { group.iommuGroup.id }

  /// `vfio_external_check_extension`: the answer of the container's IOMMU driver.
  public func checkExtension(_ number: UInt64) -> Int64 { container.checkExtension(number) }

  /// `vfio_group_put_external_user`. Calls after the first do nothing.
  public func release() {
    guard !isReleased.exchange(true, ordering: .acquiringAndReleasing) else { return }
    // The group must not go before it has left its container.
    group.state.withLock { $0.dropUser(of: group.iommuGroup) }
    registry.liftQuarantine(of: group.iommuGroup)
    registry.drop(group)
  }
}
