import Foundation
import JSON
import LinuxIO
import Logging
import Testing
import VFIOServer
import VFIOWire

@Suite struct `Every vector` {
  @Test(arguments: Vector.all)
  func `gets from a running server the answers that it says`(vector: Vector) throws {
    let directory = FileManager.default.temporaryDirectory
      .appending(path: "vfiod-\(UUID().uuidString.prefix(13))").path
    defer { try? FileManager.default.removeItem(atPath: directory) }
    let server = try Server(
      directory: directory, configuration: try configuration(of: vector),
      logger: Logger(label: "vectors") { _ in SwiftLogNoOpLogHandler() })
    defer { server.stop() }
    try Client(directory: directory).run(vector.steps)
  }

  private func configuration(of vector: Vector) throws -> Configuration {
    let text = vector.file["configuration"]?.text ?? "{}"
    return try Configuration(
      parsing: Array(text.utf8).span, file: "configuration", names: Server.names)
  }

  @Test func `asks on a socket that has the command`() {
    let kinds = Set(Facts.all["sockets"]?.elements.compactMap { $0["name"]?.string } ?? [])
    for step in Vector.exchanges where step["reply"] != nil {
      guard let kind = step["on"]?.string, kinds.contains(kind) else { continue }
      let sockets = Facts.command(step["command"]?.string ?? "")?["sockets"]?.elements ?? []
      #expect(sockets.contains { $0.string == kind }, "\(step)")
    }
  }

  @Test func `has requests that mean what it says`() throws {
    for step in Vector.exchanges {
      guard let meaning = step["request"] else { continue }
      // Without anything that is sent, it is the server's.
      let isSent = step["send"] != nil
      let bytes = isSent ? step.pieces.flatMap { $0 } : Pattern(step["expect"]?.string ?? "").bytes
      let command = try #require(Facts.command(step["command"]?.string ?? ""), "\(step)")
      let header = Header(bytes.span)
      #expect(Int(header.command.rawValue) == command["number"]?.int, "\(step)")
      #expect(Int(header.messageSize) == bytes.count, "\(step)")
      #expect(isSent || command["direction"]?.string == "server" && header.flags == [], "\(step)")
      let fields = command["request"]?.elements ?? []
      #expect(Facts.decode(fields, Array(bytes.dropFirst(Header.size))) == meaning, "\(step)")
    }
  }

  @Test func `has replies that mean what it says`() throws {
    for step in Vector.exchanges {
      // Without anything that is received, it answers the server.
      guard let meaning = step["reply"], let text = (step["expect"] ?? step["send"])?.string
      else { continue }
      let pattern = Pattern(text)
      let command = try #require(Facts.command(step["command"]?.string ?? ""), "\(step)")
      let header = Header(pattern.bytes.span)
      #expect(Int(header.command.rawValue) == command["number"]?.int, "\(step)")
      #expect(Int(header.flags.rawValue) == Facts.flag("REPLY"), "\(step)")
      #expect(header.error == 0, "\(step)")
      #expect(pattern.isOpen || Int(header.messageSize) == pattern.bytes.count, "\(step)")

      let fields = command["reply"]?.elements ?? []
      let decoded = Facts.decode(fields, Array(pattern.bytes.dropFirst(Header.size)))
      guard case .object(let members)? = decoded else {
        Issue.record("not the reply's fields: \(step)")
        continue
      }
      let known = zip(members, fields).map { member, field in
        let offset = Header.size + (field["offset"]?.int ?? 0)
        return JSONMember(member.name, pattern.isMasked(at: offset) ? .null : member.value)
      }
      #expect(.object(known) == meaning, "\(step)")
    }
  }

  @Test func `has errors that are a header alone`() {
    for step in Vector.exchanges {
      guard let name = step["errno"]?.string, let text = step["expect"]?.string else { continue }
      let bytes = Pattern(text).bytes
      let header = Header(bytes.span)
      #expect(Int(header.error) == Facts.errno(name), "\(step)")
      let flags = (Facts.flag("REPLY") ?? 0) | (Facts.flag("ERROR") ?? 0)
      #expect(Int(header.flags.rawValue) == flags, "\(step)")
      #expect(bytes.count == Facts.headerSize && header.messageSize == 16, "\(step)")
    }
  }

  @Test func `proves an error of the facts, and every error has one`() {
    let common = reasons(Facts.all["common_errors"]?.elements ?? [], of: "")
    var facts = common
    for command in Facts.all["commands"]?.elements ?? [] {
      facts.formUnion(
        reasons(command["errors"]?.elements ?? [], of: command["name"]?.string ?? ""))
    }
    let proven = Set(
      Vector.exchanges.filter { $0["when"] != nil }.map { step in
        let shared = reason(step, of: "")
        return common.contains(shared) ? shared : reason(step, of: step["command"]?.string ?? "")
      })
    #expect(facts.subtracting(proven) == [])
    #expect(proven.subtracting(facts) == [])
  }

  private func reasons(_ errors: [JSONValue], of command: String) -> Set<String> {
    Set(errors.filter { $0["unproven"] == nil }.map { reason($0, of: command) })
  }

  private func reason(_ error: JSONValue, of command: String) -> String {
    "\(command) \(error["errno"]?.string ?? ""): \(error["when"]?.string ?? "")"
  }
}
