/// A capability of configuration space, decoded.
struct Capability {
  var offset: Int
  /// What it is, and its state in brief.
  var title: String
  /// More, a line each.
  var lines: [String] = []
}

extension ConfigSpace {
  /// The capabilities in the order of their list, and those of extended configuration space. A list that
  /// leads in a circle ends there.
  var capabilities: [Capability] {
    var found: [Capability] = []
    var seen: Set<Int> = []
    var place = status & 0x10 == 0 ? 0 : Int(u8(0x34) & ~3)
    while place >= 0x40, place + 2 <= min(bytes.count, 256), seen.insert(place).inserted {
      found.append(capability(at: place))
      place = Int(u8(place + 1) & ~3)
    }
    place = 0x100
    while place >= 0x100, place + 4 <= bytes.count, seen.insert(place).inserted {
      let header = u32(place)
      guard header != 0, header != .max else { break }
      let id = UInt16(truncatingIfNeeded: header)
      let name = Self.extendedNames[id] ?? "Extended capability 0x\(hex(id, 4))"
      found.append(Capability(offset: place, title: "\(name), version \(header >> 16 & 15)"))
      place = Int(header >> 20 & ~3)
    }
    return found
  }

  private static let names: [UInt8: String] = [
    0x02: "AGP", 0x03: "Vital Product Data", 0x04: "Slot Identification",
    0x06: "CompactPCI hot swap", 0x07: "PCI-X", 0x08: "HyperTransport", 0x0A: "Debug port",
    0x0C: "Hot-plug capable", 0x0D: "Subsystem", 0x0F: "Secure device", 0x12: "SATA HBA",
    0x13: "PCI Advanced Features", 0x14: "Enhanced Allocation",
  ]
  private static let extendedNames: [UInt16: String] = [
    0x01: "Advanced Error Reporting", 0x02: "Virtual Channel", 0x03: "Device Serial Number",
    0x04: "Power Budgeting", 0x0B: "Vendor Specific", 0x0D: "Access Control Services",
    0x0E: "Alternative Routing-ID Interpretation", 0x0F: "Address Translation Service",
    0x10: "Single Root I/O Virtualization", 0x13: "Page Request Interface",
    0x15: "Resizable BAR", 0x18: "Latency Tolerance Reporting", 0x19: "Secondary PCI Express",
    0x1B: "Process Address Space ID", 0x1E: "L1 PM Substates",
  ]

  private func capability(at place: Int) -> Capability {
    switch u8(place) {
    case 0x01: powerManagement(place)
    case 0x05: msi(place)
    case 0x09:
      Capability(
        offset: place, title: "Vendor Specific: Len=\(hex(u8(place + 2), 2))",
        lines: [hex(bytes[place..<min(place + max(3, Int(u8(place + 2))), bytes.count)])])
    case 0x10: express(place)
    case 0x11: msix(place)
    case let id:
      Capability(offset: place, title: Self.names[id] ?? "Capability 0x\(hex(id, 2))")
    }
  }

  private func powerManagement(_ place: Int) -> Capability {
    let (capabilities, control) = (u16(place + 2), u16(place + 4))
    let flags = Self.bits(UInt32(capabilities), [(5, "DSI"), (9, "D1"), (10, "D2")])
    let state = Self.bits(UInt32(control), [(3, "NoSoftRst"), (8, "PME-Enable"), (15, "PME")])
    return Capability(
      offset: place, title: "Power Management version \(capabilities & 7)",
      lines: ["Flags: \(flags)", "Status: D\(control & 3) \(state)"])
  }

  private func msi(_ place: Int) -> Capability {
    let control = u16(place + 2)
    let (capable, enabled) = (1 << (control >> 1 & 7), 1 << (control >> 4 & 7))
    let is64Bit = control & 0x80 != 0
    let flags = Self.bits(UInt32(control), [(8, "Maskable"), (7, "64bit")])
    let address = is64Bit ? hex(u64(place + 4), 16) : hex(u32(place + 4), 8)
    var lines = ["Address: \(address)  Data: \(hex(u16(place + (is64Bit ? 12 : 8)), 4))"]
    if control & 0x100 != 0 {
      let mask = place + (is64Bit ? 16 : 12)
      lines.append("Masking: \(hex(u32(mask), 8))  Pending: \(hex(u32(mask + 4), 8))")
    }
    return Capability(
      offset: place,
      title:
        "MSI: \(Self.bits(UInt32(control), [(0, "Enable")])) Count=\(enabled)/\(capable) \(flags)",
      lines: lines)
  }

  private func msix(_ place: Int) -> Capability {
    let control = u16(place + 2)
    let flags = Self.bits(UInt32(control), [(15, "Enable"), (14, "Masked")])
    func table(_ name: String, _ value: UInt32) -> String {
      "\(name): BAR=\(value & 7) offset=\(hex(value & ~7, 8))"
    }
    return Capability(
      offset: place, title: "MSI-X: \(flags) Count=\(control & 0x7FF + 1)",
      lines: [
        table("Vector table", u32(place + 4)), table("Pending bits", u32(place + 8)),
      ])
  }

  private func express(_ place: Int) -> Capability {
    let types: [UInt16: String] = [
      0: "Endpoint", 1: "Legacy Endpoint", 4: "Root Port", 5: "Upstream Port",
      6: "Downstream Port", 7: "PCI-Express to PCI/PCI-X Bridge",
      8: "PCI/PCI-X to PCI-Express Bridge", 9: "Root Complex Integrated Endpoint",
      10: "Root Complex Event Collector",
    ]
    let capability = u16(place + 2)
    let type = types[capability >> 4 & 15] ?? "type \(capability >> 4 & 15)"
    let (device, control) = (u32(place + 4), u16(place + 8))
    let (link, linkStatus) = (u32(place + 12), u16(place + 18))
    func payload(_ code: UInt32) -> String { "\(128 << code) bytes" }
    var lines = [
      "Device capabilities: MaxPayload \(payload(device & 7)) "
        + Self.bits(device, [(5, "ExtTag"), (15, "RBE"), (28, "FLReset")]),
      "Device control: MaxPayload \(payload(UInt32(control >> 5 & 7))), MaxReadReq "
        + "\(payload(UInt32(control >> 12 & 7))) "
        + Self.bits(
          UInt32(control),
          [(0, "CorrErr"), (1, "NonFatalErr"), (2, "FatalErr"), (3, "UnsupReq"), (4, "RlxdOrd")]),
    ]
    if link != 0 {
      lines.append(
        "Link: speed code \(linkStatus & 15) of \(link & 15), width x\(linkStatus >> 4 & 63) of "
          + "x\(link >> 4 & 63)")
    }
    return Capability(
      offset: place,
      title: "Express version \(capability & 15), \(type), MSI \(hex(capability >> 9 & 31, 2))",
      lines: lines)
  }
}
