import JSON
import VFIOCore

/// What a server serves, and its limits.
public struct Configuration: Sendable, Equatable {
  public var groups: [Group]
  /// The names of the IOMMU drivers that are registered at start, in this order.
  public var iommuDrivers: [String]
  public var limits: Limits
  /// The path of the memory that devices without an IOMMU reach; nil when their DMA is off.
  public var physicalMemory: String?

  public init(
    groups: [Group], iommuDrivers: [String] = ["type1", "spapr-tce"], limits: Limits = Limits(),
    physicalMemory: String? = nil
  ) {
    self.groups = groups
    self.iommuDrivers = iommuDrivers
    self.limits = limits
    self.physicalMemory = physicalMemory
  }

  /// An IOMMU group, and who may open it.
  public struct Group: Sendable, Equatable {
    /// The name under `/dev/vfio`.
    public var id: UInt32
    /// The user that owns the group and its device sockets; nil is the server's own user.
    public var owner: UInt32?
    /// The permission bits of the group and of its device sockets.
    public var mode: UInt32
    /// False for devices that no IOMMU stands in front of.
    public var hasIOMMU: Bool
    public var devices: [Device]

    /// The owner reads and writes, nobody else does.
    public static let defaultMode: UInt32 = 0o600

    public init(
      id: UInt32, owner: UInt32? = nil, mode: UInt32 = defaultMode, hasIOMMU: Bool = true,
      devices: [Device]
    ) {
      self.id = id
      self.owner = owner
      self.mode = mode
      self.hasIOMMU = hasIOMMU
      self.devices = devices
    }
  }

  /// A device of a group.
  public struct Device: Sendable, Equatable {
    /// Its PCI address, which is its name everywhere: `0000:06:0d.0`.
    public var address: String
    /// The model that emulates it; nil for a device that is there by name only.
    public var model: String?
    /// The driver that it is bound to at start; nil for none. `vfio-pci` needs a model.
    public var driver: String?
    /// What the model may be told: each value is `.bool`, `.string`, or an `.integer` that fits `UInt64`.
    public var options: [String: JSONValue]
    /// The path of its vfio-user socket; nil is `devices/ADDRESS.sock` in the server's directory.
    public var socket: String?

    public init(
      _ address: String, model: String? = nil, driver: String?,
      options: [String: JSONValue] = [:], socket: String? = nil
    ) {
      self.address = address
      self.model = model
      self.driver = driver
      self.options = options
      self.socket = socket
    }
  }

  /// What clients may use up.
  public struct Limits: Sendable, Equatable {
    /// Connections alive at a time, over all sockets and handed-out descriptors.
    public var connections = 4096
    /// Descriptors that one message may bring.
    public var messageDescriptors = 16
    /// Descriptors sent to a connection that it hasn't received yet.
    public var undeliveredDescriptors = 64
    /// vfio-user's `max_data_xfer_size`, in bytes.
    public var maxDataTransferSize = 1 << 20
    /// The IOVA that containers may map, ascending and disjoint. Device sockets may map any.
    public var apertures = IOMMULimits.pc.apertures
    /// DMA mappings alive at a time in a container.
    public var mappings = IOMMULimits.pc.mappings
    /// Seconds in which a client must answer a DMA_READ or DMA_WRITE, before the transfer faults.
    public var dmaTimeout = 5
    /// Bytes that a container may have mapped at a time, or an sPAPR TCE container locked, with its tables;
    /// nil for no limit.
    public var lockedMemory: UInt64?
    /// Bytes of replies that wait for a client which doesn't read.
    public var queuedReplies = 4 << 20

    public init() {}
  }

  /// What a server without a configuration file serves: every kind of device and group that a first
  /// user or a test wants.
  public static let builtIn = Configuration(groups: [
    Group(
      id: 26,
      devices: [
        Device("0000:06:0d.0", model: "edu", driver: "vfio-pci"),
        Device("0000:06:0d.1", driver: "pci-stub"),
      ]),
    Group(id: 27, devices: [Device("0000:07:00.0", model: "scratch", driver: "vfio-pci")]),
    Group(
      id: 28,
      devices: [
        Device("0000:08:00.0", model: "edu", driver: "vfio-pci"),
        Device("0000:08:00.1", driver: "e1000"),
      ]),
  ])
}
