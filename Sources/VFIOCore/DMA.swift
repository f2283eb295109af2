import SystemPackage

/// A device's way to its clients' memory: its container's IOMMU, as long as its group isn't
/// quarantined. A device gets it when it is opened and drops it with its last release.
public struct DMA: Sendable {
  let iommu: any IOMMU
  let group: IOMMUGroup

  public init(iommu: any IOMMU, group: IOMMUGroup) {
    self.iommu = iommu
    self.group = group
  }

  /// Copies from client memory at `iova`; throws at the first address that isn't mapped for reading.
  public func read(_ iova: UInt64, into bytes: inout MutableSpan<UInt8>) throws(DMAFault) {
    guard !group.isQuarantined else { throw DMAFault(iova: iova, completed: 0) }
    try iommu.dmaRead(iova, into: &bytes)
  }

  /// Copies to client memory at `iova`; throws at the first address that isn't mapped for writing.
  public func write(_ bytes: Span<UInt8>, to iova: UInt64) throws(DMAFault) {
    guard !group.isQuarantined else { throw DMAFault(iova: iova, completed: 0) }
    try iommu.dmaWrite(bytes, to: iova)
  }
}
