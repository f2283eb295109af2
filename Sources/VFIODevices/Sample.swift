import VFIOPCI

/// The device that libvfio-user's sample client drives (nutanix/libvfio-user, samples/client.c): a timer
/// that interrupts and then copies, and memory.
struct Sample: PCIDevice {
  static let identity = PCIIdentity(
    vendor: 0xDEAD, device: 0xBEEF, revision: 0, classCode: 0,
    subsystem: (vendor: 0xCAFE, device: 0xBABE))
  static let interrupts = Interrupts(intx: true)
  static let bars: [BAR<Sample>] = [
    .registers(0, size: 16, access: .words) {
      Register(0x00, \.due) { $0.set(&$1) }
    },
    .memory(1, size: 0x3000, mappable: 0..<0x1000, 0x2000..<0x3000),
  ]
  /// The client never turns bus mastering on.
  static let ignoresBusMastering = true
  static let saved = [Saved<Sample>(\.isSet)]

  /// When the timer is due, in seconds since 1970.
  var due: UInt64 = 0
  /// 1 until it has fired.
  var isSet: UInt8 = 0

  mutating func set(_ bus: inout Bus) {
    isSet = 1
    bus.lower()
    started(&bus)
  }

  mutating func started(_ bus: inout Bus) {
    if isSet == 1 { bus.setTimer(Int64(clamping: due)) }
  }

  mutating func timerFired(_ bus: inout Bus) {
    isSet = 0
    bus.raise()
    later(&bus) {
      Self.copy($0)
    } finish: { _, _, _ in
    }
  }

  /// Writes the letters A to D, 1 KiB each, to the second page of the client's memory directly and to the
  /// first by messages, and reads them back in halves.
  private static func copy(_ master: BusMaster) {
    // The client tells no address: its first two pages are looked for.
    let pages = (0..<1024 as Range<UInt64>).lazy.map { $0 * 4096 }.filter(master.reaches).prefix(2)
    for (page, byMessage) in zip(Array(pages), [true, false]).reversed() {
      for piece in 0..<4 as Range<UInt64> {
        let letters = [UInt8](repeating: UInt8(ascii: "A") + UInt8(piece), count: 1024)
        try? master.write(letters.span, to: page + 1024 * piece, byMessage: byMessage)
      }
      for half in 0..<2 as Range<UInt64> {
        _ = try? master.read(2048, from: page + 2048 * half, byMessage: byMessage)
      }
    }
  }
}
