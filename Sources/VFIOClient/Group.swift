import LinuxIO
import SystemPackage
import VFIOWire

/// `struct vfio_group_status.flags`.
public struct GroupStatus: OptionSet, Sendable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// No device of the group is in use by another driver.
  public static let viable = GroupStatus(rawValue: 1)
  public static let containerSet = GroupStatus(rawValue: 2)
}

/// Devices that the IOMMU can't tell apart, and that are therefore used together.
public final class Group: Handle {
  public let connection: Connection
  /// Its name under `/dev/vfio`.
  public let id: UInt32

  init(_ connection: Connection, id: UInt32) {
    self.connection = connection
    self.id = id
  }

  /// The group behind a descriptor that another process passed on. Takes the descriptor over.
  public convenience init(adopting descriptor: FileDescriptor, id: UInt32) {
    self.init(Connection(Socket(Descriptor(owning: descriptor.rawValue))), id: id)
  }

  /// `VFIO_GROUP_GET_STATUS`.
  public func status() throws(VFIOError) -> GroupStatus {
    try connection.call(.groupGetStatus, "get the status of group \(id)") { output in
      output.append(UInt32(8))  // argsz
      output.append(UInt32(0))
    } decode: { reply throws(Errno) in
      GroupStatus(rawValue: try reply.structure().uint32(at: 4))
    }
  }

  /// `VFIO_GROUP_SET_CONTAINER`. `EINVAL` when one is set.
  public func setContainer(_ container: Container) throws(VFIOError) {
    let sentence = "put group \(id) into a container"
    let socket = try naming(sentence) { () throws(Errno) in try container.connection.socket() }
    try connection.call(.groupSetContainer, sentence, with: [socket.descriptor])
  }

  /// `VFIO_GROUP_UNSET_CONTAINER`. `EINVAL` when none is set, `EBUSY` while a device is open.
  public func unsetContainer() throws(VFIOError) {
    try connection.call(.groupUnsetContainer, "take group \(id) out of its container")
  }

  /// `VFIO_GROUP_GET_DEVICE_FD`. `EINVAL` unless the group has a container with an IOMMU and is viable,
  /// `ENODEV` when it has no such device.
  public func openDevice(_ name: String) throws(VFIOError) -> Device {
    let connection = try connection.call(
      .groupGetDeviceFD, "open device \(name) of group \(id)"
    ) { output in
      output.append(Array(name.utf8) + [0])
    } decode: { reply throws(Errno) in
      Connection(Socket(try reply.descriptor()))
    }
    return try Device(connection, name: name)
  }
}
