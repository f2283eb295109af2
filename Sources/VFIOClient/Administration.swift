import JSON
import SystemPackage
import VFIOWire

/// What the administrator, the server's own user or root, may ask for; `EACCES` or `EPERM` for others.
extension VFIO {
  /// Adds a device, described by a JSON object as the server's configuration has them.
  public func addDevice(_ json: String) throws(VFIOError) {
    try administer(.addDevice, "add a device", json)
  }

  /// Takes a device from its user and off its group: asks the user to let go, by the device's request
  /// interrupt, and waits until the last descriptor is closed.
  ///
  /// `ENODEV` when there is no such device. `ETIMEDOUT` after `timeout`, in whole seconds;
  /// the device is then as before.
  public func removeDevice(
    _ name: String, timeout: Duration? = nil
  ) throws(VFIOError) {
    var members = [JSONMember("name", .string(name))]
    if let timeout {
      let (seconds, rest) = timeout.components
      members.append(JSONMember("timeout", .integer(Int128(seconds) + (rest > 0 ? 1 : 0))))
    }
    try administer(.removeDevice, "remove device \(name)", JSONValue.object(members).text)
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

  /// Unbinds a device from its driver.
  public func unbindDriver(_ driver: String, from name: String) throws(VFIOError) {
    let json: JSONValue = ["name": .string(name), "driver": .string(driver)]
    try administer(.unbindDriver, "unbind \(name) from driver \(driver)", json.text)
  }

  private func administer(
    _ command: Command, _ operation: String, _ json: String
  ) throws(VFIOError) {
    try connection.call(command, operation) { $0.append(Array(json.utf8) + [0]) }
  }
}
