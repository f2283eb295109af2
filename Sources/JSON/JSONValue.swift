/// A JSON document or a part of one, as a plain value.
public enum JSONValue: Sendable, Equatable {
  case null
  case bool(Bool)
  /// A number without fraction and exponent. Parsing yields what fits `Int64` or `UInt64`, and
  /// refuses others.
  case integer(Int128)
  /// Any other number. JSON has no infinities and no NaN: parsing never yields them, and they are
  /// written as `null`.
  case double(Double)
  case string(String)
  case array([JSONValue])
  /// The members in the document's order. Of two members with the same name, parsing keeps the
  /// first one's place and the last one's value. Names have no NUL: parsing refuses one, and writing
  /// ends the name there.
  case object([JSONMember])

  /// The value of an object's member; nil when there is none or this isn't an object.
  public subscript(name: String) -> JSONValue? {
    guard case .object(let members) = self else { return nil }
    return members.first { $0.name == name }?.value
  }
}

/// One member of a JSON object.
public struct JSONMember: Sendable, Equatable {
  public var name: String
  public var value: JSONValue

  public init(_ name: String, _ value: JSONValue) {
    self.name = name
    self.value = value
  }
}

extension JSONValue: ExpressibleByNilLiteral, ExpressibleByBooleanLiteral,
  ExpressibleByIntegerLiteral, ExpressibleByFloatLiteral, ExpressibleByStringLiteral,
  ExpressibleByArrayLiteral, ExpressibleByDictionaryLiteral
{
  public init(nilLiteral: ()) { self = .null }
  public init(booleanLiteral value: Bool) { self = .bool(value) }
  public init(integerLiteral value: Int64) { self = .integer(Int128(value)) }
  public init(floatLiteral value: Double) { self = .double(value) }
  public init(stringLiteral value: String) { self = .string(value) }
  public init(arrayLiteral elements: JSONValue...) { self = .array(elements) }
  public init(dictionaryLiteral elements: (String, JSONValue)...) {
    self = .object(elements.map { JSONMember($0.0, $0.1) })
  }
}
