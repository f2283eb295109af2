import SystemPackage
import VFIOCore

/// A device's state while it is written: checked as it comes, and kept beside the device until it is
/// complete, so that a bad one changes nothing.
struct IncomingState {
  private let begin: [UInt8]
  /// What must come once, and what has come of it.
  private let expected: [StateRecord]
  private(set) var contents: [[UInt8]]
  private var isThere: [Bool]
  /// By region.
  private(set) var memories: [Int: Memory]

  struct Memory {
    let bytes: any MappableMemory
    var isThere = RangeSet<UInt64>()
  }

  private var hasBegun = false
  private var isBad = false
  private(set) var isComplete = false
  /// Of the next record, as far as it has come.
  private var header: [UInt8] = []
  /// The record whose content comes, and how much of it has come.
  private var current: (record: StateRecord, index: Int, count: Int)?

  /// `memories` is room for what comes.
  init(_ begin: [UInt8], expected: [StateRecord], memories: [Int: any MappableMemory]) {
    self.begin = begin
    self.expected = expected
    contents = Array(repeating: [], count: expected.count)
    isThere = Array(repeating: false, count: expected.count)
    self.memories = memories.mapValues { Memory(bytes: $0) }
  }

  /// Nothing was written.
  var isEmpty: Bool { !hasBegun && !isBad && header.isEmpty }

  /// Takes the next bytes. `EINVAL` for what this device's state can't have there, and for all that
  /// comes afterwards.
  mutating func write(_ bytes: Span<UInt8>) throws(Errno) {
    do throws(Errno) {
      guard !isBad else { throw .invalidArgument }
      try take(bytes)
    } catch {
      isBad = true
      throw error
    }
  }

  private mutating func take(_ bytes: Span<UInt8>) throws(Errno) {
    var place = 0
    while place < bytes.count {
      guard !isComplete else { throw .invalidArgument }
      if let (record, index, count) = current {
        let part = bytes.extracting(place..<min(bytes.count, place + record.length - count))
        place += part.count
        if record.kind == .memory {
          try memories[record.region]?.bytes.write(part, at: record.offset + UInt64(count))
        } else {
          for byte in part.indices { contents[index].append(part[byte]) }
        }
        current = (record, index, count + part.count)
        endIfWhole()
      } else {
        header.append(bytes[place])
        place += 1
        if header.count == StateRecord.headerSize { try start() }
      }
    }
  }

  private mutating func start() throws(Errno) {
    defer { header = [] }
    if header == begin {
      hasBegun = true
      return
    }
    guard hasBegun, let record = StateRecord(header: header) else { throw .invalidArgument }
    switch record.kind {
    case .end:
      guard record == StateRecord(kind: .end, length: 0), isThere.allSatisfy({ $0 }),
        memories.values.allSatisfy({ $0.isThere == RangeSet(0..<$0.bytes.size) })
      else { throw .invalidArgument }
      isComplete = true
    case .memory:
      guard let size = memories[record.region]?.bytes.size, record.length > 0,
        record.offset <= size, UInt64(record.length) <= size - record.offset
      else { throw .invalidArgument }
      current = (record, 0, 0)
    default:
      guard let index = expected.firstIndex(of: record), !isThere[index] else {
        throw .invalidArgument
      }
      current = (record, index, 0)
      endIfWhole()
    }
  }

  private mutating func endIfWhole() {
    guard let (record, index, count) = current, count == record.length else { return }
    if record.kind == .memory {
      memories[record.region]?.isThere
        .insert(contentsOf: record.offset..<record.offset + UInt64(record.length))
    } else {
      isThere[index] = true
    }
    current = nil
  }
}
