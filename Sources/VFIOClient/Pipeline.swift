import Locks
import SystemPackage
import VFIOStream
import VFIOWire

/// Accesses of a device's regions that are sent together, without a wait for each one's reply. The
/// device does them in order.
///
///     let status = try device.pipeline {
///       $0.store(UInt32(5), to: .bar(0), at: 0x08)
///       return $0.load(UInt32.self, from: .bar(0), at: 0x20)
///     }.value
public struct Pipeline {
  private struct Entry {
    var command: Command
    /// Bytes of request and reply together.
    var size: Int
    var operation: () -> String
    var body: (inout Output) -> Void
    /// Takes the reply, and returns what was wrong.
    var complete: (Result<Reply, VFIOError>) -> VFIOError?
  }

  private let device: String
  private var entries: [Entry] = []

  init(_ device: String) { self.device = device }

  /// Loads an integer of 1, 2, 4 or 8 bytes.
  @discardableResult
  public mutating func load<Value: FixedWidthInteger & Sendable>(
    _ type: Value.Type = Value.self, from region: RegionIndex, at offset: UInt64
  ) -> Pending<Value> {
    let size = MemoryLayout<Value>.size
    return append(.regionRead, "load", size, region, offset) {
      $0.append(RegionAccess(offset: offset, region: region.rawValue, count: size))
    } decode: { reply throws(Errno) in
      try reply.value(at: RegionAccess.size)
    }
  }

  /// Stores an integer of 1, 2, 4 or 8 bytes.
  @discardableResult
  public mutating func store<Value: FixedWidthInteger>(
    _ value: Value, to region: RegionIndex, at offset: UInt64
  ) -> Pending<Void> {
    append(.regionWrite, "store", MemoryLayout<Value>.size, region, offset) {
      $0.append(value, at: offset, of: region)
    } decode: { _ in
    }
  }

  /// Reads `count` bytes in one access; `EINVAL` for more than one can transfer.
  @discardableResult
  public mutating func read(
    from region: RegionIndex, at offset: UInt64, count: Int
  ) -> Pending<[UInt8]> {
    append(.regionRead, "read", count, region, offset) {
      $0.append(RegionAccess(offset: offset, region: region.rawValue, count: count))
    } decode: { reply throws(Errno) in
      try reply.accessed(count)
    }
  }

  /// Writes bytes in one access; `EINVAL` for more than one can transfer.
  @discardableResult
  public mutating func write(
    _ bytes: [UInt8], to region: RegionIndex, at offset: UInt64
  ) -> Pending<Void> {
    append(.regionWrite, "write", bytes.count, region, offset) {
      $0.append(RegionAccess(offset: offset, region: region.rawValue, count: bytes.count))
      $0.append(bytes)
    } decode: { _ in
    }
  }

  private mutating func append<Value: Sendable>(
    _ command: Command, _ verb: String, _ count: Int, _ region: RegionIndex, _ offset: UInt64,
    _ body: @escaping (inout Output) -> Void,
    decode: @escaping (Reply) throws(Errno) -> Value
  ) -> Pending<Value> {
    let operation = { [device] in
      "\(verb) \(count) bytes at \(hex(offset)) of \(device) \(region)"
    }
    let pending = Pending<Value>()
    entries.append(
      Entry(
        command: command, size: 2 * (Header.size + RegionAccess.size) + max(count, 0),
        operation: operation, body: body
      ) { reply in
        do throws(VFIOError) {
          let reply = try reply.get()
          pending.answer(
            .success(try naming(operation()) { () throws(Errno) in try decode(reply) }))
          return nil
        } catch {
          pending.answer(.failure(error))
          return error
        }
      })
    return pending
  }

  /// Sends everything and collects the replies; throws the first error when all are there.
  consuming func run(on connection: Connection) throws(VFIOError) {
    var first: VFIOError?
    var rest = entries[...]
    while !rest.isEmpty {
      let window = rest.prefix(Self.window(of: rest))
      rest = rest.dropFirst(window.count)
      do throws(Errno) {
        let tickets = try connection.transmit { outgoing in
          window.map { outgoing.request($0.command, $0.body) }
        }
        for (entry, ticket) in zip(window, tickets) {
          let reply = Result { () throws(Errno) in try connection.wait(for: ticket) }
          let error = entry.complete(
            reply.mapError { VFIOError(operation: entry.operation(), errno: $0) })
          first = first ?? error
        }
      } catch {
        for entry in window + rest {
          let failure = VFIOError(operation: entry.operation(), errno: error)
          _ = entry.complete(.failure(failure))
          first = first ?? failure
        }
        rest = []
      }
    }
    if let first { throw first }
  }

  /// How many entries may be sent before their replies are read: so few that the server, which reads no
  /// further while a reply isn't taken, never has to wait for this client while this client waits for it.
  private static func window(of entries: ArraySlice<Entry>) -> Int {
    var (count, size) = (0, 0)
    for entry in entries.prefix(64) {
      size += entry.size
      if count > 0, size > 65536 { break }
      count += 1
    }
    return count
  }
}

/// What an access in a pipeline will give.
public final class Pending<Value: Sendable>: Sendable {
  private let result: Mutex<Result<Value, VFIOError>>

  fileprivate init() {
    let operation = "take the value of an access that hasn't been sent"
    result = Mutex(
      .failure(VFIOError(operation: operation, errno: .resourceTemporarilyUnavailable)))
  }

  fileprivate func answer(_ answer: Result<Value, VFIOError>) { result.withLock { $0 = answer } }

  /// What it gave, or why it failed; `EAGAIN` before the pipeline has run.
  public var value: Value {
    get throws(VFIOError) { try result.withLock { $0 }.get() }
  }
}

extension Device {
  /// Sends the accesses that `body` asks for together, and waits for all of them. Throws the first
  /// error; those after it were done all the same.
  public func pipeline<Value>(_ body: (inout Pipeline) -> Value) throws(VFIOError) -> Value {
    var pipeline = Pipeline(name)
    let value = body(&pipeline)
    try pipeline.run(on: connection)
    return value
  }
}
