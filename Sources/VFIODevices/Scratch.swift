import VFIOPCI

/// Memory and interrupts, for tests and benchmarks. Vectors and INTx are raised by `SET_IRQS` alone.
struct Scratch: PCIDevice {
  static let identity = PCIIdentity(
    vendor: 0x1234, device: 0x5C7A, revision: 0, classCode: 0xFF_00_00)
  static let interrupts = Interrupts(
    intx: true, msix: MSIX(vectors: 8, bar: 4, table: 0, pending: 0x800))
  static let bars: [BAR<Scratch>] = [
    .memory(0, size: 1 << 20),
    .memory(2, size: 2 << 20, is64Bit: true, mappable: 0x1000..<0x20_0000),
  ]
}
