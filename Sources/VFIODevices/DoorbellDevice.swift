import VFIOPCI

/// Doorbells that may be rung by eventfd, and interrupts that they raise, for tests.
struct DoorbellDevice: PCIDevice {
  static let identity = PCIIdentity(
    vendor: 0x1234, device: 0x5C7B, revision: 0, classCode: 0xFF_00_00)
  static let interrupts = Interrupts(
    intx: true, msix: MSIX(vectors: 8, bar: 4, table: 0, pending: 0x800))
  static let bars: [BAR<DoorbellDevice>] = [
    .registers(0, size: 4096) {
      Register(0x00, \.rings)
      Doorbell(0x04) { (device, _: UInt32, _) in device.rings &+= 1 }.ioeventfd()
      Doorbell(0x08) { (_, vector: UInt32, bus) in bus.raise(Int(vector)) }.ioeventfd(0..<8)
      Doorbell(0x0C) { (_, _: UInt32, bus) in bus.lower() }
    }
  ]

  /// How often the doorbell at 4 was rung.
  var rings: UInt32 = 0
}
