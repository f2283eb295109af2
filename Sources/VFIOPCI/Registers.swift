/// What a register may be a property of: an integer without a sign, or a set of its bits.
///
/// A client's bytes are stored as they come, so every bit pattern must be a value of the type:
/// conform nothing but option sets that have no further property.
public protocol RegisterValue: BitwiseCopyable, Sendable {
  var bits: UInt64 { get }
  init(bits: UInt64)
}

extension RegisterValue where Self: FixedWidthInteger & UnsignedInteger {
  public var bits: UInt64 { UInt64(truncatingIfNeeded: self) }
  public init(bits: UInt64) { self.init(truncatingIfNeeded: bits) }
}

extension RegisterValue where Self: OptionSet, RawValue: FixedWidthInteger & UnsignedInteger {
  public var bits: UInt64 { UInt64(truncatingIfNeeded: rawValue) }
  public init(bits: UInt64) { self.init(rawValue: RawValue(truncatingIfNeeded: bits)) }
}

extension UInt8: RegisterValue {}
extension UInt16: RegisterValue {}
extension UInt32: RegisterValue {}
extension UInt64: RegisterValue {}

/// Which accesses reach the registers of a BAR. Others read as all ones and write nothing.
public enum RegisterAccess: Sendable {
  /// Any: each byte belongs to the register that holds it, and one access may span several.
  case bytes
  /// Four or eight bytes that begin where a register does and aren't longer than it. Four bytes
  /// written to a register of eight are extended with zeros.
  case words
}

/// A register that holds a property of the device.
public struct Register<Device: PCIDevice>: Sendable {
  var row: RegisterRow

  /// Reads give the stored property `path`. Writes change its `writable` bits (all by default),
  /// clear the `clearable` bits that are written as one, and then run `effect` under the device's
  /// lock, where it must not wait.
  public init<Value: RegisterValue>(
    _ offset: UInt64, _ path: WritableKeyPath<Device, Value>, writable: Value? = nil,
    clearable: Value? = nil, effect: (@Sendable (inout Device, inout Bus) -> Void)? = nil
  ) {
    row = RegisterRow(offset, path)
    row.writable = writable?.bits ?? ~0
    row.clearable = clearable?.bits ?? 0
    if let effect {
      row.effect = { cell, _, bus in cell.update(Device.self) { effect(&$0, &bus) } }
    }
  }

  /// Ignores writes while `condition` holds.
  public func frozen(while condition: @escaping @Sendable (borrowing Device) -> Bool) -> Register {
    var frozen = self
    frozen.row.isFrozen = { cell in cell.update(Device.self) { condition($0) } }
    return frozen
  }
}

/// A register of four bytes that always reads the same and ignores writes.
public struct Constant: Sendable {
  var row: RegisterRow

  public init(_ offset: UInt64, _ value: UInt32) {
    row = RegisterRow(offset: offset, width: 4, source: .constant(UInt64(value)))
  }
}

/// A register that acts on what is written, and stores nothing by itself.
public struct Doorbell<Device: PCIDevice>: Sendable {
  var row: RegisterRow

  /// Reads as all ones. Writes run `action` under the device's lock, where it must not wait.
  public init<Value: RegisterValue>(
    _ offset: UInt64, action: @escaping @Sendable (inout Device, Value, inout Bus) -> Void
  ) {
    row = RegisterRow(offset: offset, width: MemoryLayout<Value>.size, source: .none)
    row.effect = { cell, value, bus in
      cell.update(Device.self) { action(&$0, Value(bits: value), &bus) }
    }
  }

  /// Reads as the stored property `path`.
  public init<Value: RegisterValue>(
    _ offset: UInt64, _ path: WritableKeyPath<Device, Value>,
    action: @escaping @Sendable (inout Device, Value, inout Bus) -> Void
  ) {
    self.init(offset, action: action)
    row.source = RegisterRow(offset, path).source
  }

  /// Lets a client, or KVM for it, ring by signalling an eventfd, whatever is written: `action` gets 0.
  /// Signals that come faster than the device takes them ring once.
  public func ioeventfd() -> Doorbell {
    var row = row
    row.ioEvents = [nil]
    return Doorbell(row: row)
  }

  /// Lets a client ring with each of `values` by an eventfd of its own; other values still come by message.
  public func ioeventfd(_ values: some Sequence<UInt64>) -> Doorbell {
    var row = row
    row.ioEvents = values.map { $0 }
    return Doorbell(row: row)
  }

  private init(row: RegisterRow) { self.row = row }
}

/// Collects the rows of a register table.
@resultBuilder public enum RegisterRows<Device: PCIDevice> {
  public static func buildExpression(_ register: Register<Device>) -> RegisterRow { register.row }
  public static func buildExpression(_ constant: Constant) -> RegisterRow { constant.row }
  public static func buildExpression(_ doorbell: Doorbell<Device>) -> RegisterRow { doorbell.row }
  public static func buildBlock(_ rows: RegisterRow...) -> [RegisterRow] { rows }
}

/// A row of a register table without its device's type.
public struct RegisterRow: Sendable {
  enum Source: Sendable {
    case none
    case constant(UInt64)
    /// A stored property at a byte offset in the device's state.
    case field(Int)
    case notStored
  }
  let offset: UInt64
  let width: Int
  var source: Source
  /// Bits that a write changes in the field, and bits that a written one clears.
  var writable: UInt64 = 0
  var clearable: UInt64 = 0
  /// The values for which an eventfd may stand; nil stands for any.
  var ioEvents: [UInt64?] = []
  var isFrozen: (@Sendable (Cell) -> Bool)?
  var effect: (@Sendable (Cell, UInt64, inout Bus) -> Void)?

  init(offset: UInt64, width: Int, source: Source) {
    self.offset = offset
    self.width = width
    self.source = source
  }

  init<Device, Value: RegisterValue>(_ offset: UInt64, _ path: WritableKeyPath<Device, Value>) {
    let field = MemoryLayout<Device>.offset(of: path)
    self.init(
      offset: offset, width: MemoryLayout<Value>.size,
      source: field.map { .field($0) } ?? .notStored)
  }

  func read(_ cell: Cell) -> UInt64 {
    switch source {
    case .none, .notStored: ~0
    case .constant(let value): value
    case .field(let field): cell.load(field, width: width)
    }
  }

  /// Writes the bits of `value` that `enabled` names.
  func write(_ value: UInt64, enabled: UInt64, _ cell: Cell, _ bus: inout Bus) {
    if let isFrozen, isFrozen(cell) { return }
    if case .field(let field) = source, writable | clearable != 0 {
      let old = cell.load(field, width: width)
      let written = writable & enabled
      cell.store(
        ((old & ~written) | (value & written)) & ~(value & clearable & enabled), field, width: width
      )
    }
    effect?(cell, value, &bus)
  }
}
