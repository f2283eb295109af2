import SystemPackage
import VFIOCore

/// The sPAPR TCE IOMMU driver of POWER machines: `VFIO_SPAPR_TCE_IOMMU` (2), where a container has one
/// group and one window of addresses, and `VFIO_SPAPR_TCE_v2_IOMMU` (7), where windows are made at run
/// time and memory is registered before it is mapped.
public final class SPAPRDriver: IOMMUDriver {
  public let name = "spapr-tce"

  public init() {}

  /// 1 for both types. `VFIO_EEH` (5), error handling by the platform, is 0: there is no such platform.
  public func checkExtension(_ number: UInt64) -> Int64 {
    switch number {
    case VFIOExtension.spaprTCE, VFIOExtension.spaprTCEv2: 1
    default: 0
    }
  }

  /// `EINVAL` for a type other than the two.
  public func open(_ type: UInt64, _ limits: IOMMULimits) throws(Errno) -> any IOMMU {
    switch type {
    case VFIOExtension.spaprTCE: SPAPR(version: .v1, limits)
    case VFIOExtension.spaprTCEv2: SPAPR(version: .v2, limits)
    default: throw .invalidArgument
    }
  }
}
