/// Checks of a model's BARs and interrupts, in every build.
enum TableCheck {
  static func check(_ bars: [BARTable], _ interrupts: Interrupts) throws(TableError) {
    var taken = Set<Int>()
    for bar in bars {
      try check(bar)
      for index in bar.index...(bar.is64Bit ? bar.index + 1 : bar.index) {
        guard taken.insert(index).inserted else {
          throw TableError("BAR \(index): declared twice, or the upper half of a 64-bit BAR")
        }
      }
    }
    guard
      interrupts.msi == 0
        || (1...32).contains(interrupts.msi) && interrupts.msi.nonzeroBitCount == 1
    else { throw TableError("msi: \(interrupts.msi) vectors, not a power of two up to 32") }
    if let msix = interrupts.msix { try check(msix) }
  }

  private static func check(_ bar: BARTable) throws(TableError) {
    let last = bar.is64Bit ? 4 : 5
    guard (0...last).contains(bar.index) else {
      throw TableError("BAR \(bar.index): not from 0 to \(last)")
    }
    let limit: UInt64 = bar.is64Bit ? 1 << 62 : 1 << 31
    guard case .memory(let mappable) = bar.content else {
      guard bar.size >= 16, bar.size <= limit, bar.size.nonzeroBitCount == 1 else {
        throw TableError(
          "BAR \(bar.index): size \(hex(bar.size)) is not a power of two from 0x10 to \(hex(limit))"
        )
      }
      return
    }
    guard bar.size > 0, bar.size % 4096 == 0, bar.size <= limit else {
      throw TableError(
        "BAR \(bar.index): \(hex(bar.size)) bytes of memory, not whole pages up to \(hex(limit))")
    }
    var end: UInt64 = 0
    for part in mappable {
      guard part.lowerBound % 4096 == 0, part.upperBound % 4096 == 0, !part.isEmpty,
        part.lowerBound >= end, part.upperBound <= bar.size
      else {
        throw TableError(
          "BAR \(bar.index): mappable \(hex(part.lowerBound))..<\(hex(part.upperBound)) is "
            + "not whole pages of its \(hex(bar.size)) bytes, behind the one before")
      }
      end = part.upperBound
    }
  }

  private static func check(_ msix: MSIX) throws(TableError) {
    guard (1...2048).contains(msix.vectors) else {
      throw TableError("msi-x: \(msix.vectors) vectors, not 1 to 2048")
    }
    // The pending bits come in words of 64.
    let table = (start: msix.table, size: UInt64(16 * msix.vectors), name: "table")
    let pending = (
      start: msix.pending, size: UInt64((msix.vectors + 63) / 64 * 8), name: "pending bits"
    )
    for part in [table, pending] {
      guard part.start % 8 == 0, part.start <= msix.size, part.size <= msix.size - part.start else {
        throw TableError(
          "msi-x: \(part.name) of \(hex(part.size)) bytes at \(hex(part.start)) are not in BAR "
            + "\(msix.bar)'s \(hex(msix.size)) at a multiple of 8")
      }
    }
    guard
      table.start + table.size <= pending.start || pending.start + pending.size <= table.start
    else {
      throw TableError(
        "msi-x: the table at \(hex(table.start)) overlaps the pending bits at \(hex(pending.start))"
      )
    }
  }
}
