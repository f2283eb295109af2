import JSON
import VFIOCore

/// What is wrong with a configuration file, as one sentence: file, field, value, and what is allowed.
public struct ConfigurationError: Error, Sendable, Equatable, CustomStringConvertible {
  public var file: String
  public var error: JSONError

  public var description: String { "\(file): \(error)" }
}

extension Configuration {
  /// What a configuration file may name, besides itself.
  public struct Names {
    public var models: [String]
    public var iommuDrivers: [String]
    /// The uid of a user; nil when there is none of that name.
    public var userID: (String) -> UInt32?

    public init(
      models: [String], iommuDrivers: [String], userID: @escaping (String) -> UInt32?
    ) {
      self.models = models
      self.iommuDrivers = iommuDrivers
      self.userID = userID
    }
  }

  /// The configuration that the JSON text of `file` holds. What it leaves out is as in `builtIn`;
  /// a field that isn't known is an error.
  public init(
    parsing text: Span<UInt8>, file: String, names: Names
  ) throws(ConfigurationError) {
    do {
      self = try configuration(JSONReader(JSONValue(parsing: text)), names)
    } catch {
      throw ConfigurationError(file: file, error: error)
    }
  }
}

private func configuration(
  _ reader: JSONReader, _ names: Configuration.Names
) throws(JSONError) -> Configuration {
  try reader.requireFields(among: ["groups", "iommu_drivers", "limits", "physical_memory"])
  var result = Configuration.builtIn
  if reader["groups"].exists { result.groups = try groups(reader["groups"], names) }
  if reader["iommu_drivers"].exists {
    result.iommuDrivers = try iommuDrivers(reader["iommu_drivers"], names.iommuDrivers)
  }
  if reader["limits"].exists { result.limits = try limits(reader["limits"]) }
  if reader["physical_memory"].exists {
    result.physicalMemory = try path(reader["physical_memory"])
    try requireNoIOMMUDriver(result, reader["physical_memory"])
  }
  for (group, reader) in zip(
    result.groups, try reader["groups"].exists ? reader["groups"].elements() : [])
  where !group.hasIOMMU {
    try requireNoIOMMUDriver(result, reader["iommu"])
  }
  return result
}

/// As with the kernel's `enable_unsafe_noiommu_mode`, nobody gets a device without an IOMMU by accident.
private func requireNoIOMMUDriver(
  _ configuration: Configuration, _ reader: JSONReader
) throws(JSONError) {
  guard configuration.iommuDrivers.contains("noiommu") else {
    throw reader.error(
      "\(reader.value?.text ?? "") needs \"noiommu\" among the iommu_drivers")
  }
}

private func groups(
  _ reader: JSONReader, _ names: Configuration.Names
) throws(JSONError) -> [Configuration.Group] {
  var result: [Configuration.Group] = []
  var ids = Seen<UInt32>()
  var addresses = Seen<String>()
  var sockets = Seen<String>()
  for reader in try reader.elements() {
    let group = try group(reader, names)
    try ids.insert(group.id, reader["id"])
    for (device, reader) in zip(group.devices, try reader["devices"].elements()) {
      try addresses.insert(device.address, reader["address"])
      if let socket = device.socket { try sockets.insert(socket, reader["socket"]) }
    }
    result.append(group)
  }
  return result
}

/// Values that must differ from each other, each with the path of the field that has it.
private struct Seen<Value: Hashable> {
  var paths: [Value: String] = [:]

  mutating func insert(_ value: Value, _ reader: JSONReader) throws(JSONError) {
    if let path = paths.updateValue(reader.path, forKey: value) {
      throw reader.error("\(reader.value?.text ?? "") is already used at \(path)")
    }
  }
}

