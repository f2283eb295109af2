public import JSON
import LinuxIO
import SystemPackage

/// The groups and devices that a server has.
public struct Topology: Sendable, Equatable {
  public struct Group: Sendable, Equatable {
    /// The name under `/dev/vfio`.
    public var id: UInt32
    /// The uid of the user that may open it.
    public var owner: UInt32
    /// Its permissions in octal digits, such as `0600`.
    public var mode: String
    /// False for devices that no IOMMU stands in front of: only an administrator may open them.
    public var hasIOMMU: Bool
    public var isViable: Bool
    public var isContainerSet: Bool
    /// The processes that have it open, or one of its device sockets.
    public var users: [ProcessID]
    public var devices: [Device]
  }

  public struct Device: Sendable, Equatable {
    /// Its PCI address.
    public var address: String
    /// What emulates it; nil for one that is there by name only.
    public var model: String?
    /// What it is bound to.
    public var driver: String?
    /// The path of its vfio-user socket, if it has one.
    public var socket: String?
    /// Transfers of its DMA that met a fault, since it was added.
    public var faults: UInt64
  }

  public var groups: [Group]

  init(_ document: JSONReader) throws(JSONError) {
    groups = []
    for group in try document["groups"].elements() {
      var devices: [Device] = []
      for device in try group["devices"].elements() {
        devices.append(
          Device(
            address: try device["address"].string(), model: try device["model"].optionalString(),
            driver: try device["driver"].optionalString(),
            socket: try device["socket"].optionalString(),
            faults: try device["faults"].integer(in: 0...UInt64.max)))
      }
      let users = try group["users"].elements().map { user throws(JSONError) in
        try user.integer(in: 0...ProcessID.max)
      }
      groups.append(
        Group(
          id: try group["id"].integer(in: 0...UInt32.max),
          owner: try group["owner"].integer(in: 0...UInt32.max),
          mode: try group["mode"].string(),
          hasIOMMU: try group["iommu"].optionalString() != "none",
          isViable: try group["viable"].bool(),
          isContainerSet: try group["container_set"].bool(), users: users, devices: devices))
    }
  }
}

extension JSONReader {
  fileprivate func optionalString() throws(JSONError) -> String? {
    isNull || !exists ? nil : try string()
  }
}

extension VFIO {
  /// The groups and devices that the server has.
  public func topology() throws(VFIOError) -> Topology {
    let document = try topologyDocument()
    return try naming(Self.topologyOperation) { () throws(Errno) in
      do {
        return try Topology(JSONReader(document))
      } catch {
        throw .protocolError
      }
    }
  }

  private static let topologyOperation = "get the topology"

  /// The same as the JSON that the server sent, with whatever else it says
  /// (`protocol/topology.schema.json`).
  public func topologyDocument() throws(VFIOError) -> JSONValue {
    var size: UInt32 = 4096
    while true {
      let reply = try connection.call(.getTopology, Self.topologyOperation) { output in
        output.append(size)
        output.append(UInt32(0))  // flags
      } decode: {
        $0
      }
      let document = try naming(Self.topologyOperation) { () throws(Errno) -> JSONValue? in
        let needed = try reply.uint32(at: 0)
        if needed > size {
          size = needed
          return nil
        }
        try reply.require(8)
        return try reading(reply.bytes[8...]) { reader throws(JSONError) in reader.value }
      }
      if let document { return document }
    }
  }
}
