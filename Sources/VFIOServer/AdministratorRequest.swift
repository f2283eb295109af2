import JSON
import Logging
import SystemPackage
import VFIODevices
import VFIOWire

/// What an administrator asks for, from the JSON of ADD_DEVICE, REMOVE_DEVICE, BIND_DRIVER and
/// UNBIND_DRIVER (`protocol/administration.schema.json`).
enum AdministratorRequest: Sendable {
  case add(group: UInt32, Configuration.Device)
  case remove(String, timeout: Int)
  case bind(String, driver: String, force: Bool)
  /// `driver` is the one that must be bound; nil takes any.
  case unbind(String, driver: String?, timeout: Int)

  /// Seconds that a removal waits for the device's user, unless the request says otherwise.
  static let defaultTimeout = 10

  /// `EINVAL` for what isn't NUL-terminated JSON of the command's form; the log says why.
  init(_ command: Command, _ body: Span<UInt8>, _ logger: Logger) throws(Errno) {
    guard body.count > 0, body[body.count - 1] == 0 else { throw .invalidArgument }
    do throws(JSONError) {
      try self.init(
        command, JSONReader(try JSONValue(parsing: body.extracting(0..<body.count - 1))))
    } catch {
      logger.warning("administrator's request refused: \(error)")
      throw .invalidArgument
    }
  }

  private init(_ command: Command, _ reader: JSONReader) throws(JSONError) {
    switch command {
    case .addDevice:
      try reader.requireFields(among: ["group", "device"])
      self = .add(
        group: try reader["group"].integer(in: 0...UInt32.max),
        try readDevice(reader["device"], DeviceModels.names))
    case .removeDevice:
      try reader.requireFields(among: ["name", "timeout"])
      self = .remove(try reader["name"].string(), timeout: try Self.timeout(reader))
    case .bindDriver:
      try reader.requireFields(among: ["name", "driver", "force"])
      self = .bind(
        try reader["name"].string(), driver: try reader["driver"].string(),
        force: try reader["force"].bool(default: false))
    default:
      try reader.requireFields(among: ["name", "driver", "timeout", "force"])
      _ = try reader["force"].bool(default: false)
      self = .unbind(
        try reader["name"].string(),
        driver: reader["driver"].exists ? try reader["driver"].string() : nil,
        timeout: try Self.timeout(reader))
    }
  }

  /// At most a day.
  private static func timeout(_ reader: JSONReader) throws(JSONError) -> Int {
    try reader["timeout"].integer(in: 0...86400, default: defaultTimeout)
  }
}
