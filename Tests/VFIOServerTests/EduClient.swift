import Foundation
import LinuxIO
import SystemPackage
import Testing
import VFIOWire

@testable import VFIOServer

/// A client of an `edu`'s own socket, which has a page of shared memory mapped. What it maps besides, it
/// maps without a descriptor.
final class EduClient {
  static let name = "0000:06:0d.0"
  /// Where tests map memory without a descriptor.
  static let iova: UInt64 = 0x10_0000
  private static let buffer: UInt64 = 0x40000

  let client: Client
  /// The second socket, if it was asked for.
  let twin: Client?
  private let page: SharedMapping
  private let shared: UInt64

  /// `capabilities` are those of VERSION, without braces; `shared` is where the page is.
  init(_ client: Client, _ capabilities: String = "", shared: UInt64 = 0x90_0000) throws {
    self.client = client
    self.shared = shared
    let version = try client.call(
      .version, version01 + text("{\"capabilities\":{\(capabilities)}}"))
    twin = try version.descriptors.first.map { try Client($0) }
    let file = try makeMemoryFile("shared", size: 4096)
    page = try SharedMapping(file, size: 4096, writable: true)
    try client.call(
      .dmaMap, bytes(UInt32(32), UInt32(3), UInt64(0), shared, UInt64(4096)), with: [file])
    // Memory decoding and bus mastering.
    try client.call(.regionWrite, bytes(UInt64(4), UInt32(7), UInt32(2), UInt16(6)))
    // What an earlier client began may be ending yet, and `edu` begins nothing before it has.
    try finish()
  }

  /// Maps memory that the server has to ask for.
  func map(_ iova: UInt64 = EduClient.iova, size: UInt64 = 8192, flags: UInt32 = 3) throws {
    try client.call(.dmaMap, bytes(UInt32(32), flags, UInt64(0), iova, size))
  }

  func unmap(_ iova: UInt64 = EduClient.iova, size: UInt64 = 8192) throws {
    try client.call(.dmaUnmap, bytes(UInt32(24), UInt32(0), iova, size))
  }

  // MARK: copies

  /// Starts a copy from memory to the device's buffer.
  func startLoad(_ count: UInt64, from iova: UInt64 = EduClient.iova) throws {
    try start(iova, Self.buffer, count, 1)
  }

  /// Starts a copy from the device's buffer to memory.
  func startStore(_ count: UInt64, to iova: UInt64 = EduClient.iova) throws {
    try start(Self.buffer, iova, count, 3)
  }

  private func start(
    _ source: UInt64, _ destination: UInt64, _ count: UInt64, _ command: UInt64
  ) throws {
    for (register, value) in [
      (0x80, source), (0x88, destination), (0x90, count), (0x98, command),
    ] as [(UInt64, UInt64)] {
      try client.call(.regionWrite, bytes(register, UInt32(0), UInt32(8), value))
    }
  }

  var isCopying: Bool {
    get throws(Errno) {
      try client.call(.regionRead, bytes(UInt64(0x98), UInt32(0), UInt32(8))).body[16] & 1 == 1
    }
  }

  /// Returns when a copy has ended. Throws `ETIMEDOUT` when it doesn't.
  func finish() throws {
    let start = ContinuousClock.now
    while try isCopying {
      guard .now - start < .seconds(60) else { throw Errno.timedOut }
    }
  }

  /// The first bytes of the device's buffer.
  func buffer(_ count: Int) throws -> [UInt8] {
    try startStore(UInt64(count), to: shared)
    try finish()
    var bytes = [UInt8](repeating: 0xEE, count: count)
    var span = bytes.mutableSpan
    try page.read(at: 0, into: &span)
    return bytes
  }

  func setBuffer(_ bytes: [UInt8]) throws {
    try page.write(bytes.span, at: 0)
    try startLoad(UInt64(bytes.count), from: shared)
    try finish()
  }
}

/// What a DMA_READ or DMA_WRITE asks for.
extension Reply {
  var address: UInt64 { body.span.uint64(at: 0) }
  var count: UInt64 { body.span.uint64(at: 8) }
  var data: [UInt8] { Array(body.dropFirst(16)) }
}

/// Bytes that differ.
func pattern(_ count: Int) -> [UInt8] {
  (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8 &+ 7) }
}

extension Running {
  /// The faults of a device's transfers, as the topology has them.
  func faults(_ device: String = EduClient.name) throws -> Int {
    let reply = try root().call(.getTopology, bytes(UInt32(1 << 16), UInt32(0)))
    let topology = String(decoding: reply.body.dropFirst(8), as: UTF8.self)
    let here = try #require(topology.range(of: "\"\(device)\""))
    let field = try #require(
      topology.range(
        of: "\"faults\": *", options: .regularExpression, range: here.upperBound..<topology.endIndex
      ))
    return try #require(Int(topology[field.upperBound...].prefix { $0.isNumber }))
  }
}
