import Foundation
import JSON
import Testing

/// `protocol/` of this repository.
enum Facts {
  static let directory = URL(filePath: #filePath).deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent().appending(path: "protocol")
  static let all = read("protocol.json")
  static let setups = read("vectors/setups.json")["setups"] ?? .null
  static let headerFields = all["header"]?["fields"]?.elements ?? []
  static let headerSize = all["header"]?["size"]?.int ?? 0

  static func bytes(of path: String) -> [UInt8] {
    [UInt8]((try? Data(contentsOf: directory.appending(path: path))) ?? Data())
  }

  static func read(_ path: String) -> JSONValue {
    (try? JSONValue(parsing: bytes(of: path).span)) ?? .null
  }

  /// The element of a list with a name.
  static func named(_ name: String, in list: String) -> JSONValue? {
    all[list]?.elements.first { $0["name"]?.string == name }
  }

  static func command(_ name: String) -> JSONValue? { named(name, in: "commands") }
  static func flag(_ name: String) -> Int? { named(name, in: "flags")?["value"]?.int }
  static func errno(_ name: String) -> Int? { named(name, in: "errors")?["number"]?.int }

  /// A constant under its C name.
  static func constant(_ name: String) -> Int? {
    let values = all["constants"]?.elements.flatMap { $0["values"]?.elements ?? [] }
    return values?.first { $0["name"]?.string == name }?["value"]?.int
  }

  /// The bytes of the integers; nil for what fills the rest of a message.
  static func size(ofType type: String) -> Int? { named(type, in: "types")?["size"]?.int }

  /// The fields that are there, by name; nil unless they are the whole of `bytes`.
  static func decode(_ fields: [JSONValue], _ bytes: [UInt8]) -> JSONValue? {
    var members: [JSONMember] = []
    var end = 0
    for field in fields {
      guard let name = field["name"]?.string, let type = field["type"]?.string,
        field["offset"]?.int == end
      else { return nil }
      if end == bytes.count { break }
      guard let size = size(ofType: type) else {
        let rest = bytes[end...]
        members.append(JSONMember(name, .string(type == "bytes" ? hex(rest) : text(rest))))
        end = bytes.count
        continue
      }
      guard size == field["size"]?.int, end + size <= bytes.count else { return nil }
      var value: UInt64 = 0
      for index in 0..<size { value |= UInt64(bytes[end + index]) << (8 * UInt64(index)) }
      let number = type == "s64" ? Int128(Int64(bitPattern: value)) : Int128(value)
      members.append(JSONMember(name, .integer(number)))
      end += size
    }
    return end == bytes.count ? .object(members) : nil
  }

  private static func text(_ bytes: ArraySlice<UInt8>) -> String {
    bytes.last == 0 ? String(decoding: bytes.dropLast(), as: UTF8.self) : "no NUL"
  }
}

func hex(_ bytes: ArraySlice<UInt8>) -> String {
  bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}

/// Bytes as a vector writes them: hexadecimal digits, `.` for any, `*` for any more, blanks ignored.
struct Pattern {
  /// 0 where any digit may be.
  let bytes: [UInt8]
  let digits: [Character]
  let isOpen: Bool

  init(_ text: String) {
    isOpen = text.hasSuffix("*")
    digits = text.filter { $0 != " " && $0 != "*" }
    bytes = stride(from: 0, to: digits.count - 1, by: 2).map { [digits] index in
      UInt8(String(digits[index...index + 1]).replacing(".", with: "0"), radix: 16) ?? 0
    }
  }

  /// Whether any byte may be at an offset.
  func isMasked(at offset: Int) -> Bool {
    2 * offset < digits.count && digits[2 * offset] == "."
  }

  func matches(_ found: [UInt8]) -> Bool {
    guard isOpen ? found.count >= bytes.count : found.count == bytes.count else { return false }
    return bytes.indices.allSatisfy { isMasked(at: $0) || bytes[$0] == found[$0] }
  }
}

extension JSONValue {
  var elements: [JSONValue] {
    guard case .array(let elements) = self else { return [] }
    return elements
  }

  var string: String? {
    guard case .string(let text) = self else { return nil }
    return text
  }

  /// An integer, or a string with one in hexadecimal digits.
  var int: Int? {
    switch self {
    case .integer(let number): Int(exactly: number)
    case .string(let text) where text.hasPrefix("0x"): Int(text.dropFirst(2), radix: 16)
    default: nil
    }
  }
}
