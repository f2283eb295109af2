import SystemPackage

/// `struct vfio_device_info`.
public struct DeviceInfo: Sendable, Equatable {
  public struct Flags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// The device can be reset.
    public static let reset = Flags(rawValue: 1)
    public static let pci = Flags(rawValue: 2)
  }

  public var flags: Flags
  /// How many regions there are.
  public var regions: UInt32
  /// How many kinds of interrupt there are.
  public var interrupts: UInt32
}

/// Which region of a PCI device, `VFIO_PCI_*_REGION_INDEX`.
public struct RegionIndex: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// BAR 0 to 5.
  public static func bar(_ number: UInt32) -> RegionIndex {
    precondition(number <= 5, "bar \(number): a device has bars 0 to 5")
    return RegionIndex(rawValue: number)
  }
  public static let rom = RegionIndex(rawValue: 6)
  /// PCI configuration space.
  public static let config = RegionIndex(rawValue: 7)
  public static let vga = RegionIndex(rawValue: 8)

  public var description: String {
    switch rawValue {
    case 0...5: "bar \(rawValue)"
    case 6: "rom"
    case 7: "config space"
    case 8: "vga"
    default: "region \(rawValue)"
    }
  }
}

/// `struct vfio_region_info` and its capabilities.
public struct RegionInfo: Sendable, Equatable {
  public struct Flags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let read = Flags(rawValue: 1)
    public static let write = Flags(rawValue: 2)
    /// Parts of it, or all, can be mapped.
    public static let mmap = Flags(rawValue: 4)
    public static let capabilities = Flags(rawValue: 8)
  }

  public var index: RegionIndex
  public var flags: Flags
  /// Bytes; 0 for a BAR that the device hasn't got.
  public var size: UInt64
  /// What may be mapped.
  public var mappable: [Range<UInt64>]
  /// Where the region begins in its descriptor.
  var start: UInt64

  /// `u32 argsz, u32 flags, u32 index, u32 cap_offset, u64 size, u64 offset`.
  init(_ reply: Reply) throws(Errno) {
    flags = Flags(rawValue: try reply.uint32(at: 4))
    index = RegionIndex(rawValue: try reply.uint32(at: 8))
    size = try reply.uint64(at: 16)
    start = try reply.uint64(at: 24)
    guard flags.contains(.mmap) else {
      mappable = []
      return
    }
    mappable = [0..<size]
    let first = flags.contains(.capabilities) ? try reply.uint32(at: 12) : 0
    for capability in try reply.capabilities(from: first) where capability.id == 1 {
      // VFIO_REGION_INFO_CAP_SPARSE_MMAP
      mappable = try reply.pairs(at: capability.data).map { (offset, size) throws(Errno) in
        let (end, overflow) = offset.addingReportingOverflow(size)
        guard !overflow, end <= self.size else { throw .protocolError }
        return offset..<end
      }
    }
  }
}

/// Which interrupts of a PCI device, `VFIO_PCI_*_IRQ_INDEX`.
public struct InterruptKind: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// The interrupt line: a level, which masks itself when it signals.
  public static let intx = InterruptKind(rawValue: 0)
  public static let msi = InterruptKind(rawValue: 1)
  public static let msix = InterruptKind(rawValue: 2)
  /// The device has met an error that it can't recover from.
  public static let error = InterruptKind(rawValue: 3)
  /// The administrator wants the device back.
  public static let request = InterruptKind(rawValue: 4)

  public var description: String {
    switch self {
    case .intx: "intx"
    case .msi: "msi"
    case .msix: "msi-x"
    case .error: "error interrupt"
    case .request: "request interrupt"
    default: "interrupt kind \(rawValue)"
    }
  }
}

/// `struct vfio_irq_info`.
public struct InterruptInfo: Sendable, Equatable {
  public struct Flags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let eventfd = Flags(rawValue: 1)
    public static let maskable = Flags(rawValue: 2)
    /// It masks itself when it signals.
    public static let automasked = Flags(rawValue: 4)
    public static let noResize = Flags(rawValue: 8)
  }

  public var flags: Flags
  /// How many there are of this kind.
  public var count: UInt32
}
