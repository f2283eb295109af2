import VFIOCore

/// The registers of one BAR, by offset. A class, and rows used in place, because an access is short
/// enough for the copy of a row to show.
final class RegisterFile: Sendable {
  private let rows: [RegisterRow]
  private let access: RegisterAccess

  /// Throws if a row is outside the BAR's `size` bytes, overlaps another or has no storage.
  init(
    _ rows: [RegisterRow], _ access: RegisterAccess, bar: Int, size: UInt64
  ) throws(TableError) {
    self.rows = rows.sorted { $0.offset < $1.offset }
    self.access = access
    var previous: (offset: UInt64, end: UInt64)?
    for row in self.rows {
      let name = "register \(hex(row.offset)) of BAR \(bar)"
      guard case 1...8 = row.width, row.width.nonzeroBitCount == 1 else {
        throw TableError("\(name): a property of \(row.width) bytes, not of 1, 2, 4 or 8")
      }
      if case .notStored = row.source {
        throw TableError("\(name): its property is computed or observed, not stored")
      }
      let (end, overflow) = row.offset.addingReportingOverflow(UInt64(row.width))
      guard !overflow, end <= size else {
        throw TableError("\(name): its \(row.width) bytes end beyond the BAR's \(hex(size))")
      }
      if let previous, row.offset < previous.end {
        throw TableError("\(name): overlaps the register at \(hex(previous.offset))")
      }
      for case let value? in row.ioEvents where row.width < 8 && value >> (8 * row.width) > 0 {
        throw TableError(
          "\(name): an eventfd for \(hex(value)), which has more than \(row.width) bytes")
      }
      guard Set(row.ioEvents).count == row.ioEvents.count else {
        throw TableError("\(name): two eventfds for the same value")
      }
      previous = (row.offset, end)
    }
  }

  /// The registers that a property holds.
  func saved(region: Int) -> [SavedPart] {
    rows.compactMap { row in
      guard case .field(let field) = row.source else { return nil }
      return SavedPart(kind: .register, region: region, offset: row.offset) {
        [width = row.width] cell in
        Array(littleEndian(cell.load(field, width: width)).prefix(width))
      } store: { [width = row.width] cell, bytes in
        let value = bytes.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        cell.store(value, field, width: width)
      }
    }
  }

  /// The writes for which an eventfd may stand.
  var ioEvents: [IOEvent] {
    rows.flatMap { row in
      row.ioEvents.map { IOEvent(offset: row.offset, size: UInt64(row.width), value: $0) }
    }
  }

  /// Reads from `offset`; the caller has checked that the bytes are inside the BAR.
  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>, _ cell: Cell) {
    for index in bytes.indices { bytes[index] = 0xFF }
    let end = offset + UInt64(bytes.count)
    var index = firstRow(endingAfter: offset)
    while index < rows.count, rows[index].offset < end {
      let start = rows[index].offset
      let width = rows[index].width
      if accepts(start, width, offset, bytes.count) {
        let value = rows[index].read(cell)
        for byte in max(offset, start)..<min(end, start + UInt64(width)) {
          bytes[Int(byte - offset)] = UInt8(truncatingIfNeeded: value &>> (8 * (byte - start)))
        }
      }
      index += 1
    }
  }

  /// Writes at `offset`; the caller has checked that the bytes are inside the BAR.
  func write(_ bytes: Span<UInt8>, at offset: UInt64, _ cell: Cell, _ bus: inout Bus) {
    let end = offset + UInt64(bytes.count)
    var index = firstRow(endingAfter: offset)
    while index < rows.count, rows[index].offset < end {
      let start = rows[index].offset
      let width = rows[index].width
      if accepts(start, width, offset, bytes.count) {
        var value: UInt64 = 0
        var enabled: UInt64 = 0
        for byte in max(offset, start)..<min(end, start + UInt64(width)) {
          let shift = 8 * (byte - start)
          value |= UInt64(bytes[Int(byte - offset)]) &<< shift
          enabled |= 0xFF &<< shift
        }
        if case .words = access { enabled = ~0 }
        rows[index].write(value, enabled: enabled, cell, &bus)
      }
      index += 1
    }
  }

  /// Whether an access of `count` bytes at `offset` reaches the register of `width` bytes at `start`.
  private func accepts(_ start: UInt64, _ width: Int, _ offset: UInt64, _ count: Int) -> Bool {
    switch access {
    case .bytes: true
    case .words: offset == start && (count == 4 || count == 8) && count <= width
    }
  }

  private func firstRow(endingAfter offset: UInt64) -> Int {
    var low = 0
    var high = rows.count
    while low < high {
      let middle = (low + high) / 2
      if rows[middle].offset + UInt64(rows[middle].width) <= offset {
        low = middle + 1
      } else {
        high = middle
      }
    }
    return low
  }
}
