import Foundation
import JSON
import Testing

/// One case of a file of `protocol/vectors`.
struct Vector: Sendable, CustomTestStringConvertible {
  let file: JSONValue
  let name: String
  let steps: [JSONValue]

  var testDescription: String { "\(file["title"]?.string ?? ""): \(name)" }

  static let all: [Vector] = {
    let directory = Facts.directory.appending(path: "vectors").path
    let names = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
    return names.sorted().filter { $0.hasSuffix(".json") && $0 != "setups.json" }.flatMap { name in
      let file = Facts.read("vectors/\(name)")
      return (file["cases"]?.elements ?? []).map { entry in
        Vector(
          file: file, name: entry["name"]?.string ?? "", steps: entry["steps"]?.elements ?? [])
      }
    }
  }()

  /// Every step that sends or receives a message, of cases and of setups.
  static let exchanges: [JSONValue] = {
    guard case .object(let setups) = Facts.setups else { return [] }
    let steps = setups.flatMap { $0.value.elements } + all.flatMap(\.steps)
    return steps.filter { $0["on"] != nil }
  }()
}

extension JSONValue {
  /// What a step sends, in the pieces in which it does.
  var pieces: [[UInt8]] {
    guard let send = self["send"] else { return [] }
    let pieces = send.string.map { [$0] } ?? send.elements.compactMap(\.string)
    return pieces.map { Pattern($0).bytes }
  }
}
