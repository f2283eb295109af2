import LinuxIO
import SystemPackage
import Testing
import VFIOWire

@testable import VFIOServer

/// A server of a card with two functions, the second of which is an `edu`, and which would wait for an
/// answer longer than any test.
private final class TwoFunctions {
  let running: Running
  private static let names = ["0000:01:00.0", "0000:01:00.1"]

  init() throws {
    var configuration = Configuration(groups: [
      .init(
        id: 1,
        devices: [
          .init(Self.names[0], model: "edu", driver: "vfio-pci"),
          .init(Self.names[1], model: "edu", driver: "vfio-pci"),
        ])
    ])
    configuration.limits.dmaTimeout = 3600
    running = try Running(configuration)
  }

  func client(_ function: Int) throws -> Client { try running.socket(Self.names[function]) }
  func edu(_ function: Int, _ capabilities: String = "") throws -> EduClient {
    try EduClient(try client(function), capabilities, shared: 0x90_0000 + UInt64(function) << 12)
  }
}

@Suite struct `Memory that one process maps for both functions of a card, without a descriptor` {
  private let card: TwoFunctions
  private let functions: [EduClient]

  init() throws {
    card = try TwoFunctions()
    functions = try [card.edu(0), card.edu(1)]
    for function in functions { try function.map() }
  }

  /// Answers the next command of a connection, which ends the copy of its `edu`.
  private func serve(_ edu: EduClient) throws {
    let command = try #require(try edu.client.nextCommand())
    edu.client.answer(command, command.body + pattern(16))
    try edu.finish()
    #expect(try edu.buffer(16) == pattern(16))
  }

  @Test func `is asked for on the connection of the function that wants it`() throws {
    for edu in functions {
      try edu.startLoad(16)
      try serve(edu)
    }
  }

  @Test func `stays mapped for one when the other unmaps it or closes meanwhile`() throws {
    try functions[0].startLoad(16)
    try functions[1].unmap()
    functions[1].client.close()
    try serve(functions[0])
  }

  @Test func `is none of a function's whose own connection hasn't mapped it`() throws {
    try functions[0].map(0x40_0000)
    try functions[1].startLoad(16, from: 0x40_0000)
    try functions[1].finish()
    #expect(functions[0].client.unreadInput == 0)
  }
}
