import Locks

import struct Synchronization.Atomic

/// The devices that an IOMMU cannot tell apart; the kernel's `struct iommu_group`.
public final class IOMMUGroup: Sendable {
  /// The name under `/dev/vfio`.
  public let id: UInt32
  /// False for devices that no IOMMU stands in front of; VFIO makes a group of its own for them
  /// (`vfio-noiommu`), of which only an administrator gets hold.
  public let hasIOMMU: Bool

  /// The bus lock. Guards the group's devices, and is held while a driver gets hold of one of them,
  /// and while something is done that needs the group to be viable.
  let bus = Mutex<[BusDevice]>([])
  let quarantine = Atomic(false)

  public init(id: UInt32, hasIOMMU: Bool = true) {
    self.id = id
    self.hasIOMMU = hasIOMMU
  }

  /// The devices on the bus, as `Registry.plug` added them.
  public var devices: [BusDevice] { bus.withLock { $0 } }

  /// A foreign driver was forced into the group while it was in use: its devices do no more DMA.
  ///
  /// It ends when the group has no container users any more and no foreign driver is bound in it.
  public var isQuarantined: Bool { quarantine.load(ordering: .acquiring) }
}
