import VFIOClient

/// Configuration space, decoded: PCI Local Bus 3.0, chapter 6, and PCI Express Base, chapter 7. A byte
/// that isn't there reads as 0.
struct ConfigSpace {
  let bytes: [UInt8]

  func u8(_ offset: Int) -> UInt8 { bytes.indices.contains(offset) ? bytes[offset] : 0 }
  func u16(_ offset: Int) -> UInt16 { UInt16(u8(offset)) | UInt16(u8(offset + 1)) << 8 }
  func u32(_ offset: Int) -> UInt32 { UInt32(u16(offset)) | UInt32(u16(offset + 2)) << 16 }
  func u64(_ offset: Int) -> UInt64 { UInt64(u32(offset)) | UInt64(u32(offset + 4)) << 32 }

  // MARK: header

  var vendor: UInt16 { u16(0x00) }
  var device: UInt16 { u16(0x02) }
  var command: UInt16 { u16(0x04) }
  var status: UInt16 { u16(0x06) }
  var revision: UInt8 { u8(0x08) }
  var programmingInterface: UInt8 { u8(0x09) }
  /// Base class and subclass.
  var classCode: UInt16 { u16(0x0A) }

  /// Such as `Unclassified device [00ff]: 1234:11e8 (rev 10)`.
  var identity: String {
    "\(className) [\(hex(classCode, 4))]: \(hex(vendor, 4)):\(hex(device, 4))"
      + (revision == 0 ? "" : " (rev \(hex(revision, 2)))")
  }

  var subsystem: String? {
    let (vendor, device) = (u16(0x2C), u16(0x2E))
    return vendor == 0 && device == 0 ? nil : "\(hex(vendor, 4)):\(hex(device, 4))"
  }

  private var className: String {
    let names: [UInt16: String] = [
      0x0100: "SCSI storage controller", 0x0101: "IDE interface", 0x0106: "SATA controller",
      0x0108: "Non-Volatile memory controller", 0x0200: "Ethernet controller",
      0x0300: "VGA compatible controller", 0x0403: "Audio device", 0x0600: "Host bridge",
      0x0601: "ISA bridge", 0x0604: "PCI bridge", 0x0700: "Serial controller",
      0x0C03: "USB controller", 0x0C05: "SMBus",
    ]
    let bases: [UInt16: String] = [
      0x00: "Unclassified device", 0x01: "Mass storage controller", 0x02: "Network controller",
      0x03: "Display controller", 0x04: "Multimedia controller", 0x05: "Memory controller",
      0x06: "Bridge", 0x07: "Communication controller", 0x08: "Generic system peripheral",
      0x09: "Input device controller", 0x0A: "Docking station", 0x0B: "Processor",
      0x0C: "Serial bus controller", 0x0D: "Wireless controller",
      0x0E: "Intelligent controller", 0x0F: "Satellite communications controller",
      0x10: "Encryption controller", 0x11: "Signal processing controller",
      0x12: "Processing accelerators", 0x13: "Non-Essential Instrumentation",
      0x40: "Coprocessor", 0xFF: "Unassigned class",
    ]
    return names[classCode] ?? bases[classCode >> 8] ?? "Class"
  }

  private static let commandBits: [(Int, String)] = [
    (0, "I/O"), (1, "Mem"), (2, "BusMaster"), (3, "SpecCycle"), (4, "MemWINV"), (5, "VGASnoop"),
    (6, "ParErr"), (7, "Stepping"), (8, "SERR"), (9, "FastB2B"), (10, "DisINTx"),
  ]
  private static let statusBits: [(Int, String)] = [
    (3, "INTx"), (4, "Cap"), (5, "66MHz"), (7, "FastB2B"), (8, "ParErr"), (11, ">TAbort"),
    (12, "<TAbort"), (13, "<MAbort"), (14, ">SERR"), (15, "<PERR"),
  ]

  var control: String { Self.bits(UInt32(command), Self.commandBits) }
  var state: String { Self.bits(UInt32(status), Self.statusBits) }

  /// Each bit's name with a plus when it is set, else with a minus.
  static func bits(_ value: UInt32, _ names: [(Int, String)]) -> String {
    names.map { "\($0.1)\(value >> UInt32($0.0) & 1 == 1 ? "+" : "-")" }.joined(separator: " ")
  }

  /// Such as `pin A routed to IRQ 0`; nil without a pin.
  var interrupt: String? {
    let pins = ["A", "B", "C", "D"]
    let pin = Int(u8(0x3D))
    guard pin >= 1, pin <= 4 else { return nil }
    return "pin \(pins[pin - 1]) routed to IRQ \(u8(0x3C))"
  }

  // MARK: BARs

  /// A line for each region that is a BAR or the ROM.
  func bars(_ regions: [RegionInfo]) -> [String] {
    regions.compactMap { region in
      let index = Int(region.index.rawValue)
      let end = " [size=\(size(region.size))]"
      guard index < 6 else {
        guard region.index == .rom else { return nil }
        let rom = u32(0x30)
        return "Expansion ROM at \(hex(rom & ~0x7FF, 8))\(rom & 1 == 0 ? " [disabled]" : "")\(end)"
      }
      let low = u32(0x10 + 4 * index)
      if low & 1 == 1 {
        return "Region \(index): I/O ports at \(hex(low & ~3, 4))\(end)"
      }
      let is64Bit = low & 6 == 4
      let address =
        is64Bit
        ? hex(u64(0x10 + 4 * index) & ~15, 16) : hex(low & ~15, 8)
      let kind = "\(is64Bit ? 64 : 32)-bit, \(low & 8 == 0 ? "non-" : "")prefetchable"
      let mappable = region.mappable.map { "0x\(hex($0.lowerBound))-0x\(hex($0.upperBound - 1))" }
      return "Region \(index): Memory at \(address) (\(kind))\(end)"
        + (mappable.isEmpty ? "" : " [mappable=\(mappable.joined(separator: ","))]")
    }
  }
}
