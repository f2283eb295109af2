import Locks
import SystemPackage

/// A set of groups that share one IOMMU; a descriptor of `/dev/vfio/vfio`.
///
/// It is unprivileged by itself: only a group that was put into it lets its user choose an IOMMU
/// driver, and with the last group the driver goes. It lives as long as its descriptor or a group
/// refers to it.
public final class Container: Sendable {
  private let registry: Registry
  private let limits: IOMMULimits
  /// Guards groups and driver.
  private let state = Mutex(State())

  private struct State {
    /// Newest first.
    var groups: [IOMMUGroup] = []
    var open: OpenIOMMU?

    /// Groups without an IOMMU have a driver of their own, and others never have it.
    func allows(_ driver: any IOMMUDriver) -> Bool {
      guard let group = groups.first else { return true }
      return driver.isForGroupsWithoutIOMMU != group.hasIOMMU
    }
  }

  /// A driver's IOMMU, released with the last reference. The container has one as long as it has
  /// groups, and so has each operation under way: an operation may wait for a transfer to end, and
  /// must neither hold the lock meanwhile nor lose the IOMMU.
  final class OpenIOMMU: Sendable {
    let iommu: any IOMMU
    /// Keeps the driver alive after it was unregistered.
    fileprivate let driver: any IOMMUDriver
    fileprivate let type: UInt64

    fileprivate init(
      _ driver: any IOMMUDriver, _ type: UInt64, _ limits: IOMMULimits
    ) throws(Errno) {
      iommu = try driver.open(type, limits)
      self.driver = driver
      self.type = type
    }

    deinit { iommu.release() }
  }

  /// `VFIO_GET_API_VERSION`.
  public static let apiVersion: Int64 = 0

  public init(registry: Registry, limits: IOMMULimits = .pc) {
    self.registry = registry
    self.limits = limits
  }

  /// The IOMMU that `VFIO_SET_IOMMU` has set, until the last group leaves.
  public var iommu: (any IOMMU)? { state.withLock { $0.open?.iommu } }

  /// `VFIO_CHECK_EXTENSION`. Without a driver set, all registered ones that the container's groups
  /// may have are asked until one gives a positive answer; otherwise the last answer counts, or 0.
  public func checkExtension(_ number: UInt64) -> Int64 {
    state.withLock { state in
      if let open = state.open { return open.iommu.checkExtension(number) }
      var answer: Int64 = 0
      for driver in registry.iommuDrivers where state.allows(driver) {
        answer = driver.checkExtension(number)
        if answer > 0 { break }
      }
      return answer
    }
  }

  /// `VFIO_SET_IOMMU`: the first driver that reports the extension `type` gets the container.
  ///
  /// `EINVAL` without a group, or when a driver is set; `ENODEV` when no driver fits; otherwise the
  /// error with which the driver refuses the type or one of the groups.
  public func setIOMMU(_ type: UInt64) throws(Errno) {
    try state.withLock { state throws(Errno) in
      guard !state.groups.isEmpty, state.open == nil else { throw .invalidArgument }
      let driver = registry.iommuDrivers.first {
        state.allows($0) && $0.checkExtension(type) > 0
      }
      guard let driver else { throw .operationNotSupportedByDevice }
      let open = try OpenIOMMU(driver, type, limits)
      try Container.attach(state.groups, to: open.iommu)
      state.open = open
    }
  }

  /// Another IOMMU such as `VFIO_SET_IOMMU` has set, with `group` attached to it and nothing mapped.
  /// `EINVAL` when none is set, or the error of the driver.
  func anotherIOMMU(for group: IOMMUGroup) throws(Errno) -> OpenIOMMU {
    guard let open = state.withLock({ $0.open }) else { throw .invalidArgument }
    let another = try OpenIOMMU(open.driver, open.type, limits)
    try another.iommu.attach(group)
    return another
  }

  /// Attaches all groups, or none.
  private static func attach(_ groups: [IOMMUGroup], to iommu: any IOMMU) throws(Errno) {
    for (index, group) in groups.enumerated() {
      do throws(Errno) {
        try iommu.attach(group)
      } catch {
        for group in groups[..<index].reversed() { iommu.detach(group) }
        throw error
      }
    }
  }

  /// An operation that the core doesn't know goes to the driver; `EINVAL` without one.
  public func operation(
    _ command: UInt32, _ argument: Span<UInt8>, _ source: any MemorySource
  ) throws(Errno) -> OperationResult {
    try withIOMMU { iommu throws(Errno) in try iommu.operation(command, argument, source) }
  }

  /// `read` of the container's descriptor; `EINVAL` without a driver that has it.
  public func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    try withIOMMU { iommu throws(Errno) in try iommu.read(at: offset, into: &bytes) }
  }

  /// `write` to the container's descriptor; `EINVAL` without a driver that has it.
  public func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {
    try withIOMMU { iommu throws(Errno) in try iommu.write(bytes, at: offset) }
  }

  /// `mmap` of the container's descriptor; `EINVAL` without a driver that has it.
  public func mmap(at offset: UInt64, size: UInt64) throws(Errno) -> any MappableMemory {
    try withIOMMU { iommu throws(Errno) in try iommu.mmap(at: offset, size: size) }
  }

  private func withIOMMU<Result: Sendable>(
    _ body: (any IOMMU) throws(Errno) -> Result
  ) throws(Errno) -> Result {
    guard let open = state.withLock({ $0.open }) else { throw .invalidArgument }
    return try withExtendedLifetime(open) { () throws(Errno) in try body(open.iommu) }
  }

  /// Takes a group in, and attaches it to the driver, whose error is thrown. `EPERM` for a group
  /// without an IOMMU among such that have one, and the other way round.
  func add(_ group: IOMMUGroup) throws(Errno) {
    try state.withLock { state throws(Errno) in
      guard state.groups.allSatisfy({ $0.hasIOMMU == group.hasIOMMU }) else {
        throw .notPermitted
      }
      try state.open?.iommu.attach(group)
      state.groups.insert(group, at: 0)
    }
  }

  /// Lets a group go; with the last one the driver.
  func remove(_ group: IOMMUGroup) {
    state.withLock { state in
      state.open?.iommu.detach(group)
      state.groups.removeAll { $0 === group }
      if state.groups.isEmpty { state.open = nil }
    }
  }
}
