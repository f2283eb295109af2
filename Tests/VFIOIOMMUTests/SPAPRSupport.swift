import SystemPackage
import VFIOCore
import VFIOIOMMU

enum SPAPRVersion: UInt64, CaseIterable, Sendable {
  case v1 = 2
  case v2 = 7

  /// With a group, as a container's always is.
  func open(_ limits: IOMMULimits = .pc) throws -> any IOMMU {
    let iommu = try SPAPRDriver().open(rawValue, limits)
    try iommu.attach(IOMMUGroup(id: 26))
    return iommu
  }

  /// With entries allowed: version 1 enabled; version 2 with `source`'s first `size` bytes registered.
  func ready(
    _ source: TestSource = TestSource(), size: UInt64 = 1 << 30, _ limits: IOMMULimits = .pc
  ) throws -> any IOMMU {
    let iommu = try open(limits)
    switch self {
    case .v1: try iommu.enable()
    case .v2: try iommu.register(0, size: size, from: source)
    }
    return iommu
  }
}

/// Where version 2's second window begins.
let secondWindow: UInt64 = 1 << 59

extension IOMMULimits {
  static func locked(_ bytes: UInt64) -> IOMMULimits {
    IOMMULimits(apertures: [0...UInt64.max], mappings: 65535, lockedMemory: bytes)
  }

  static func mappings(_ count: Int) -> IOMMULimits {
    IOMMULimits(apertures: [0...UInt64.max], mappings: count)
  }
}

extension IOMMU {
  /// `VFIO_IOMMU_ENABLE`.
  func enable() throws(Errno) { _ = try perform(0x3B73, []) }
  /// `VFIO_IOMMU_DISABLE`.
  func disable() throws(Errno) { _ = try perform(0x3B74, []) }

  /// `VFIO_IOMMU_SPAPR_TCE_GET_INFO`; returns the structure.
  func tceInfo(argsz: UInt32 = 32) throws(Errno) -> [UInt8] {
    try perform(
      0x3B70, structure(.u32(argsz), .u32(9), .u32(9), .u32(9), .u64(9), .u32(9), .u32(9))
    ).structure
  }

  /// `VFIO_IOMMU_SPAPR_REGISTER_MEMORY`.
  func register(
    _ address: UInt64, size: UInt64, flags: UInt32 = 0, argsz: UInt32 = 24,
    from source: TestSource = TestSource()
  ) throws(Errno) {
    _ = try perform(
      0x3B75, structure(.u32(argsz), .u32(flags), .u64(address), .u64(size)), from: source)
  }

  /// `VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY`.
  func unregister(
    _ address: UInt64, size: UInt64, flags: UInt32 = 0, argsz: UInt32 = 24,
    from source: TestSource = TestSource()
  ) throws(Errno) {
    _ = try perform(
      0x3B76, structure(.u32(argsz), .u32(flags), .u64(address), .u64(size)), from: source)
  }

  /// `VFIO_IOMMU_SPAPR_TCE_CREATE`; returns where the window begins.
  @discardableResult
  func createWindow(
    pageShift: UInt32 = 16, size: UInt64, levels: UInt32 = 1, flags: UInt32 = 0,
    argsz: UInt32 = 40
  ) throws(Errno) -> UInt64 {
    let request = structure(
      .u32(argsz), .u32(flags), .u32(pageShift), .u32(0), .u64(size), .u32(levels), .u32(0),
      .u64(0x77))
    let answer = try perform(0x3B77, request).structure
    guard answer.prefix(32) == request.prefix(32), answer.count == 40 else { throw .ioError }
    return answer.integer(at: 32, size: 8)
  }

  /// `VFIO_IOMMU_SPAPR_TCE_REMOVE`.
  func removeWindow(_ start: UInt64, flags: UInt32 = 0, argsz: UInt32 = 16) throws(Errno) {
    _ = try perform(0x3B78, structure(.u32(argsz), .u32(flags), .u64(start)))
  }
}
