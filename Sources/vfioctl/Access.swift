import LinuxIO
import VFIOClient

extension VFIO {
  /// Connects to a device's own socket, which leaves the device as its last client left it. What is in
  /// the way is one sentence.
  func connect(to device: String) throws -> Device {
    let group = try group(of: device)
    guard group.hasIOMMU else {
      throw Failure(
        "\(device) has no IOMMU, and so no socket of its own: open it through its group")
    }
    guard let socket = group.devices.first(where: { $0.address == device })?.socket else {
      throw Failure("\(device) is not bound to vfio-pci: see vfioctl ls")
    }
    guard group.isViable else { throw Failure("group \(group.id) is not viable: see vfioctl ls") }
    do throws(VFIOError) {
      return try Device.connect(to: socket)
    } catch {
      switch error.errno {
      case .resourceBusy:
        let users = try self.group(of: device).users.map(processName)
        throw Failure(
          "\(device) is in use"
            + (users.isEmpty ? "" : " by \(users.joined(separator: ", "))")
            + ", which has group \(group.id)")
      case .permissionDenied:
        throw Failure("\(device): the owner and mode of group \(group.id) don't let you in")
      default: throw error
      }
    }
  }
}

/// A process, by its number and name.
func processName(_ number: Int32) -> String {
  guard let name = try? readFile("/proc/\(number)/comm", limit: 256) else { return "\(number)" }
  return "\(number) (\(String(decoding: name.dropLast(), as: UTF8.self)))"
}
