import VFIOPCI

/// Memory, interrupts and doorbells, for tests and benchmarks. `SET_IRQS` and a doorbell raise the
/// interrupts.
struct Scratch: PCIDevice {
  static let identity = PCIIdentity(
    vendor: 0x1234, device: 0x5C7A, revision: 0, classCode: 0xFF_00_00)
  static let interrupts = Interrupts(
    intx: true, msix: MSIX(vectors: 8, bar: 4, table: 0, pending: 0x800))
  static let bars: [BAR<Scratch>] = [
    .memory(0, size: 1 << 20),
    .registers(1, size: 4096) {
      Register(0x00, \.rings)
      Doorbell(0x04) { (scratch, _: UInt32, _) in scratch.rings &+= 1 }.ioeventfd()
      Doorbell(0x08) { (_, vector: UInt32, bus) in bus.raise(Int(vector)) }.ioeventfd(0..<8)
      Doorbell(0x0C) { (_, _: UInt32, bus) in bus.lower() }
    },
    .memory(2, size: 2 << 20, is64Bit: true, mappable: 0x1000..<0x20_0000),
  ]

  /// How often the doorbell at 4 was rung.
  var rings: UInt32 = 0
}
