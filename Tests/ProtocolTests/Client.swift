import Dispatch
import Foundation
import JSON
import LinuxIO
import SystemPackage
import Testing
import VFIOStream
import VFIOWire

/// What went otherwise than a vector says.
struct Deviation: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

/// How long anything may take before a test has failed; far more than it does.
private let patience = DispatchTimeInterval.seconds(20)

/// A client's end of a connection.
final class Peer {
  let socket: Socket
  private var input = Input(limit: 4 << 20, descriptorLimit: 253)

  init(_ socket: Socket) { self.socket = socket }

  func send(_ bytes: [UInt8], with descriptors: [Descriptor]) throws {
    var sent = 0
    while sent < bytes.count {
      let count = try socket.send(
        bytes.span.extracting(sent..<bytes.count), with: sent == 0 ? descriptors : [], wait: true)
      sent += count ?? 0
    }
  }

  /// The next message, whole, with its descriptors; nil when the server has closed.
  func receive() throws -> (bytes: [UInt8], descriptors: [Descriptor])? {
    // Weak, since Dispatch keeps a cancelled item until its time has come.
    let watchdog = DispatchWorkItem { [weak descriptor = socket.descriptor] in
      if let descriptor { Socket(descriptor).shutdown() }
    }
    DispatchQueue.global().asyncAfter(deadline: .now() + patience, execute: watchdog)
    defer { watchdog.cancel() }
    while true {
      switch input.next() {
      case .message(let header, let body, let descriptors, _):
        var bytes = [UInt8](repeating: 0, count: Header.size)
        var span = bytes.mutableSpan
        header.write(to: &span, at: 0)
        return (bytes + input.bytes[body], descriptors)
      case .impossible(let header):
        throw Deviation("a reply of \(header.messageSize) bytes")
      case .incomplete:
        guard let received = try read(), received.count > 0 else { return nil }
        input.received(
          received.count, descriptors: received.descriptors, truncated: received.truncated)
      }
    }
  }

  /// nil when the server has closed without reading all.
  private func read() throws(Errno) -> Received? {
    let socket = socket
    do throws(Errno) {
      return try input.withRoom { room throws(Errno) in
        try socket.receive(into: &room, wait: true)
      }
    } catch {
      guard error == .connectionReset else { throw error }
      return nil
    }
  }
}

/// Runs the steps of a vector against the server of a directory.
final class Client {
  private let directory: String
  private var peers: [String: Peer] = [:]
  private var things: [String: Descriptor] = [:]
  /// The id of the server's last command on each connection.
  private var asked: [String: ArraySlice<UInt8>] = [:]

  init(directory: String) { self.directory = directory }

  func run(_ steps: [JSONValue]) throws {
    for step in steps {
      if let setup = step.string {
        try run(Facts.setups[setup]?.elements ?? [])
        continue
      }
      do {
        try take(step)
      } catch {
        throw Deviation("\(error) at \(step.text)")
      }
    }
  }

  private func take(_ step: JSONValue) throws {
    if let name = step["connect"]?.string {
      peers[name] = Peer(try Socket.connect(to: "\(directory)/\(step["to"]?.string ?? "")"))
    } else if let name = step["close"]?.string {
      peers[name] = nil
    } else if let name = step["closed"]?.string {
      guard try peers[name]?.receive() == nil else { throw Deviation("still open") }
    } else if let name = step["signalled"]?.string {
      try wait(for: name, times: step["times"]?.int ?? 0)
    } else if let name = step["signal"]?.string {
      try EventFD(checking: try descriptor(name)).signal()
    } else if let name = step["store"]?.string {
      try memory(name, step).write(content(step).span, at: UInt64(step["at"]?.int ?? 0))
    } else if let name = step["load"]?.string {
      var found = content(step)
      var span = found.mutableSpan
      try memory(name, step).read(at: UInt64(step["at"]?.int ?? 0), into: &span)
      guard found == content(step) else { throw Deviation("found \(hex(found[...]))") }
    } else {
      try exchange(step)
    }
  }

  private func exchange(_ step: JSONValue) throws {
    let name = step["on"]?.string ?? ""
    guard let peer = peers[name] else { throw Deviation("not connected") }
    for (index, var piece) in step.pieces.enumerated() {
      if step["send"]?.string?.hasPrefix("....") ?? false, let id = asked[name] {
        piece.replaceSubrange(0..<2, with: id)
      }
      let isTheirs = index == step["with_piece"]?.int ?? 0
      let names = isTheirs ? step["descriptors"]?.elements.compactMap(\.string) ?? [] : []
      try peer.send(piece, with: names.map(descriptor))
    }
    guard let expected = step["expect"]?.string else { return }
    guard let reply = try peer.receive() else { throw Deviation("closed") }
    guard Pattern(expected).matches(reply.bytes) else {
      throw Deviation("received \(hex(reply.bytes[...]))")
    }
    if Header(reply.bytes.span).flags.isDisjoint(with: .type) { asked[name] = reply.bytes[0..<2] }
    let names = step["keeps"]?.elements.compactMap(\.string) ?? []
    guard reply.descriptors.count == names.count else {
      throw Deviation("received \(reply.descriptors.count) descriptors")
    }
    for (name, descriptor) in zip(names, reply.descriptors) {
      if name == "region" || name.hasPrefix("bell") {
        things[name] = descriptor
      } else {
        peers[name] = Peer(Socket(descriptor))
      }
    }
  }

  private func content(_ step: JSONValue) -> [UInt8] { Pattern(step["bytes"]?.string ?? "").bytes }

  private func memory(_ name: String, _ step: JSONValue) throws -> SharedMapping {
    let size = UInt64((step["at"]?.int ?? 0) + content(step).count)
    return try SharedMapping(try descriptor(name), size: size, writable: true)
  }

  /// An eventfd is signalled, if `times` isn't 0, and is not otherwise.
  private func wait(for name: String, times: Int) throws {
    let event = try EventFD(checking: try descriptor(name))
    let late = try EventFD()
    let epoll = try Epoll()
    try epoll.add(event.descriptor, .readable, number: 1)
    try epoll.add(late.descriptor, .readable, number: 2)
    let watchdog = DispatchWorkItem { late.signal() }
    DispatchQueue.global().asyncAfter(deadline: .now() + patience, execute: watchdog)
    defer { watchdog.cancel() }
    var events: [Epoll.Event] = []
    try epoll.wait(&events, forever: times > 0)
    let isSignalled = events.contains { $0.number == 1 }
    guard isSignalled == (times > 0) else { throw Deviation("signalled: \(isSignalled)") }
    if isSignalled { event.clear() }
  }

  /// A connection's, or that of a thing which is made when it is first named.
  private func descriptor(_ name: String) throws -> Descriptor {
    if let peer = peers[name] { return peer.socket.descriptor }
    if let thing = things[name] { return thing }
    let made = try make(name)
    things[name] = made
    return made
  }

  private func make(_ name: String) throws -> Descriptor {
    switch name {
    case "memory": return try makeMemoryFile(name, size: 1 << 20)
    case "guest memory": return try makeMemoryFile(name, size: 1 << 28)
    case "read-only memory":
      let path = FilePath("/proc/self/fd/\(try descriptor("memory").rawValue)")
      return Descriptor(owning: try FileDescriptor.open(path, .readOnly).rawValue)
    case "event", "second event": return try EventFD().descriptor
    case "null": return try Descriptor.null()
    case "socket": return try Socket.pair().0.descriptor
    default: throw Deviation("\(name) is nothing that a vector knows")
    }
  }
}
