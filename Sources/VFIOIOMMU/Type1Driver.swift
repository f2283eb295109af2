import SystemPackage
import VFIOCore

/// The type1 IOMMU driver: `VFIO_TYPE1_IOMMU` (1) and `VFIO_TYPE1v2_IOMMU` (3), which differ in what
/// `VFIO_IOMMU_UNMAP_DMA` does with a range that splits a mapping, and in that only the second
/// tracks dirty pages.
public final class Type1Driver: IOMMUDriver {
  public let name = "type1"

  public init() {}

  /// 1 for both types and for `VFIO_UNMAP_ALL`. `VFIO_DMA_CC_IOMMU` is 0, since no domain is there
  /// yet of which it could be true.
  public func checkExtension(_ number: UInt64) -> Int64 {
    switch number {
    case VFIOExtension.type1, VFIOExtension.type1v2, VFIOExtension.unmapAll: 1
    default: 0
    }
  }

  /// `EINVAL` for a type other than the two.
  public func open(_ type: UInt64, _ limits: IOMMULimits) throws(Errno) -> any IOMMU {
    switch type {
    case VFIOExtension.type1: Type1(version: .v1, limits)
    case VFIOExtension.type1v2: Type1(version: .v2, limits)
    default: throw .invalidArgument
    }
  }
}
