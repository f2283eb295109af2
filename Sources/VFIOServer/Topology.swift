import JSON
import LinuxIO
import SystemPackage
import VFIOCore
import VFIODevices
import VFIOPCI

/// The bus that the configuration describes: IOMMU groups, their devices, and who may open them.
struct Topology: Sendable {
  struct Group: Sendable {
    var iommuGroup: IOMMUGroup
    var access: Access
    var devices: [Device]
  }

  struct Device: Sendable {
    var bus: BusDevice
    var model: String?
    /// Present when it is bound to a VFIO driver at start.
    var operations: (any DeviceOperations)?
    /// The path of its vfio-user socket.
    var socket: String
  }

  /// Owner and mode of a group, as the file `/dev/vfio/26` has them.
  struct Access: Sendable {
    var owner: UInt32
    /// The server's, which its sockets have too.
    var group: UInt32
    var mode: UInt32

    /// Whether a user may read and write; root always may.
    func allows(_ peer: Credentials) -> Bool {
      if peer.user == 0 { return true }
      let shift: UInt32 = peer.user == owner ? 6 : peer.group == group ? 3 : 0
      return (mode >> shift) & 6 == 6
    }
  }

  let groups: [Group]

  /// Makes the devices. Throws `ConfigurationError` for an option that its model refuses.
  init(_ configuration: Configuration, file: String, directory: String) throws {
    var groups: [Group] = []
    for (groupIndex, group) in configuration.groups.enumerated() {
      let iommuGroup = IOMMUGroup(id: group.id)
      var devices: [Device] = []
      for (index, device) in group.devices.enumerated() {
        let place = "groups[\(groupIndex)].devices[\(index)]"
        devices.append(
          Device(
            bus: BusDevice(
              name: device.address, iommuGroup: iommuGroup,
              driver: device.driver == Self.vfioDriver ? nil : device.driver),
            model: device.model,
            operations: try Self.operations(of: device, file: file, place: place),
            socket: device.socket ?? "\(directory)/devices/\(device.address).sock"))
      }
      groups.append(
        Group(
          iommuGroup: iommuGroup,
          access: Access(
            owner: group.owner ?? effectiveUser(), group: effectiveGroup(), mode: group.mode),
          devices: devices))
    }
    self.groups = groups
  }

  /// The driver whose devices this server offers.
  private static let vfioDriver = "vfio-pci"

  private static func operations(
    of device: Configuration.Device, file: String, place: String
  ) throws -> (any DeviceOperations)? {
    guard device.driver == vfioDriver, let model = device.model else { return nil }
    let options = device.options.compactMapValues { value -> OptionValue? in
      switch value {
      case .bool(let flag): .bool(flag)
      case .integer(let number): UInt64(exactly: number).map { .integer($0) }
      case .string(let text): .string(text)
      default: nil
      }
    }
    do {
      return try DeviceModels.make(model, DeviceOptions(options)) { size throws(Errno) in
        try DeviceMemory(size: size)
      }
    } catch let error as OptionError {
      throw ConfigurationError(
        file: file,
        error: JSONError(place: "\(place).options.\(error.field)", problem: error.sentence))
    }
  }

  /// Puts the devices on the registry's bus and binds those of VFIO to their driver.
  func plug(into registry: Registry) throws(Errno) {
    for group in groups {
      for device in group.devices {
        try registry.plug(device.bus)
        guard let operations = device.operations else { continue }
        try registry.bind(device.bus, to: Self.vfioDriver) { () throws(Errno) in
          try registry.addDevice(device.bus, operations: operations)
        }
      }
    }
  }

  func access(ofGroup id: UInt32) -> Access? {
    groups.first { $0.iommuGroup.id == id }?.access
  }

  /// What GET_TOPOLOGY answers.
  func json(_ registry: Registry) -> JSONValue {
    let live = registry.groups
    return [
      "groups": .array(
        groups.map { group in
          let status = live.first { $0.iommuGroup === group.iommuGroup }?.status
          return [
            "id": .integer(Int128(group.iommuGroup.id)),
            "owner": .integer(Int128(group.access.owner)),
            "mode": .string("0" + String(group.access.mode, radix: 8)),
            "viable": .bool(status?.contains(.viable) ?? false),
            "container_set": .bool(status?.contains(.containerSet) ?? false),
            "devices": .array(
              group.devices.map { device in
                [
                  "address": .string(device.bus.name),
                  "model": device.model.map { .string($0) } ?? nil,
                  "driver": device.bus.driver.map { .string($0) } ?? nil,
                  "socket": device.operations == nil ? nil : .string(device.socket),
                ]
              }),
          ]
        })
    ]
  }
}
