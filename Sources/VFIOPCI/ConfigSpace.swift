/// The 256 bytes of a function's configuration space: PCI Local Bus 3.0, chapter 6, header type 0.
struct ConfigSpace {
  static let size = 256
  private static let commandOffset = 0x04
  private static let statusOffset = 0x06
  private static let firstCapability = 0x40

  private(set) var bytes = MaskedBytes(count: size)
  /// Where MSI's message control is.
  private var messageControl: Int?
  /// Where the mask bits of several MSI vectors are, with their pending bits behind them; a single one has
  /// none.
  private var messageMask: Int?
  /// Where MSI-X's message control is.
  private var vectorControl: Int?

  init(_ identity: PCIIdentity, _ interrupts: Interrupts, _ bars: [BARTable]) {
    bytes.define(0x00, identity.vendor)
    bytes.define(0x02, identity.device)
    bytes.define(Self.commandOffset, Command.decoding.rawValue, writable: Command.all.rawValue)
    // The bit of the capability list; those of parity, system errors and aborts clear by writing one.
    let hasCapabilities = interrupts.msi > 0 || interrupts.msix != nil
    bytes.define(Self.statusOffset, UInt16(hasCapabilities ? 0x10 : 0), clearable: 0xF900)
    bytes.define(0x08, identity.classCode << 8 | UInt32(identity.revision))
    bytes.define(0x0C, UInt8(0), writable: 0xFF)  // cache line size
    bytes.define(0x0D, UInt8(0), writable: 0xFF)  // latency timer
    bytes.define(0x2C, identity.subsystem.vendor)
    bytes.define(0x2E, identity.subsystem.device)
    bytes.define(0x3C, UInt8(0), writable: 0xFF)  // interrupt line
    bytes.define(0x3D, UInt8(interrupts.intx ? 1 : 0))  // interrupt pin A
    for bar in bars { define(bar) }
    defineCapabilities(interrupts)
  }

  private mutating func define(_ bar: BARTable) {
    let place = 0x10 + 4 * bar.index
    let mask = ~(bar.decodedSize - 1)
    // Reading memory has no effect, so a 64-bit BAR of it may go where bridges prefetch.
    let kind: UInt32 =
      switch (bar.is64Bit, bar.content) {
      case (true, .memory): 0b1100
      case (true, _): 0b0100
      case (false, _): 0
      }
    bytes.define(place, kind, writable: UInt32(truncatingIfNeeded: mask))
    if bar.is64Bit {
      bytes.define(place + 4, UInt32(0), writable: UInt32(truncatingIfNeeded: mask >> 32))
    }
  }

  private mutating func defineCapabilities(_ interrupts: Interrupts) {
    var link = 0x34
    var place = Self.firstCapability
    func capability(_ id: UInt8, _ length: Int, in bytes: inout MaskedBytes) -> Int {
      bytes.define(link, UInt8(place))
      bytes.define(place, id)
      link = place + 1
      defer { place += (length + 3) & ~3 }
      return place
    }
    if interrupts.msi > 0 {
      let hasMask = interrupts.msi > 1
      let msi = capability(0x05, hasMask ? 24 : 14, in: &bytes)
      messageControl = msi + 2
      let maximum = UInt16(interrupts.msi.trailingZeroBitCount) << 1
      // A 64-bit address, and masks; clients write the enable bit and the number of vectors in use.
      bytes.define(msi + 2, (hasMask ? 0x180 : 0x80) | maximum, writable: 0x71)
      bytes.define(msi + 4, UInt32(0), writable: ~3)
      bytes.define(msi + 8, UInt32(0), writable: ~0)
      bytes.define(msi + 12, UInt16(0), writable: ~0)
      if hasMask {
        messageMask = msi + 16
        bytes.define(
          msi + 16, UInt32(0),
          writable: UInt32(truncatingIfNeeded: (1 as UInt64) << interrupts.msi - 1))
        bytes.define(msi + 20, UInt32(0))
      }
    }
    if let table = interrupts.msix {
      let msix = capability(0x11, 12, in: &bytes)
      vectorControl = msix + 2
      bytes.define(msix + 2, UInt16(table.vectors - 1), writable: 0xC000)  // enable, mask all
      bytes.define(msix + 4, UInt32(table.table) | UInt32(table.bar))
      bytes.define(msix + 8, UInt32(table.pending) | UInt32(table.bar))
    }
  }

