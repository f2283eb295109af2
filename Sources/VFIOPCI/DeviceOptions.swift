/// A device's options from the configuration, by name.
public struct DeviceOptions: Sendable {
  private let values: [String: OptionValue]

  public init(_ values: [String: OptionValue] = [:]) { self.values = values }

  /// Throws if there is an option that `names` leaves out.
  public func allow(only names: [String]) throws(OptionError) {
    guard let unknown = values.keys.filter({ !names.contains($0) }).min() else { return }
    let allowed =
      names.isEmpty ? "the model has none" : "allowed: " + names.joined(separator: ", ")
    throw OptionError(unknown, "unknown option; \(allowed)")
  }

  /// The integer option `name`, nil if it isn't given; throws unless it is one in `range`.
  public func integer(
    _ name: String, in range: ClosedRange<UInt64> = 0...UInt64.max
  ) throws(OptionError) -> UInt64? {
    guard let value = values[name] else { return nil }
    guard case .integer(let integer) = value, range.contains(integer) else {
      throw OptionError(
        name, "\(value) is not an integer from \(range.lowerBound) to \(range.upperBound)")
    }
    return integer
  }

  /// The boolean option `name`, nil if it isn't given; throws unless it is one.
  public func bool(_ name: String) throws(OptionError) -> Bool? {
    guard let value = values[name] else { return nil }
    guard case .bool(let bool) = value else {
      throw OptionError(name, "\(value) is not true or false")
    }
    return bool
  }

  /// The string option `name`, nil if it isn't given; throws unless it is one.
  public func string(_ name: String) throws(OptionError) -> String? {
    guard let value = values[name] else { return nil }
    guard case .string(let string) = value else {
      throw OptionError(name, "\(value) is not a string")
    }
    return string
  }
}

public enum OptionValue: Sendable, Equatable, CustomStringConvertible {
  case bool(Bool)
  case integer(UInt64)
  case string(String)

  public var description: String {
    switch self {
    case .bool(let bool): "\(bool)"
    case .integer(let integer): "\(integer)"
    case .string(let string): "\"\(string)\""
    }
  }
}

/// An option that a model refuses.
public struct OptionError: Error, CustomStringConvertible, Equatable {
  /// The option's name.
  public let field: String
  /// The value, and what is allowed.
  public let sentence: String

  public init(_ field: String, _ sentence: String) {
    self.field = field
    self.sentence = sentence
  }

  public var description: String { "\(field): \(sentence)" }
}