private func group(
  _ reader: JSONReader, _ names: Configuration.Names
) throws(JSONError) -> Configuration.Group {
  try reader.requireFields(among: ["id", "owner", "mode", "iommu", "devices"])
  var group = Configuration.Group(
    id: try reader["id"].integer(in: 0...UInt32.max), devices: [])
  if reader["owner"].exists { group.owner = try owner(reader["owner"], names.userID) }
  if reader["mode"].exists { group.mode = try mode(reader["mode"]) }
  if reader["iommu"].exists, !reader["iommu"].isNull {
    guard case .string("none")? = reader["iommu"].value else {
      throw reader["iommu"].mismatch("\"none\", or null")
    }
    group.hasIOMMU = false
  }
  for reader in try reader["devices"].elements() {
    let device = try readDevice(reader, names.models)
    guard group.hasIOMMU || device.socket == nil else {
      throw reader["socket"].error("devices without an IOMMU have no sockets of their own")
    }
    group.devices.append(device)
  }
  return group
}

private func owner(
  _ reader: JSONReader, _ userID: (String) -> UInt32?
) throws(JSONError) -> UInt32 {
  if case .string(let name)? = reader.value {
    guard let user = userID(name) else {
      throw reader.mismatch("the name of a user of this system")
    }
    return user
  }
  // The highest uid means "nobody in particular" to the kernel.
  guard let user = try? reader.integer(in: 0...UInt32.max - 1) else {
    throw reader.mismatch("the name of a user or a uid")
  }
  return user
}

private func mode(_ reader: JSONReader) throws(JSONError) -> UInt32 {
  guard case .string(let digits)? = reader.value, digits.count == 4, digits.hasPrefix("0"),
    let mode = UInt32(digits, radix: 8)
  else { throw reader.mismatch("a string of octal permission bits such as \"0600\"") }
  return mode
}

private func apertures(_ reader: JSONReader) throws(JSONError) -> [ClosedRange<UInt64>] {
  var result: [ClosedRange<UInt64>] = []
  for reader in try reader.elements() {
    let bounds = try reader.elements()
    guard bounds.count == 2, let first = unsigned(bounds[0]), let last = unsigned(bounds[1]),
      first <= last
    else {
      throw reader.error(
        "\(reader.value?.text ?? "") is not a first and a last address such as [0, \"0xfedfffff\"]")
    }
    if let previous = result.last, first <= previous.upperBound {
      throw reader.error("\(reader.value?.text ?? "") does not begin after the range before it")
    }
    result.append(first...last)
  }
  guard !result.isEmpty else { throw reader.error("[] leaves no address to map") }
  return result
}

/// An integer of 64 bits, which may be written as a string of hexadecimal digits: `"0xffffffff"`.
private func unsigned(_ reader: JSONReader) -> UInt64? {
  switch reader.value {
  case .integer(let number): UInt64(exactly: number)
  case .string(let text) where text.hasPrefix("0x") && text.dropFirst(2).allSatisfy(\.isHexDigit):
    UInt64(text.dropFirst(2), radix: 16)
  default: nil
  }
}

/// A device of the configuration, or of an ADD_DEVICE request.
func readDevice(
  _ reader: JSONReader, _ models: [String]
) throws(JSONError) -> Configuration.Device {
  try reader.requireFields(among: ["address", "model", "driver", "options", "socket"])
  let address = try reader["address"].string()
  guard isPCIAddress(address) else {
    throw reader["address"].mismatch("a PCI address such as 0000:06:0d.0")
  }
  var device = Configuration.Device(address, driver: nil)
  if reader["model"].exists {
    device.model = try name(reader["model"], among: models)
    device.driver = "vfio-pci"
  }
  if reader["driver"].exists { device.driver = try driver(reader["driver"], model: device.model) }
  if reader["options"].exists { device.options = try options(reader["options"], device.model) }
  if reader["socket"].exists { device.socket = try socket(reader["socket"]) }
  return device
}

/// `dddd:bb:dd.f` in lower case, the device below 0x20 and the function below 8.
private func isPCIAddress(_ text: String) -> Bool {
  let form = Array("hhhh:hh:dh.f".utf8)
  return text.utf8.count == form.count
    && zip(text.utf8, form).allSatisfy { byte, kind in
      switch kind {
      case UInt8(ascii: "h"):
        UInt8(ascii: "0")...UInt8(ascii: "9") ~= byte
          || UInt8(ascii: "a")...UInt8(ascii: "f") ~= byte
      case UInt8(ascii: "d"): UInt8(ascii: "0")...UInt8(ascii: "1") ~= byte
      case UInt8(ascii: "f"): UInt8(ascii: "0")...UInt8(ascii: "7") ~= byte
      default: byte == kind
      }
    }
}