  var command: Command {
    get { Command(rawValue: bytes[Self.commandOffset]) }
    set { bytes[Self.commandOffset] = newValue.rawValue }
  }

  mutating func read(
    at offset: Int, into span: inout MutableSpan<UInt8>, _ interrupts: InterruptLines
  ) {
    show(interrupts)
    bytes.read(at: offset, into: &span)
  }

  mutating func write(
    _ span: Span<UInt8>, at offset: Int, _ interrupts: inout InterruptLines
  ) {
    show(interrupts)
    bytes.write(span, at: offset)
    limitMessages()
    interrupts.disableINTx(command.contains(.intxDisable))
    let control: UInt16 = vectorControl.map { bytes[$0] } ?? 0
    interrupts.maskMessages(
      messageMask.map { bytes[$0] } ?? interrupts.messageMask, function: control & 0x4000 != 0)
  }

  /// No more messages are in use than there are, as in the kernel.
  private mutating func limitMessages() {
    guard let messageControl else { return }
    let control: UInt16 = bytes[messageControl]
    let most = control >> 1 & 7
    bytes[messageControl] = control & ~0x70 | min(control >> 4 & 7, most) << 4
  }

  /// The interrupt bit of STATUS, and MSI's mask and pending bits.
  private mutating func show(_ interrupts: InterruptLines) {
    let status: UInt16 = bytes[Self.statusOffset]
    bytes[Self.statusOffset] = interrupts.isAsserted ? status | 0x08 : status & ~0x08
    guard let messageMask else { return }
    bytes[messageMask] = interrupts.messageMask
    bytes[messageMask + 4] = interrupts.pendingMessages
  }

  /// Everything but the interrupt bit of STATUS, which follows the device's INTx.
  func saved(_ interrupts: InterruptLines) -> [UInt8] {
    var saved = self
    saved.show(interrupts)
    saved.clearInterruptStatus()
    return saved.bytes.all
  }

  /// False when they aren't such a function's.
  func couldBe(_ other: [UInt8]) -> Bool {
    var mine = self
    mine.clearInterruptStatus()
    return mine.bytes.couldBe(other, free: messageMask.map { $0 + 4..<$0 + 8 } ?? 0..<0)
  }

  /// Takes another function's bytes, and tells `interrupts` what they say of them.
  mutating func restore(_ other: [UInt8], _ interrupts: inout InterruptLines) {
    bytes.restore(other)
    interrupts.disableINTx(command.contains(.intxDisable))
    let control: UInt16 = vectorControl.map { bytes[$0] } ?? 0
    interrupts.restoreMessages(
      mask: messageMask.map { bytes[$0] } ?? interrupts.messageMask,
      pending: messageMask.map { bytes[$0 + 4] } ?? 0, isFunctionMasked: control & 0x4000 != 0)
  }

  private mutating func clearInterruptStatus() {
    let status: UInt16 = bytes[Self.statusOffset]
    bytes[Self.statusOffset] = status & ~0x08
  }

  /// Back to the defaults, save COMMAND, which the kernel restores after a reset too.
  mutating func reset() {
    let kept = command
    bytes.reset()
    command = kept
  }
}

/// The COMMAND register of configuration space.
struct Command: OptionSet, Sendable {
  let rawValue: UInt16
  static let io = Command(rawValue: 1 << 0)
  static let memory = Command(rawValue: 1 << 1)
  static let busMaster = Command(rawValue: 1 << 2)
  static let parity = Command(rawValue: 1 << 6)
  static let systemError = Command(rawValue: 1 << 8)
  static let intxDisable = Command(rawValue: 1 << 10)

  /// As vfio-pci hands a device to its first opener.
  static let decoding: Command = [.io, .memory]
  static let all: Command = [.io, .memory, .busMaster, .parity, .systemError, .intxDisable]
}
