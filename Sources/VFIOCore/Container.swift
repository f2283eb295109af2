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
  /// Guards groups and driver, and is held during all that the driver does for the container, so that
  /// its IOMMU isn't released meanwhile.
  private let state = Mutex(State())

  private struct State {
    /// Newest first.
    var groups: [IOMMUGroup] = []
    /// The driver is kept too: it stays alive after it was unregistered.
    var driver: (any IOMMUDriver)?
    var iommu: (any IOMMU)?
  }

  public init(registry: Registry, limits: IOMMULimits = .pc) {
    self.registry = registry
    self.limits = limits
  }

  /// The IOMMU that `VFIO_SET_IOMMU` has set, until the last group leaves.
  public var iommu: (any IOMMU)? { state.withLock { $0.iommu } }

  /// `VFIO_CHECK_EXTENSION`. Without a driver set, all registered ones are asked until one gives a
  /// positive answer; otherwise the last answer counts, or 0.
  public func checkExtension(_ number: UInt64) -> Int64 {
    state.withLock { state in
      if let iommu = state.iommu { return iommu.checkExtension(number) }
      var answer: Int64 = 0
      for driver in registry.iommuDrivers {
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
      guard !state.groups.isEmpty, state.iommu == nil else { throw .invalidArgument }
      guard let driver = registry.iommuDrivers.first(where: { $0.checkExtension(type) > 0 }) else {
        throw .operationNotSupportedByDevice
      }
      let iommu = try driver.open(type, limits)
      try Container.attach(state.groups, to: iommu)
      state.driver = driver
      state.iommu = iommu
    }
  }

  /// Attaches all groups, or none and releases the IOMMU.
  private static func attach(_ groups: [IOMMUGroup], to iommu: any IOMMU) throws(Errno) {
    for (index, group) in groups.enumerated() {
      do throws(Errno) {
        try iommu.attach(group)
      } catch {
        for group in groups[..<index].reversed() { iommu.detach(group) }
        iommu.release()
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
    try state.withLock { state throws(Errno) in
      guard let iommu = state.iommu else { throw .invalidArgument }
      return try body(iommu)
    }
  }

  /// Takes a group in, and attaches it to the driver, whose error is thrown.
  func add(_ group: IOMMUGroup) throws(Errno) {
    try state.withLock { state throws(Errno) in
      try state.iommu?.attach(group)
      state.groups.insert(group, at: 0)
    }
  }

  /// Lets a group go; with the last one the driver.
  func remove(_ group: IOMMUGroup) {
    state.withLock { state in
      state.iommu?.detach(group)
      state.groups.removeAll { $0 === group }
      guard state.groups.isEmpty else { return }
      state.iommu?.release()
      state.iommu = nil
      state.driver = nil
    }
  }
}
