/// A part of a device's state on its way to another server.
///
/// The state is a stream of records: 16 bytes that say what it is, then its content. Integers are
/// little-endian, and nothing depends on how Swift lays out a device's value.
///
///     u16 kind, u16 region, u32 length of the content, u64 offset
///
/// The stream begins, and what is read in STOP_COPY begins again, with 16 bytes that say whose state it is:
///
///     u64 "VFIOSTAT", u32 version, u16 vendor, u16 device
///
/// Memory may come several times, the last counts. All else comes once, after the device has stopped,
/// and the end is a record too. A change of the format is a new version, and another version is refused.
struct StateRecord: Equatable {
  static let version: UInt32 = 1
  static let headerSize = 16

  enum Kind: UInt16 {
    /// Bytes of a BAR's memory.
    case memory = 1
    /// A register, by its offset in a BAR.
    case register = 2
    /// One of the model's `saved` properties, by its number.
    case property = 3
    /// Configuration space.
    case config = 4
    /// The MSI-X table and pending bits.
    case vectors = 5
    /// The level of INTx, 0 or 1.
    case intx = 6
    case end = 7
  }
  var kind: Kind
  var region = 0
  var length: Int
  var offset: UInt64 = 0

  var header: [UInt8] {
    littleEndian(kind.rawValue) + littleEndian(UInt16(region)) + littleEndian(UInt32(length))
      + littleEndian(offset)
  }

  static func begin(_ identity: PCIIdentity) -> [UInt8] {
    Array("VFIOSTAT".utf8) + littleEndian(version) + littleEndian(identity.vendor)
      + littleEndian(identity.device)
  }
}

extension StateRecord {
  /// Nil for a kind that isn't known.
  init?(header: [UInt8]) {
    func integer(_ range: Range<Int>) -> UInt64 {
      header[range].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }
    guard header.count == Self.headerSize,
      let kind = Kind(rawValue: UInt16(truncatingIfNeeded: integer(0..<2)))
    else { return nil }
    self.init(
      kind: kind, region: Int(integer(2..<4)), length: Int(integer(4..<8)),
      offset: integer(8..<16))
  }
}

func littleEndian<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
  (0..<Value.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
}

/// A register or a property of a device that is saved, without the device's type.
struct SavedPart: Sendable {
  var kind: StateRecord.Kind
  var region = 0
  var offset: UInt64
  let load: @Sendable (Cell) -> [UInt8]
  /// The bytes are as many as `load` gives.
  let store: @Sendable (Cell, [UInt8]) -> Void
}

/// A stored property that belongs to a device's state though no register holds it.
public struct Saved<Device: PCIDevice>: Sendable {
  let part: SavedPart

  public init<Value: RegisterValue>(_ path: WritableKeyPath<Device, Value> & Sendable) {
    part = SavedPart(kind: .property, offset: 0) { cell in
      let bits = cell.update(Device.self) { $0[keyPath: path].bits }
      return Array(littleEndian(bits).prefix(MemoryLayout<Value>.size))
    } store: { cell, bytes in
      let bits = bytes.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
      cell.update(Device.self) { $0[keyPath: path] = Value(bits: bits) }
    }
  }

  /// Bytes, whose number must not change while the device runs.
  public init(_ path: WritableKeyPath<Device, [UInt8]> & Sendable) {
    part = SavedPart(kind: .property, offset: 0) { cell in
      cell.update(Device.self) { $0[keyPath: path] }
    } store: { cell, bytes in
      cell.update(Device.self) { $0[keyPath: path] = bytes }
    }
  }
}
