import ArgumentParser
import VFIOClient

/// A number of the command line: decimal, or hexadecimal with 0x.
struct Number: ExpressibleByArgument {
  var value: UInt64

  init?(argument: String) {
    let isHex = argument.hasPrefix("0x") || argument.hasPrefix("0X")
    let value = isHex ? UInt64(argument.dropFirst(2), radix: 16) : UInt64(argument)
    guard let value else { return nil }
    self.value = value
  }
}

/// What a user calls something, or its number.
private func number(of argument: String, in names: [String]) -> UInt32? {
  let name = argument.lowercased()
  return names.firstIndex(of: name).map(UInt32.init) ?? UInt32(name)
}

private func text(of index: UInt64, in names: [String]) -> String {
  index < names.count ? names[Int(index)] : "\(index)"
}

/// A region of the command line: bar0 to bar5, rom, config, vga, or its index.
struct RegionName: ExpressibleByArgument {
  static let names = ["bar0", "bar1", "bar2", "bar3", "bar4", "bar5", "rom", "config", "vga"]
  static let completion = CompletionKind.list(names)

  var index: RegionIndex

  init?(argument: String) {
    guard let index = number(of: argument, in: Self.names) else { return nil }
    self.index = RegionIndex(rawValue: index)
  }

  /// The name of a region, its index where it has none.
  static func name(of index: UInt64) -> String { text(of: index, in: names) }
}

/// A kind of interrupt of the command line.
struct InterruptName: ExpressibleByArgument {
  static let names = ["intx", "msi", "msix", "err", "req"]
  static let completion = CompletionKind.list(names)

  var kind: InterruptKind

  init?(argument: String) {
    guard let index = number(of: argument, in: Self.names) else { return nil }
    kind = InterruptKind(rawValue: index)
  }

  /// The name of a kind, its index where it has none.
  static func name(of index: UInt64) -> String { text(of: index, in: names) }
}

/// A number in hexadecimal digits, at least so many.
func hex(_ number: some BinaryInteger, _ digits: Int = 1) -> String {
  let text = String(number, radix: 16)
  return String(repeating: "0", count: max(0, digits - text.count)) + text
}

/// Bytes in hexadecimal digits, one after another.
func hex(_ bytes: some Sequence<UInt8>) -> String { bytes.map { hex($0, 2) }.joined() }

/// Bytes as a dump: 16 on a line, after the offset of the first.
func dump(_ bytes: [UInt8], from offset: UInt64 = 0) -> String {
  stride(from: 0, to: bytes.count, by: 16).map { start in
    let line = bytes[start..<min(start + 16, bytes.count)]
    let digits = max(2, hex(offset &+ UInt64(bytes.count - 1)).count)
    return hex(offset &+ UInt64(start), digits) + ": "
      + line.map { hex($0, 2) }.joined(separator: " ")
  }.joined(separator: "\n")
}

/// A size in the largest unit that divides it, such as 1M.
func size(_ bytes: UInt64) -> String {
  for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] as [(UInt64, String)] {
    if bytes >> shift > 0, bytes & (1 << shift - 1) == 0 { return "\(bytes >> shift)\(unit)" }
  }
  return "\(bytes)"
}

/// The names of the bits that are set; those without a name as one number.
func names(of flags: UInt64, _ known: [(UInt64, String)]) -> [String] {
  var (left, names) = (flags, [String]())
  for (bit, name) in known where flags & bit != 0 {
    names.append(name)
    left &= ~bit
  }
  return left == 0 ? names : names + ["0x\(hex(left))"]
}
