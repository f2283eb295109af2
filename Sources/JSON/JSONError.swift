/// What is wrong with a JSON document, and where.
public struct JSONError: Error, Sendable, Equatable, CustomStringConvertible {
  /// A position (`line 3, column 5`) or the path of a field (`groups[0].id`); empty for the whole.
  public var place: String
  /// Such as `"foo" is not an integer between 1 and 253`.
  public var problem: String

  public init(place: String, problem: String) {
    self.place = place
    self.problem = problem
  }

  /// The problem at a byte's position; the column counts characters (Unicode scalars) from 1.
  init(_ problem: String, at offset: Int, of bytes: Span<UInt8>) {
    var line = 1
    var column = 1
    for index in 0..<min(max(offset, 0), bytes.count) {
      if bytes[index] == UInt8(ascii: "\n") {
        line += 1
        column = 1
      } else if bytes[index] & 0xC0 != 0x80 {
        column += 1
      }
    }
    self.init(place: "line \(line), column \(column)", problem: problem)
  }

  public var description: String { place.isEmpty ? problem : "\(place): \(problem)" }
}
