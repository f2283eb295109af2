import ArgumentParser
import VFIOClient

struct ListPCI: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "lspci",
    abstract: "Shows the configuration space of devices, decoded.",
    discussion: """
      All devices, or one. For the administrator also while a device is in use; others see devices that \
      nobody uses and that they may open. The device doesn't notice.
      """)

  @OptionGroup var server: ServerOptions
  @Argument(help: "The device's PCI address; all devices without.") var device: String?
  @Flag(
    name: .shortAndLong,
    help: "Also registers, BARs with their sizes, interrupts and capabilities.")
  var verbose = false
  @Flag(name: [.customShort("x"), .long], help: "Also configuration space in hexadecimal.")
  var hexdump = false

  func run() throws {
    try server.withServer { vfio in
      if let device {
        return try show(try vfio.look(at: device), of: device, in: try vfio.group(of: device))
      }
      for group in try vfio.topology().groups {
        for device in group.devices {
          guard device.socket != nil else {
            print("\(device.address) (driver \(device.driver ?? "none"))")
            continue
          }
          do {
            try show(try vfio.look(at: device.address), of: device.address, in: group)
          } catch let failure as Failure {
            print("\(device.address) (\(failure))")
          }
        }
      }
    }
  }

  private func show(
    _ description: DeviceDescription, of device: String, in group: Topology.Group
  ) throws {
    let config = ConfigSpace(bytes: description.config)
    print("\(device) \(config.identity)")
    if verbose { for line in details(config, description, device, group) { print("\t\(line)") } }
    if hexdump { print(dump(description.config)) }
    if verbose || hexdump { print() }
  }

  private func details(
    _ config: ConfigSpace, _ description: DeviceDescription, _ device: String,
    _ group: Topology.Group
  ) -> [String] {
    var lines: [String] = []
    if let subsystem = config.subsystem { lines.append("Subsystem: \(subsystem)") }
    if config.programmingInterface != 0 {
      lines.append("Programming interface: \(hex(config.programmingInterface, 2))")
    }
    let users = group.users.map(processName).joined(separator: ", ")
    let driver = group.devices.first { $0.address == device }?.driver
    lines.append("IOMMU group: \(group.id)\(users.isEmpty ? "" : ", in use by \(users)")")
    lines.append("Control: \(config.control)")
    lines.append("Status: \(config.state)")
    if let interrupt = config.interrupt { lines.append("Interrupt: \(interrupt)") }
    lines += config.bars(description.regions)
    for capability in config.capabilities {
      lines.append("Capabilities: [\(hex(capability.offset, 2))] \(capability.title)")
      lines += capability.lines.map { "\t\($0)" }
    }
    let kinds = description.interrupts.map { interrupt in
      "\(InterruptName.name(of: UInt64(interrupt.kind.rawValue))) \(interrupt.info.count)"
    }
    lines.append("VFIO interrupts: \(kinds.joined(separator: ", "))")
    lines.append("Driver: \(driver ?? "none")")
    return lines
  }
}

extension VFIO {
  /// What a device is: as the administrator sees it, else as a client of its socket does.
  func look(at device: String) throws -> DeviceDescription {
    do throws(VFIOError) {
      return try describe(device)
    } catch {
      switch error.errno {
      case .notPermitted: return try connect(to: device).describe()
      case .operationNotSupportedByDevice:
        _ = try group(of: device)
        throw Failure("\(device) is not bound to vfio-pci: see vfioctl ls")
      default: throw error
      }
    }
  }
}
