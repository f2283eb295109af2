/// Reads a JSON value field by field, and names the path of a field that isn't as it should be.
///
///     let limits = JSONReader(document)["limits"]
///     let connections = try limits["connections"].integer(in: 1...65536, default: 4096)
public struct JSONReader: Sendable {
  /// Nil where the document has nothing.
  public let value: JSONValue?
  /// From the document's top, such as `groups[0].devices[1].address`.
  public let path: String

  public init(_ document: JSONValue) { self.init(document, path: "") }

  private init(_ value: JSONValue?, path: String) {
    self.value = value
    self.path = path
  }

  /// A member of this object. An absent one is told by `exists`, or by the error of a read that has
  /// no default.
  public subscript(name: String) -> JSONReader {
    JSONReader(value?[name], path: path(of: name))
  }

  private func path(of name: String) -> String { path.isEmpty ? name : "\(path).\(name)" }

  public var exists: Bool { value != nil }
  public var isNull: Bool { value == .null }

  /// The members of an object, in the document's order.
  public func members() throws(JSONError) -> [(name: String, reader: JSONReader)] {
    guard case .object(let members)? = value else { throw mismatch("an object") }
    return members.map { ($0.name, JSONReader($0.value, path: path(of: $0.name))) }
  }

  /// Throws for a value that isn't an object, or is one with a member not among `names`.
  public func requireFields(among names: [String]) throws(JSONError) {
    for member in try members() where !names.contains(member.name) {
      let name = shortened(JSONValue.string(member.name).text)
      throw error("unknown field \(name); known are \(names.joined(separator: ", "))")
    }
  }

  /// The elements of an array.
  public func elements() throws(JSONError) -> [JSONReader] {
    guard case .array(let elements)? = value else { throw mismatch("an array") }
    return elements.enumerated().map { JSONReader($0.element, path: "\(path)[\($0.offset)]") }
  }

  public func bool(default fallback: Bool? = nil) throws(JSONError) -> Bool {
    if value == nil, let fallback { return fallback }
    guard case .bool(let flag)? = value else { throw mismatch("true or false") }
    return flag
  }

  public func string(default fallback: String? = nil) throws(JSONError) -> String {
    if value == nil, let fallback { return fallback }
    guard case .string(let text)? = value else { throw mismatch("a string") }
    return text
  }

  /// An integer between the bounds of `range`, both included.
  public func integer<Number: FixedWidthInteger>(
    in range: ClosedRange<Number>, default fallback: Number? = nil
  ) throws(JSONError) -> Number {
    if value == nil, let fallback { return fallback }
    guard case .integer(let number)? = value, let result = Number(exactly: number),
      range.contains(result)
    else { throw mismatch("an integer between \(range.lowerBound) and \(range.upperBound)") }
    return result
  }

  /// The error for a value that isn't `wanted`: `"foo" is not an array`, or `missing; …` if absent.
  public func mismatch(_ wanted: String) -> JSONError {
    guard let value else { return error("missing; it must be \(wanted)") }
    let found =
      switch value {
      case .array: "an array"
      case .object: "an object"
      default: shortened(value.text)
      }
    return error("\(found) is not \(wanted)")
  }

  /// An error about this field.
  public func error(_ problem: String) -> JSONError { JSONError(place: path, problem: problem) }
}
