public import JSON
import SystemPackage
import VFIOWire

/// What the administrator, the server's own user or root, may ask for; `EACCES` or `EPERM` for others.
extension VFIO {
  /// Adds a device, described as the server's configuration has them, to a group, which is made if it
  /// isn't there. `EBUSY` when there is a device of that address, `EINVAL` for a device that cannot be.
  public func addDevice(_ device: JSONValue, toGroup id: UInt32) throws(VFIOError) {
    let request: JSONValue = ["group": .integer(Int128(id)), "device": device]
    try administer(.addDevice, "add a device to group \(id)", request.text)
  }

  /// Takes a device from its user and off its group: asks the user to let go, by the device's request
  /// interrupt, and waits until the last descriptor is closed.
  ///
  /// `ENODEV` when there is no such device. `ETIMEDOUT` after `timeout`, in whole seconds;
  /// the device is then as before.
  public func removeDevice(
    _ name: String, timeout: Duration? = nil
  ) throws(VFIOError) {
    try administer(
      .removeDevice, "remove device \(name)",
      JSONValue.object([JSONMember("name", .string(name))] + members(timeout)).text)
  }

  private func members(_ timeout: Duration?) -> [JSONMember] {
    guard let (seconds, rest) = timeout?.components else { return [] }
    return [JSONMember("timeout", .integer(Int128(seconds) + (rest > 0 ? 1 : 0)))]
  }

  /// Binds a device to a driver. `EBUSY` for a driver that isn't VFIO's while the device's group is in use;
  /// with `force` it is done, and the group can be used no more.
  public func bindDriver(
    _ driver: String, to name: String, force: Bool = false
  ) throws(VFIOError) {
    var members = [JSONMember("name", .string(name)), JSONMember("driver", .string(driver))]
    if force { members.append(JSONMember("force", true)) }
    try administer(
      .bindDriver, "bind \(name) to driver \(driver)", JSONValue.object(members).text)
  }

  /// Unbinds a device from its driver, and waits for its user as `removeDevice` does if that is VFIO's.
  /// `EINVAL` when it is bound to another than `driver`, if one is given.
  public func unbindDriver(
    _ driver: String? = nil, from name: String, timeout: Duration? = nil
  ) throws(VFIOError) {
    var request = [JSONMember("name", .string(name))] + members(timeout)
    if let driver { request.append(JSONMember("driver", .string(driver))) }
    try administer(.unbindDriver, "unbind \(name)", JSONValue.object(request).text)
  }

  private func administer(
    _ command: Command, _ operation: String, _ json: String
  ) throws(VFIOError) {
    try connection.call(command, operation) { $0.append(Array(json.utf8) + [0]) }
  }
}
