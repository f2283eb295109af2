import LinuxIO
import SystemPackage
import VFIOWire

/// The root socket: what the directory `/dev/vfio` is to the kernel's clients.
public final class VFIO: Handle {
  public let connection: Connection

  private init(_ connection: Connection) { self.connection = connection }

  /// Connects to the server of `directory`, by its socket `vfio.sock`.
  ///
  /// `ENOENT` or `ECONNREFUSED` when no server is there, `ECONNRESET` when it has too many clients.
  public static func connect(directory: String) throws(VFIOError) -> VFIO {
    let connection = try Connection.open("\(directory)/vfio.sock")
    _ = try Version.negotiate(connection, directory)
    return VFIO(connection)
  }

  /// `open("/dev/vfio/vfio")`: a new container, empty.
  public func openContainer() throws(VFIOError) -> Container {
    Container(
      try connection.call(.openContainer, "open a container") { reply throws(Errno) in
        Connection(Socket(try reply.descriptor()))
      })
  }

  /// `open("/dev/vfio/26")`. `ENODEV` when there is no such group, `EBUSY` while it is open elsewhere,
  /// `EACCES` when you are neither its owner nor let in by its mode.
  public func openGroup(_ id: UInt32) throws(VFIOError) -> Group {
    Group(
      try connection.call(.openGroup, "open group \(id)") { output in
        output.append(id)
      } decode: { reply throws(Errno) in
        Connection(Socket(try reply.descriptor()))
      }, id: id)
  }

  /// Holds a group in its container, as KVM does: `vfio_group_get_external_user`.
  ///
  /// `EINVAL` unless the group has a container with an IOMMU, and is viable.
  public func externalUser(of group: Group) throws(VFIOError) -> ExternalUser {
    let sentence = "hold group \(group.id)"
    let socket = try naming(sentence) { () throws(Errno) in try group.connection.socket() }
    return try connection.call(.getExternalUser, sentence, with: [socket.descriptor]) {
      reply throws(Errno) in
      ExternalUser(Connection(Socket(try reply.descriptor())), groupID: try reply.uint32(at: 0))
    }
  }
}

extension Connection {
  static func open(_ path: String) throws(VFIOError) -> Connection {
    try naming("connect to \(path)") { () throws(Errno) in
      Connection(try Socket.connect(to: path))
    }
  }
}

/// A token that keeps a group in its container, whatever else closes: an external user.
public final class ExternalUser: Handle {
  public let connection: Connection
  /// The number of the group's IOMMU group (`vfio_external_user_iommu_id`).
  public let groupID: UInt32

  init(_ connection: Connection, groupID: UInt32) {
    self.connection = connection
    self.groupID = groupID
  }

  /// `vfio_external_check_extension`: positive when the group's container has it.
  public func checkExtension(_ type: IOMMUType) throws(VFIOError) -> Int64 {
    try connection.call(.tokenCheckExtension, "check extension \(type.rawValue)") { output in
      output.append(type.rawValue)
    } decode: { reply throws(Errno) in
      try reply.result()
    }
  }
}
