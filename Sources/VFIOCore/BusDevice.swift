import Locks
import SystemPackage

/// A device on its bus, whether VFIO drives it or not; the kernel's `struct device`.
public final class BusDevice: Sendable {
  /// The name that `VFIO_GROUP_GET_DEVICE_FD` takes: for PCI its address, such as `0000:06:0d.0`.
  public let name: String
  /// Nil for a device that no IOMMU isolates; VFIO can't drive it.
  public let iommuGroup: IOMMUGroup?
  /// The faults of its transfers.
  public let faults: DMAFaults
  /// Guards the driver. A leaf: nothing else is locked under it.
  private let binding: Mutex<Binding>

  private struct Binding {
    var driver: String?
    /// A bind or an unbind is under way; another one has to fail.
    var isChanging = false
  }

  public init(
    name: String, iommuGroup: IOMMUGroup?, driver: String?, faults: DMAFaults = DMAFaults()
  ) {
    self.name = name
    self.iommuGroup = iommuGroup
    self.faults = faults
    binding = Mutex(Binding(driver: driver))
  }

  /// The name of the driver that the device is bound to, also while it is being bound or unbound.
  public var driver: String? { binding.withLock { $0.driver } }

  func beginBinding(_ driver: String) throws(Errno) {
    try binding.withLock { binding throws(Errno) in
      guard binding.driver == nil else { throw .resourceBusy }
      binding = Binding(driver: driver, isChanging: true)
    }
  }

  func beginUnbinding() throws(Errno) {
    try binding.withLock { binding throws(Errno) in
      guard binding.driver != nil else { throw .operationNotSupportedByDevice }
      guard !binding.isChanging else { throw .resourceBusy }
      binding.isChanging = true
    }
  }

  /// The bind or unbind under way ends with the driver as it is, or with none.
  func endChange(bound: Bool) {
    binding.withLock { binding in
      if !bound { binding.driver = nil }
      binding.isChanging = false
    }
  }

  /// Whether the device's driver may use it behind the back of its group's users: neither one that
  /// leaves it alone nor a VFIO driver, as the VFIO devices of the group show.
  func hasForeignDriver(besides devices: [Device]) -> Bool {
    guard let driver, !BusDevice.harmlessDrivers.contains(driver) else { return false }
    return !devices.contains { $0.device === self }
  }

  /// Drivers that do no DMA. A device may be better off with one than without any, since nothing
  /// unsafe can be bound to it then.
  private static let harmlessDrivers: Set = ["pci-stub", "pcieport"]
}
