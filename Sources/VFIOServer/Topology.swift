import JSON
import LinuxIO
import Locks
import SystemPackage
import VFIOCore
import VFIODevices
import VFIOPCI

/// The bus as the configuration and the administrator made it: IOMMU groups, their devices, who may
/// open them, and who does.
final class Topology: Sendable {
  struct Group: Sendable {
    var iommuGroup: IOMMUGroup
    var access: Access
    var devices: [Device] = []
    /// The processes that opened it, by connection.
    var users: [UInt64: ProcessID] = [:]
  }

  struct Device: Sendable {
    var bus: BusDevice
    var configuration: Configuration.Device
    /// The path of its vfio-user socket.
    var socket: String
    /// Serves that socket while a VFIO driver is bound.
    var listener: Listener?
    /// Where its messages can be seen, as long as it is there.
    let tracepoint = Tracepoint()
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

  /// The driver whose devices this server offers.
  static let vfioDriver = "vfio-pci"

  /// Guards itself. A leaf: nothing else is locked under it.
  private let state = Mutex<[Group]>([])

  var groups: [Group] { state.withLock { $0 } }

  func access(ofGroup id: UInt32) -> Access? {
    state.withLock { $0.first { $0.iommuGroup.id == id }?.access }
  }

  /// The device of that name, and its group.
  func find(_ name: String) -> (Group, Device)? {
    for group in groups {
      if let device = group.devices.first(where: { $0.bus.name == name }) { return (group, device) }
    }
    return nil
  }

  func tracepoint(of name: String) -> Tracepoint? { find(name)?.1.tracepoint }

  /// Adds a group without devices; the one of that number if it is there.
  func addGroup(_ id: UInt32, hasIOMMU: Bool = true, _ access: Access) -> Group {
    state.withLock { groups in
      if let group = groups.first(where: { $0.iommuGroup.id == id }) { return group }
      let group = Group(iommuGroup: IOMMUGroup(id: id, hasIOMMU: hasIOMMU), access: access)
      groups.append(group)
      return group
    }
  }

  func add(_ device: Device, toGroup id: UInt32) {
    change(id) { $0.devices.append(device) }
  }

  /// Removes a device, and its group with the last one.
  func remove(_ name: String) {
    tracepoint(of: name)?.close()
    state.withLock { groups in
      for index in groups.indices { groups[index].devices.removeAll { $0.bus.name == name } }
      groups.removeAll { $0.devices.isEmpty }
    }
  }

  /// Takes a device's listener out, or puts one in.
  func exchangeListener(of name: String, with listener: Listener?) -> Listener? {
    state.withLock { groups in
      for (index, group) in groups.enumerated() {
        guard let place = group.devices.firstIndex(where: { $0.bus.name == name }) else { continue }
        defer { groups[index].devices[place].listener = listener }
        return groups[index].devices[place].listener
      }
      return nil
    }
  }

  func entered(group id: UInt32, process: ProcessID, connection: UInt64) {
    change(id) { $0.users[connection] = process }
  }

  func left(group id: UInt32, connection: UInt64) {
    change(id) { $0.users[connection] = nil }
  }

  private func change(_ id: UInt32, _ body: (inout Group) -> Void) {
    state.withLock { groups in
      if let index = groups.firstIndex(where: { $0.iommuGroup.id == id }) { body(&groups[index]) }
    }
  }

  /// What GET_TOPOLOGY answers.
  func json(_ registry: Registry) -> JSONValue {
    let live = registry.groups
    return ["groups": .array(groups.map { json($0, live) })]
  }

  private func json(_ group: Group, _ live: [VFIOCore.Group]) -> JSONValue {
    let status = live.first { $0.iommuGroup === group.iommuGroup }?.status
    return [
      "id": .integer(Int128(group.iommuGroup.id)),
      "owner": .integer(Int128(group.access.owner)),
      "mode": .string("0" + String(group.access.mode, radix: 8)),
      "iommu": group.iommuGroup.hasIOMMU ? nil : "none",
      "viable": .bool(status?.contains(.viable) ?? false),
      "container_set": .bool(status?.contains(.containerSet) ?? false),
      "users": .array(Set(group.users.values).sorted().map { .integer(Int128($0)) }),
      "devices": .array(
        group.devices.map { device in
          [
            "address": .string(device.bus.name),
            "model": device.configuration.model.map { .string($0) } ?? nil,
            "driver": device.bus.driver.map { .string($0) } ?? nil,
            "socket": device.listener == nil ? nil : .string(device.socket),
            "faults": .integer(Int128(device.bus.faults.summary.count)),
          ]
        }),
    ]
  }
}

extension Configuration.Device {
  /// Makes what emulates the device. Throws `JSONError`, whose place begins with `place`, for an option
  /// that the model refuses, and what memory for it throws.
  func makeOperations(place: String) throws -> any DeviceOperations {
    let values = options.compactMapValues { value -> OptionValue? in
      switch value {
      case .bool(let flag): .bool(flag)
      case .integer(let number): UInt64(exactly: number).map { .integer($0) }
      case .string(let text): .string(text)
      default: nil
      }
    }
    do {
      return try DeviceModels.make(model ?? "", DeviceOptions(values)) { size throws(Errno) in
        try DeviceMemory(size: size)
      }
    } catch let error as OptionError {
      throw JSONError(place: "\(place)options.\(error.field)", problem: error.sentence)
    }
  }
}
