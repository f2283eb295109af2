import Dispatch
import LinuxIO
import Locks
import SystemPackage
import VFIOStream
import VFIOWire

/// One who watches a device's messages. Records wait in a bounded buffer, and a queue of its own sends
/// them, so that a tracer which doesn't read costs records and no device's time.
final class Tracer: Sendable {
  private let socket: Socket
  private let queue = DispatchQueue(label: "vfiod.trace")
  /// A leaf: nothing else is locked under it.
  private let state = Mutex(State())

  private struct State {
    /// Messages to send: each a header, a record, and what was seen.
    var records: [UInt8] = []
    /// Messages seen after those, which found no room.
    var lost: UInt32 = 0
    var isSending = false
    /// Nothing comes after what is there.
    var isEnding = false
  }

  /// Bytes of records that wait while others are sent.
  static let limit = 1 << 20

  init(_ socket: Socket) { self.socket = socket }

  func add(_ record: TraceRecord, _ header: Header, _ payload: Span<UInt8>) {
    let kept = payload.extracting(first: min(payload.count, TraceRecord.payloadLimit))
    state.withLock { state in
      guard let start = Self.begin(record, &state, more: Header.size + kept.count) else { return }
      var bytes = state.records.mutableSpan
      header.write(to: &bytes, at: start)
      for index in 0..<kept.count { bytes[start + Header.size + index] = kept[index] }
    }
  }

  /// A record without a message.
  func add(_ record: TraceRecord) {
    state.withLock { state in _ = Self.begin(record, &state, more: 0) }
  }

  /// Appends a record with room for `more` bytes, and returns where they go; nil when it is lost.
  private static func begin(
    _ record: TraceRecord, _ state: inout State, more: Int
  ) -> Int? {
    let (start, size) = (state.records.count, Header.size + TraceRecord.size + more)
    // Once something is lost, all is until the loss is told: a record after it would hide where.
    guard state.lost == 0, start + size <= limit else {
      state.lost = state.lost == .max ? .max : state.lost + 1
      return nil
    }
    append(record, size, to: &state.records)
    return start + Header.size + TraceRecord.size
  }

  private static func append(_ record: TraceRecord, _ size: Int, to records: inout [UInt8]) {
    let start = records.count
    records.append(contentsOf: repeatElement(0, count: size))
    var bytes = records.mutableSpan
    let header = Header(
      id: 0, command: .traceRecord, messageSize: UInt32(size), flags: .noReply)
    header.write(to: &bytes, at: start)
    record.write(to: &bytes, at: start + Header.size)
  }

  // MARK: sending

  /// Makes the queue send all that is there, if it isn't at it.
  func send() {
    let isIdle = state.withLock { state in
      guard !state.isSending, !state.records.isEmpty || state.isEnding else { return false }
      state.isSending = true
      return true
    }
    if isIdle { queue.async { self.sendAll() } }
  }

  private func sendAll() {
    while let batch = takeBatch() {
      do throws(Errno) {
        var sent = 0
        while sent < batch.count {
          sent += try socket.send(batch.span.extracting(sent..<batch.count), wait: true) ?? 0
        }
      } catch {
        return  // it has hung up, which the control loop sees too
      }
    }
  }

  /// What is to be sent, and what was lost behind it; nil when there is nothing more.
  private func takeBatch() -> [UInt8]? {
    state.withLock { state in
      guard !state.records.isEmpty else {
        state.isSending = false
        if state.isEnding { socket.shutdown() }
        return nil
      }
      var batch: [UInt8] = []
      swap(&batch, &state.records)
      if state.lost > 0 {
        let record = TraceRecord(
          time: timeOfDay(), connection: 0, event: .lost, count: state.lost)
        Self.append(record, Header.size + TraceRecord.size, to: &batch)
        state.lost = 0
      }
      return batch
    }
  }

  /// Ends the trace once all that is there is sent.
  func end() {
    state.withLock { $0.isEnding = true }
    send()
  }

  /// Ends the trace at once.
  func abort() { socket.shutdown() }
}

/// The server's end of a trace. It only serves to find out when the tracer has closed.
final class TraceSession: Session {
  private let service: Service
  private let watched: Tracepoint
  private let tracer: Tracer

  init(_ service: Service, _ watched: Tracepoint, _ tracer: Tracer) {
    self.service = service
    self.watched = watched
    self.tracer = tracer
  }

  var messageLimit: Int { Version.messageLimit }

  func handle(
    _ request: Request, _ body: Span<UInt8>, _ reply: inout Output
  ) throws(Errno) {
    throw .inappropriateIOCTLForDevice
  }

  func close() {
    watched.remove(tracer)
    tracer.abort()
    service.traces.subtract(1, ordering: .relaxed)
  }
}

extension Service {
  /// Traces that are served at a time: one that isn't read holds a thread and two buffers.
  static let mostTraces = 16

  /// Begins a trace of a device, and returns the tracer's descriptor of it.
  ///
  /// `ENODEV` when there is no such device, `EMFILE` when there are as many traces, connections or
  /// descriptors as there may be.
  func trace(_ device: String) throws(Errno) -> Descriptor {
    guard let tracepoint = topology.tracepoint(of: device) else {
      throw .operationNotSupportedByDevice
    }
    let (ours, theirs) = try Socket.pair()
    let tracer = Tracer(ours)
    let session = TraceSession(self, tracepoint, tracer)
    let count = traces.add(1, ordering: .relaxed).newValue
    do throws(Errno) {
      guard count <= Self.mostTraces, loop.count < limits.connections else {
        throw .tooManyOpenFiles
      }
      try tracepoint.add(tracer)
      try loop.add(connection(ours, session, number: nextNumber()))
    } catch {
      session.close()
      throw error
    }
    return theirs.descriptor
  }
}
