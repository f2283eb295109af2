import SystemPackage
import VFIOCore

/// The driver of groups without an IOMMU, `VFIO_NOIOMMU_IOMMU` (8): nothing can be mapped, and nothing
/// is translated.
///
/// A device behind no IOMMU uses the machine's physical addresses. Here that is a memory of the
/// operator's, if there is one, from address 0 on; without one every transfer faults.
public final class NoIOMMUDriver: IOMMUDriver {
  public let name = "noiommu"
  public let isForGroupsWithoutIOMMU = true
  private let physicalMemory: PhysicalMemory?

  public init(physicalMemory: PhysicalMemory? = nil) { self.physicalMemory = physicalMemory }

  /// 1 for `VFIO_NOIOMMU_IOMMU`.
  public func checkExtension(_ number: UInt64) -> Int64 {
    number == VFIOExtension.noIOMMU ? 1 : 0
  }

  /// `EINVAL` for another type.
  public func open(_ type: UInt64, _ limits: IOMMULimits) throws(Errno) -> any IOMMU {
    guard type == VFIOExtension.noIOMMU else { throw .invalidArgument }
    return NoIOMMU(physicalMemory)
  }
}

/// What devices without an IOMMU reach: the bytes of `memory`, by their place.
public struct PhysicalMemory: Sendable {
  public let memory: any DMAMemory
  /// Bytes; the first address beyond.
  public let size: UInt64

  public init(_ memory: any DMAMemory, size: UInt64) {
    self.memory = memory
    self.size = size
  }
}

/// One container of groups without an IOMMU.
final class NoIOMMU: IOMMU {
  private let physicalMemory: PhysicalMemory?

  init(_ physicalMemory: PhysicalMemory?) { self.physicalMemory = physicalMemory }

  func checkExtension(_ number: UInt64) -> Int64 { NoIOMMUDriver().checkExtension(number) }
  func attach(_ group: IOMMUGroup) throws(Errno) {}
  func detach(_ group: IOMMUGroup) {}
  func release() {}

  /// `ENOTTY`: there is nothing to map into.
  func operation(
    _ command: UInt32, _ argument: Span<UInt8>, _ source: any MemorySource
  ) throws(Errno) -> OperationResult {
    throw .inappropriateIOCTLForDevice
  }

  let iotlb = IOTLB()

  func translate(_ iova: UInt64) -> Translation? {
    guard let physicalMemory, iova < physicalMemory.size else { return nil }
    return Translation(
      range: 0...physicalMemory.size - 1, memory: physicalMemory.memory, offset: 0,
      access: [.read, .write])
  }
}
