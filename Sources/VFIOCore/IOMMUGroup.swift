import Synchronization

/// The devices that an IOMMU cannot tell apart; the kernel's `struct iommu_group`.
public final class IOMMUGroup: Sendable {
  /// The name under `/dev/vfio`.
  public let id: UInt32
  private let quarantine = Atomic(false)

  public init(id: UInt32) { self.id = id }

  /// A foreign driver was forced into the group while it was in use: its devices do no more DMA.
  public var isQuarantined: Bool { quarantine.load(ordering: .acquiring) }
}
