import ArgumentParser
import VFIOClient

struct Info: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Shows a device's regions and interrupts.",
    discussion: """
      It opens the device through its group for a moment, so the group must be viable and not in use. As \
      with the kernel, opening a device resets it.
      """)

  @OptionGroup var server: ServerOptions
  @Argument(help: "The device's PCI address.") var device: String

  func run() throws {
    try server.withServer { vfio in
      let found = try vfio.group(of: device)
      guard found.isViable else { throw Failure("group \(found.id) is not viable: see vfioctl ls") }
      let container = try vfio.openContainer()
      let group = try vfio.openGroup(found.id)
      try group.setContainer(container)
      try container.setIOMMU(found.hasIOMMU ? .type1v2 : .noIOMMU)
      try describe(try group.openDevice(device), in: found)
    }
  }

  private func describe(_ opened: Device, in group: Topology.Group) throws {
    let info = try opened.info()
    let vendor = try opened.config.load(UInt16.self, at: 0)
    let id = try opened.config.load(UInt16.self, at: 2)
    print("\(device)  \(hex(vendor, 4)):\(hex(id, 4))  group \(group.id)")
    print()
    var regions = Table("REGION", "SIZE", "ACCESS", "MAPPABLE")
    for index in 0..<info.regions {
      let region = try opened.regionInfo(RegionIndex(rawValue: index))
      guard region.size > 0 else { continue }
      let access =
        (region.flags.contains(.read) ? "r" : "-") + (region.flags.contains(.write) ? "w" : "-")
      let areas = region.mappable.map { "0x\(hex($0.lowerBound))-0x\(hex($0.upperBound - 1))" }
      regions.add(
        "\(RegionIndex(rawValue: index))", "0x\(hex(region.size))", access,
        areas.isEmpty ? "-" : areas.joined(separator: ", "))
    }
    print(regions.text)
    print()
    var interrupts = Table("INTERRUPT", "COUNT")
    for index in 0..<info.interrupts {
      let kind = InterruptKind(rawValue: index)
      let count = try opened.interruptInfo(kind).count
      if count > 0 { interrupts.add("\(kind)", "\(count)") }
    }
    print(interrupts.text)
  }
}
