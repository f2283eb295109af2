import LinuxIO
import Locks
import SystemPackage
import VFIOWire

import struct Synchronization.Atomic

/// Where the messages of a device's connections can be seen while the server runs. As long as nobody
/// watches, it costs a connection one look at `isWatched` a turn.
final class Tracepoint: Sendable {
  private let watched = Atomic(false)
  /// Guards who watches; nil once the device has gone. The tracers' own locks come after it.
  private let tracers = Mutex<[Tracer]?>([])

  var isWatched: Bool { watched.load(ordering: .relaxed) }

  /// `ENODEV` when the device has gone.
  func add(_ tracer: Tracer) throws(Errno) {
    try tracers.withLock { tracers throws(Errno) in
      guard tracers != nil else { throw .operationNotSupportedByDevice }
      tracers?.append(tracer)
      watched.store(true, ordering: .relaxed)
    }
  }

  func remove(_ tracer: Tracer) {
    tracers.withLock { tracers in
      tracers?.removeAll { $0 === tracer }
      watched.store(tracers?.isEmpty == false, ordering: .relaxed)
    }
  }

  /// The device has gone: each trace ends when what it has is sent.
  func close() {
    let last = tracers.withLock { tracers in
      defer { tracers = nil }
      return tracers ?? []
    }
    watched.store(false, ordering: .relaxed)
    for tracer in last { tracer.end() }
  }

  /// A connection has received or sent a message. It is copied, and sent with the next `flush`.
  func record(
    _ event: TraceRecord.Event, on connection: UInt64, _ header: Header,
    _ payload: Span<UInt8>, descriptors: Int
  ) {
    let record = TraceRecord(
      time: timeOfDay(), connection: connection, event: event,
      count: UInt32(clamping: descriptors))
    tracers.withLock { tracers in
      for tracer in tracers ?? [] { tracer.add(record, header, payload) }
    }
  }

  /// `record` for a message as it is sent; nothing for one that was taken back.
  func recordSent(_ message: Span<UInt8>, on connection: UInt64, descriptors: Int) {
    guard message.count >= Header.size else { return }
    record(
      .sent, on: connection, Header(message),
      message.extracting(Header.size..<message.count), descriptors: descriptors)
  }

  /// A connection has closed.
  func recordClosed(_ connection: UInt64) {
    guard isWatched else { return }
    let record = TraceRecord(time: timeOfDay(), connection: connection, event: .closed)
    tracers.withLock { tracers in
      for tracer in tracers ?? [] { tracer.add(record) }
    }
    flush()
  }

  /// Sends what was recorded, on threads of the tracers.
  func flush() {
    tracers.withLock { tracers in
      for tracer in tracers ?? [] { tracer.send() }
    }
  }
}
