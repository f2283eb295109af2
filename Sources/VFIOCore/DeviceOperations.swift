import SystemPackage

/// A device behind a VFIO driver: with its protocol's types, what the kernel's `vfio_device_ops`
/// holds. Calls come from several threads; none of them may wait.
public protocol DeviceOperations: AnyObject, Sendable {
  /// `VFIO_DEVICE_GET_INFO`.
  var information: DeviceInformation { get }
  /// `VFIO_DEVICE_GET_REGION_INFO`; `EINVAL` beyond the last region.
  func region(_ index: UInt32) throws(Errno) -> RegionInformation
  /// `VFIO_DEVICE_GET_IRQ_INFO`; `EINVAL` beyond the last kind of interrupt.
  func interrupt(_ index: UInt32) throws(Errno) -> InterruptInformation

  /// A descriptor of the device was opened: the first of several resets the device unless it keeps
  /// its state (vfio-user's rule for `devices/NAME.sock`). Its error is the client's answer.
  func open(_ dma: DMA, keepingState: Bool) throws(Errno)
  /// A descriptor closed. With the last one the device forgets its interrupts' triggers and its DMA,
  /// and keeps its state.
  func release()

  /// Region accesses. `EINVAL` outside the region or for one that lacks the access, `EIO` for a BAR
  /// whose decoding is off.
  func read(_ region: UInt32, at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno)
  func write(_ bytes: Span<UInt8>, to region: UInt32, at offset: UInt64) throws(Errno)

  /// The writes to a region that an eventfd may stand for (vfio-user's `GET_REGION_IO_FDS`), in the order
  /// of their offsets. `EINVAL` for a region that the device hasn't got.
  func ioEvents(_ region: UInt32) throws(Errno) -> [IOEvent]

  /// `VFIO_DEVICE_SET_IRQS`; `EINVAL` for a range or an action that the kind of interrupt lacks.
  func setInterrupts(_ request: InterruptRequest) throws(Errno)
  /// `VFIO_DEVICE_RESET`; `ENOTTY` without the flag in `information`.
  func reset() throws(Errno)
  /// The administrator wants the device back: triggers its REQ interrupt, if a user has set one.
  func request()
}

/// `struct vfio_device_info`.
public struct DeviceInformation: Sendable, Equatable {
  /// `VFIO_DEVICE_FLAGS_RESET` (1) and `VFIO_DEVICE_FLAGS_PCI` (2).
  public var flags: UInt32
  public var regions: UInt32
  public var interrupts: UInt32

  public init(flags: UInt32, regions: UInt32, interrupts: UInt32) {
    self.flags = flags
    self.regions = regions
    self.interrupts = interrupts
  }
}

/// `struct vfio_region_info`, and the memory behind the parts that a client may map.
public struct RegionInformation: Sendable {
  public var readable: Bool
  public var writable: Bool
  /// Bytes; 0 for a BAR that the device hasn't got.
  public var size: UInt64
  /// What may be mapped: nothing, the whole region, or some areas of it (`VFIO_REGION_INFO_CAP_SPARSE_MMAP`).
  public var mappable: [Range<UInt64>]
  /// The memory that holds the region from its offset 0 on; present when `mappable` isn't empty.
  public var memory: (any MappableMemory)?
  /// What a region beyond the bus's own is for (`VFIO_REGION_INFO_CAP_TYPE`).
  public var type: RegionType?

  public init(
    readable: Bool, writable: Bool, size: UInt64, mappable: [Range<UInt64>] = [],
    memory: (any MappableMemory)? = nil, type: RegionType? = nil
  ) {
    self.readable = readable
    self.writable = writable
    self.size = size
    self.mappable = mappable
    self.memory = memory
    self.type = type
  }
}

/// `struct vfio_region_info_cap_type`, without its header.
public struct RegionType: Sendable, Equatable {
  public var type: UInt32
  public var subtype: UInt32

  public init(type: UInt32, subtype: UInt32) {
    self.type = type
    self.subtype = subtype
  }
}

/// A write that a client may replace by signalling an eventfd (`struct kvm_ioeventfd`).
public struct IOEvent: Sendable, Equatable {
  /// In the region.
  public var offset: UInt64
  /// Bytes of the write: 1, 2, 4 or 8.
  public var size: UInt64
  /// What is written; nil: whatever it is, the signal is a write of 0.
  public var value: UInt64?

  public init(offset: UInt64, size: UInt64, value: UInt64? = nil) {
    self.offset = offset
    self.size = size
    self.value = value
  }
}

/// `struct vfio_irq_info`.
public struct InterruptInformation: Sendable, Equatable {
  /// `VFIO_IRQ_INFO_EVENTFD` (1), `MASKABLE` (2), `AUTOMASKED` (4), `NORESIZE` (8).
  public var flags: UInt32
  public var count: UInt32

  public init(flags: UInt32, count: UInt32) {
    self.flags = flags
    self.count = count
  }
}

/// What an interrupt signals, or what unmasks it: an eventfd, seen from the core. Signalling never waits.
public protocol InterruptTrigger: AnyObject, Sendable {
  func signal()
  /// Calls `action` whenever the client signals the event, from now on and as long as this object lives;
  /// also if it is signalled already.
  func listen(_ action: @escaping @Sendable () -> Void) throws(Errno)
}

/// `struct vfio_irq_set`, already checked for its form: one action, one kind of data, as many data
/// as `count`. The range is not: `start + count` may exceed what the device has, or wrap.
public struct InterruptRequest: Sendable {
  public enum Action: Sendable { case mask, unmask, trigger }
  public enum Data: Sendable {
    /// Act at once on the whole range; with `count` 0 and `trigger`, disable all of the index.
    case none
    /// Act at once where true.
    case bools([Bool])
    /// For `trigger`: signal these from now on. For `unmask`: do so when the client signals it. nil takes
    /// away.
    case triggers([(any InterruptTrigger)?])
  }
  public var index: UInt32
  public var start: UInt32
  public var count: UInt32
  public var action: Action
  public var data: Data

  public init(index: UInt32, start: UInt32, count: UInt32, action: Action, data: Data) {
    self.index = index
    self.start = start
    self.count = count
    self.action = action
    self.data = data
  }
}
