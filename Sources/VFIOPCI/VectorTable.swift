/// The MSI-X table and the pending bits of a function, in the BAR that holds both: PCI Local Bus 3.0,
/// chapter 6.8.2.
struct VectorTable {
  private(set) var bytes: MaskedBytes
  private let count: Int
  private let table: Int
  private let pending: Int

  init(_ msix: MSIX?) {
    bytes = MaskedBytes(count: Int(msix?.size ?? 0))
    count = msix?.vectors ?? 0
    table = Int(msix?.table ?? 0)
    pending = Int(msix?.pending ?? 0)
    for vector in 0..<count {
      let place = table + 16 * vector
      bytes.define(place, UInt32(0), writable: ~3)  // address
      bytes.define(place + 4, UInt32(0), writable: ~0)
      bytes.define(place + 8, UInt32(0), writable: ~0)  // data
      bytes.define(place + 12, UInt32(1), writable: 1)  // masked
    }
  }

  func isMasked(_ vector: Int) -> Bool {
    let control: UInt8 = bytes[table + 16 * vector + 12]
    return control & 1 != 0
  }

  mutating func setMasked(_ vector: Int, _ masked: Bool) {
    bytes[table + 16 * vector + 12] = UInt32(masked ? 1 : 0)
  }

  func isPending(_ vector: Int) -> Bool {
    let byte: UInt8 = bytes[pending + vector / 8]
    return byte & 1 << (vector % 8) != 0
  }

  mutating func setPending(_ vector: Int, _ isPending: Bool) {
    let byte: UInt8 = bytes[pending + vector / 8]
    let bit = UInt8(1) << (vector % 8)
    bytes[pending + vector / 8] = isPending ? byte | bit : byte & ~bit
  }

  mutating func write(_ span: Span<UInt8>, at offset: Int) { bytes.write(span, at: offset) }

  mutating func reset() { bytes.reset() }

  /// Whether these may be the bytes at another time.
  func couldBe(_ other: [UInt8]) -> Bool {
    bytes.couldBe(other, free: count == 0 ? 0..<0 : pending..<pending + (count + 7) / 8)
  }

  mutating func restore(_ other: [UInt8]) { bytes.restore(other) }
}
