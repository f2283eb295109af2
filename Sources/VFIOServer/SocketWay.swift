import LinuxIO
import Locks
import SystemPackage
import VFIOCore

/// The whole way that a connection to `devices/NAME.sock` goes by itself at VERSION: container, group,
/// type1v2, device.
struct SocketWay: Sendable {
  let group: UInt32
  let device: String
  /// The process that connected.
  let process: ProcessID

  /// Opens the device, whose client's memory by message is `messages`.
  func open(_ service: Service, _ messages: MessageMemory) throws(Errno) -> OpenDevice {
    try service.socketGroups.open(self, service, messages)
  }

  /// The device is released.
  func leave(_ service: Service) { service.socketGroups.leave(self) }
}

/// The groups that device sockets hold. A process may connect to several devices of one group, as an
/// emulator does that takes both functions of a card. Each of them has an IOMMU of its own: the emulator
/// tells each device the same maps and unmaps, but nothing keeps those of one in step with another's.
final class SocketGroups: Sendable {
  /// Guards who holds which group. The core's locks come after it.
  private let holders = Mutex<[UInt32: Holder]>([:])

  private struct Holder {
    var process: ProcessID
    var group: OpenGroup
    var devices: Set<String>
  }

  /// `VFIO_TYPE1v2_IOMMU`.
  private static let type: UInt64 = 3

  /// `EBUSY` when another client has the device or the group.
  func open(
    _ way: SocketWay, _ service: Service, _ messages: MessageMemory
  ) throws(Errno) -> OpenDevice {
    try holders.withLock { holders throws(Errno) in
      if let holder = holders[way.group] {
        // 0 is any process that this server's PID namespace doesn't have.
        guard holder.process == way.process, way.process != 0,
          !holder.devices.contains(way.device)
        else { throw .resourceBusy }
        let device = try holder.group.openDevice(
          way.device, keepingState: true, ownIOMMU: true, messages: messages)
        holders[way.group]?.devices.insert(way.device)
        return device
      }
      let group = try service.registry.openGroup(way.group)
      do throws(Errno) {
        var limits = service.limits.iommu
        limits.apertures = [0...UInt64.max]  // an emulated machine may have memory anywhere
        let container = Container(registry: service.registry, limits: limits)
        try group.setContainer(container)
        try container.setIOMMU(Self.type)
        let device = try group.openDevice(
          way.device, keepingState: true, ownIOMMU: true, messages: messages)
        holders[way.group] = Holder(process: way.process, group: group, devices: [way.device])
        return device
      } catch {
        group.release()
        throw error
      }
    }
  }

  func leave(_ way: SocketWay) {
    holders.withLock { holders in
      holders[way.group]?.devices.remove(way.device)
      guard let holder = holders[way.group], holder.devices.isEmpty else { return }
      holders[way.group] = nil
      holder.group.release()
    }
  }
}
