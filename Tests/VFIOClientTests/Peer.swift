import Dispatch
import Foundation
import LinuxIO
import Locks
import Testing
import VFIOClient
import VFIOWire

/// The server's end of a device's socket, played by a test.
final class Peer: Sendable {
  let socket: Socket

  /// Runs `script` against a device whose VERSION it has answered.
  static func play(
    _ script: @escaping @Sendable (Peer) throws -> Void, _ body: (Device) throws -> Void
  ) throws {
    let (ours, theirs) = try Socket.pair()
    let peer = Peer(ours)
    let thread = Thread {
      do {
        let (request, _) = try peer.receive()
        try peer.reply(to: request, [0, 0, 0, 0])
        try script(peer)
      } catch {
        Issue.record(error)
      }
      peer.socket.shutdown()
    }
    thread.start()
    try body(Device(adopting: theirs.descriptor.borrowed.duplicate(), name: "peer"))
  }

  /// Answers one administrator's request on the root socket of a directory of its own, with success.
  static func playRoot(_ body: (VFIO) throws -> Void) throws -> (command: UInt16, json: String) {
    let directory =
      FileManager.default.temporaryDirectory.path + "/vfio-\(UUID().uuidString.prefix(8))"
    try FileManager.default.createDirectory(
      atPath: directory, withIntermediateDirectories: false)
    defer { try? FileManager.default.removeItem(atPath: directory) }
    let listener = try Socket.listen(at: "\(directory)/vfio.sock", mode: 0o600, owner: nil)
    let answered = DispatchSemaphore(value: 0)
    let request = Mutex<(UInt16, String)>((0, ""))
    let thread = Thread {
      do {
        let epoll = try Epoll()
        try epoll.add(listener.descriptor, .readable, number: 0)
        var events: [Epoll.Event] = []
        try epoll.wait(&events, forever: true)
        let peer = Peer(try #require(try listener.accept()))
        try peer.reply(to: try peer.receive().0, [0, 0, 0, 0])
        let (header, body) = try peer.receive()
        #expect(body.last == 0)
        request.withLock {
          $0 = (header.command.rawValue, String(decoding: body.dropLast(), as: UTF8.self))
        }
        try peer.reply(to: header)
      } catch {
        Issue.record(error)
      }
      answered.signal()
    }
    thread.start()
    try body(VFIO.connect(directory: directory))
    answered.wait()
    return request.withLock { $0 }
  }

  init(_ socket: Socket) { self.socket = socket }

  func receive() throws -> (Header, [UInt8]) {
    let header = try take(Header.size)
    let parsed = Header(header.span)
    return (parsed, try take(Int(parsed.messageSize) - Header.size))
  }

  private func take(_ count: Int) throws -> [UInt8] {
    var bytes: [UInt8] = []
    while bytes.count < count {
      var room = [UInt8](repeating: 0, count: count - bytes.count)
      var span = room.mutableSpan
      let received = try socket.receive(into: &span, wait: true)?.count ?? 0
      if received == 0 { throw Errno.connectionReset }
      bytes += room.prefix(received)
    }
    return bytes
  }

  func send(_ header: Header, _ body: [UInt8] = [], size: UInt32? = nil, piece: Int = .max) throws {
    var header = header
    header.messageSize = size ?? UInt32(Header.size + body.count)
    var bytes = [UInt8](repeating: 0, count: Header.size)
    var span = bytes.mutableSpan
    header.write(to: &span, at: 0)
    var rest = (bytes + body)[...]
    while !rest.isEmpty {
      _ = try socket.send(Array(rest.prefix(piece)).span, wait: true)
      rest = rest.dropFirst(piece)
    }
  }

  func reply(to request: Header, _ body: [UInt8] = [], piece: Int = .max) throws {
    try send(
      Header(id: request.id, command: request.command, messageSize: 0, flags: .reply), body,
      piece: piece)
  }

  /// Sends a command of the server's, and returns the client's reply.
  func command(_ number: UInt16, _ body: [UInt8], flags: Header.Flags = []) throws -> (
    Header, [UInt8]
  ) {
    try send(
      Header(id: 0x7777, command: Command(rawValue: number), messageSize: 0, flags: flags), body)
    return try receive()
  }
}