private func driver(_ reader: JSONReader, model: String?) throws(JSONError) -> String? {
  if reader.isNull { return nil }
  guard case .string(let name)? = reader.value, !name.isEmpty else {
    throw reader.mismatch("the name of a driver, or null")
  }
  guard name != "vfio-pci" || model != nil else {
    throw reader.error("\"vfio-pci\" needs a device with a model")
  }
  return name
}

private func options(
  _ reader: JSONReader, _ model: String?
) throws(JSONError) -> [String: JSONValue] {
  guard model != nil else { throw reader.error("options need a device with a model") }
  var result: [String: JSONValue] = [:]
  for (name, reader) in try reader.members() {
    switch reader.value {
    case _ where unsigned(reader) != nil:
      result[name] = unsigned(reader).map { .integer(Int128($0)) }
    case .bool, .string: result[name] = reader.value
    default:
      throw reader.mismatch("true or false, a string, or an integer between 0 and \(UInt64.max)")
    }
  }
  return result
}

private func socket(_ reader: JSONReader) throws(JSONError) -> String {
  let path = try reader.string()
  guard path.hasPrefix("/"), path.utf8.count <= 107, !path.utf8.contains(0) else {
    throw reader.mismatch("an absolute path of at most 107 bytes")
  }
  return path
}

private func path(_ reader: JSONReader) throws(JSONError) -> String {
  let path = try reader.string()
  guard path.hasPrefix("/"), !path.utf8.contains(0) else {
    throw reader.mismatch("an absolute path")
  }
  return path
}

private func iommuDrivers(
  _ reader: JSONReader, _ known: [String]
) throws(JSONError) -> [String] {
  var seen = Seen<String>()
  var result: [String] = []
  for reader in try reader.elements() {
    let driver = try name(reader, among: known)
    try seen.insert(driver, reader)
    result.append(driver)
  }
  return result
}

private func name(_ reader: JSONReader, among known: [String]) throws(JSONError) -> String {
  guard case .string(let name)? = reader.value, known.contains(name) else {
    throw reader.mismatch("one of \(known.map { "\"\($0)\"" }.joined(separator: ", "))")
  }
  return name
}

private func limits(_ reader: JSONReader) throws(JSONError) -> Configuration.Limits {
  let fields:
    [(name: String, field: WritableKeyPath<Configuration.Limits, Int>, range: ClosedRange<Int>)] =
      [
        ("connections", \.connections, 1...65536),
        ("message_descriptors", \.messageDescriptors, 1...253),
        ("undelivered_descriptors", \.undeliveredDescriptors, 1...4096),
        ("max_data_xfer_size", \.maxDataTransferSize, 4096...(64 << 20)),
        ("mappings", \.mappings, 1...(16 << 20)),
        ("dma_timeout", \.dmaTimeout, 1...3600),
        ("queued_replies", \.queuedReplies, 64 << 10...1 << 30),
      ]
  try reader.requireFields(among: fields.map(\.name) + ["locked_memory", "apertures"])
  var limits = Configuration.Limits()
  for (name, field, range) in fields {
    limits[keyPath: field] = try reader[name].integer(in: range, default: limits[keyPath: field])
  }
  if reader["locked_memory"].exists {
    limits.lockedMemory = try reader["locked_memory"].integer(in: 4096...UInt64.max)
  }
  if reader["apertures"].exists { limits.apertures = try apertures(reader["apertures"]) }
  guard limits.queuedReplies >= limits.maxDataTransferSize else {
    throw reader["queued_replies"].error(
      "\(limits.queuedReplies) bytes don't hold a reply of max_data_xfer_size, \(limits.maxDataTransferSize)"
    )
  }
  return limits
}
