/// A PCI function's model: its state as a plain value, and tables that read like its datasheet.
///
/// `PCIFunction` serves it to clients. A reset puts back the value that the function was made with.
public protocol PCIDevice: Sendable {
  static var identity: PCIIdentity { get }
  static var interrupts: Interrupts { get }
  static var bars: [BAR<Self>] { get }
  /// Whether the device reaches memory while COMMAND's bus master bit is off; no by default.
  static var ignoresBusMastering: Bool { get }
  /// What migrates with the device besides its registers and its memory; nothing by default. Further
  /// properties are added at the end.
  static var saved: [Saved<Self>] { get }

  /// The time has come that `Bus.setTimer` was told.
  mutating func timerFired(_ bus: inout Bus)
  /// The device runs again after it was stopped, here or where its state was loaded: sets its timer,
  /// which doesn't migrate.
  mutating func started(_ bus: inout Bus)
}

extension PCIDevice {
  public static var ignoresBusMastering: Bool { false }
  public static var saved: [Saved<Self>] { [] }
  public mutating func timerFired(_ bus: inout Bus) {}
  public mutating func started(_ bus: inout Bus) {}
}

/// What configuration space says about who made the device and what it is.
public struct PCIIdentity: Sendable {
  let vendor: UInt16
  let device: UInt16
  let revision: UInt8
  let classCode: UInt32
  let subsystem: (vendor: UInt16, device: UInt16)

  /// `classCode` has 24 bits: base class, subclass, programming interface. Without `subsystem` the
  /// subsystem's numbers are those of the device.
  public init(
    vendor: UInt16, device: UInt16, revision: UInt8, classCode: UInt32,
    subsystem: (vendor: UInt16, device: UInt16)? = nil
  ) {
    self.vendor = vendor
    self.device = device
    self.revision = revision
    self.classCode = classCode
    self.subsystem = subsystem ?? (vendor, device)
  }
}

/// The interrupts that a function has.
public struct Interrupts: Sendable {
  let intx: Bool
  let msi: Int
  let msix: MSIX?

  /// `intx`: whether it has pin A. `msi`: the number of MSI vectors, a power of two up to 32, or 0.
  public init(intx: Bool = false, msi: Int = 0, msix: MSIX? = nil) {
    self.intx = intx
    self.msi = msi
    self.msix = msix
  }
}

/// Where the MSI-X vectors' table and pending bits are: offsets in a BAR that holds nothing else.
public struct MSIX: Sendable {
  let vectors: Int
  let bar: Int
  let size: UInt64
  let table: UInt64
  let pending: UInt64

  public init(vectors: Int, bar: Int, size: UInt64 = 4096, table: UInt64, pending: UInt64) {
    self.vectors = vectors
    self.bar = bar
    self.size = size
    self.table = table
    self.pending = pending
  }
}

/// One base address register, and what is behind it.
public struct BAR<Device: PCIDevice>: Sendable {
  let table: BARTable

  /// `size` bytes of registers, a power of two; what the rows leave out reads as all ones.
  public static func registers(
    _ index: Int, size: UInt64, access: RegisterAccess = .bytes,
    @RegisterRows<Device> rows: () -> [RegisterRow]
  ) -> BAR {
    BAR(
      table: BARTable(
        index: index, size: size, is64Bit: false, content: .registers(rows(), access)))
  }

  /// `size` bytes of memory, in whole pages of 4096 bytes. Clients may map the parts that `mappable`
  /// names, in whole pages and ascending. A reset leaves the content alone.
  public static func memory(
    _ index: Int, size: UInt64, is64Bit: Bool = false, mappable: Range<UInt64>...
  ) -> BAR {
    BAR(
      table: BARTable(
        index: index, size: size, is64Bit: is64Bit, content: .memory(mappable: mappable)))
  }
}

/// A BAR without its device's type.
struct BARTable: Sendable {
  enum Content: Sendable {
    case registers([RegisterRow], RegisterAccess)
    case memory(mappable: [Range<UInt64>])
    case vectors
  }
  var index: Int
  var size: UInt64
  var is64Bit: Bool
  var content: Content

  /// What the BAR decodes: the next power of two.
  var decodedSize: UInt64 {
    size.nonzeroBitCount == 1 ? size : 1 << (64 - size.leadingZeroBitCount)
  }
}

/// A device's tables contradict each other or PCI; says what and where.
public struct TableError: Error, CustomStringConvertible, Equatable {
  public let description: String
  init(_ description: String) { self.description = description }
}

/// A number as datasheets write it.
func hex(_ value: some BinaryInteger) -> String { "0x" + String(value, radix: 16) }
