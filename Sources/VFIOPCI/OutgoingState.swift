import SystemPackage
import VFIOCore

/// A device's state while it is read: memory as long as the device runs, all of it when it has stopped.
struct OutgoingState {
  private let begin: [UInt8]
  /// What comes next: whole records, or what is left of one that a read cut.
  private var bytes: [UInt8]
  /// The memory that is still to be read, by region.
  private var memories: [Int: UnreadMemory]
  /// Everything else, once the device has stopped.
  private var rest: [UInt8]?

  /// Of a device with memory of these sizes, by region.
  init(_ begin: [UInt8], memories: [Int: UInt64]) {
    self.begin = begin
    bytes = begin
    self.memories = memories.mapValues(UnreadMemory.init)
  }

  /// Memory was written since it may have been read.
  mutating func mark(_ region: Int, at offset: UInt64, count: Int) {
    memories[region]?.mark(offset..<offset + UInt64(count))
  }

  /// The device has stopped: what is read from now on ends with `rest`. It has those regions whole whose
  /// memory the client may have written without a message, so that they make sense without what was read
  /// before.
  mutating func stop(rest: [UInt8], whole regions: [Int]) {
    bytes += begin
    for region in memories.keys { memories[region]?.readPartAgain() }
    for region in regions { memories[region]?.markAll() }
    self.rest = rest
  }

  /// The next bytes, at most `count`. `memory` reads a part of a region.
  mutating func read(
    _ count: Int, memory: (Int, Range<UInt64>) throws(Errno) -> [UInt8]
  ) throws(Errno) -> [UInt8] {
    while bytes.count < count {
      if let region = memories.keys.sorted().first(where: { memories[$0]?.isRead == false }) {
        // As much as the caller has room for, so that reads rarely end within a record.
        let room = count - bytes.count - StateRecord.headerSize
        guard let range = memories[region]?.next(room < 256 ? 4096 : room) else { break }
        let record = StateRecord(
          kind: .memory, region: region, length: range.count, offset: range.lowerBound)
        bytes += try record.header + memory(region, range)
      } else if let rest {
        bytes += rest
        self.rest = []
        if rest.isEmpty { break }
      } else {
        break
      }
    }
    defer { bytes.removeFirst(min(count, bytes.count)) }
    return Array(bytes.prefix(count))
  }
}

/// Which of a region's bytes are still to be read.
private struct UnreadMemory {
  private static let page: UInt64 = 4096
  /// A record has no more, so that a writer gets the lock in between.
  private static let longest: UInt64 = 1 << 20

  private let size: UInt64
  private var pages: [Bool]
  private var unread: Int
  /// Being read, and no longer among the pages.
  private var part: Range<UInt64> = 0..<0

  init(size: UInt64) {
    self.size = size
    unread = Int(size / Self.page)
    pages = Array(repeating: true, count: unread)
  }

  var isRead: Bool { unread == 0 && part.isEmpty }

  mutating func mark(_ range: Range<UInt64>) {
    guard !range.isEmpty, range.upperBound <= size else { return }
    for page in Int(range.lowerBound / Self.page)...Int((range.upperBound - 1) / Self.page) {
      if !pages[page] { unread += 1 }
      pages[page] = true
    }
  }

  mutating func markAll() {
    part = 0..<0
    mark(0..<size)
  }

  /// A page that was read in part is read whole once more.
  mutating func readPartAgain() {
    mark(part)
    part = 0..<0
  }

  mutating func next(_ most: Int) -> Range<UInt64>? {
    if part.isEmpty {
      guard let first = pages.firstIndex(of: true) else { return nil }
      var end = first
      while end < pages.count, pages[end], UInt64(end - first) * Self.page < Self.longest {
        pages[end] = false
        unread -= 1
        end += 1
      }
      part = UInt64(first) * Self.page..<UInt64(end) * Self.page
    }
    let next = part.lowerBound..<min(part.upperBound, part.lowerBound + UInt64(most))
    part = next.upperBound..<part.upperBound
    return next
  }
}
