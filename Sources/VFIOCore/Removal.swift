/// A device's way back to its driver, which may have to wait for the device's users.
public final class Removal: Sendable {
  let device: BusDevice
  let group: Group
  let completion: @Sendable (any DeviceOperations) -> Void

  init(
    of device: BusDevice, in group: Group,
    completion: @escaping @Sendable (any DeviceOperations) -> Void
  ) {
    self.device = device
    self.group = group
    self.completion = completion
  }

  /// The administrator has waited long enough. True when the device is as before, and the completion
  /// will never be called; false when the device has gone, or the removal was cancelled before.
  public func cancel() -> Bool {
    guard group.cancel(self) else { return false }
    device.endChange(bound: true)
    return true
  }
}
