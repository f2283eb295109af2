import VFIOCore

/// A translation control entry: the memory behind one IOMMU page, and what devices may do with it.
struct TCE: Sendable, Equatable {
  /// Where the page begins in its memory.
  var offset: UInt64 = 0
  /// Which memory, by its number in `TCEMemories`.
  var memory: UInt32 = 0
  /// An entry without permission is none, as in the hardware's tables.
  var access: DMAAccess = []
}

/// The entries of a window, by the number of their page.
///
/// The first level is sparse: it has the leaves that hold an entry. So a window of many terabytes costs
/// nothing until it is used, and no more than a leaf, about 1 KiB, for each entry then.
struct TCETable {
  /// Entries of a leaf.
  static let leafSize: UInt64 = 64

  /// Never without an entry.
  private var leaves: [UInt64: Leaf] = [:]

  private struct Leaf {
    var entries = [TCE](repeating: TCE(), count: Int(leafSize))
    /// How many are set.
    var count = 0

    /// Counts the entries of some slots as displaced.
    mutating func displace(_ slots: Range<Int>, _ displaced: inout [UInt32: Int]) {
      guard count > 0 else { return }
      // Neighbours mostly have the same memory, and are counted at once.
      var memory: UInt32 = 0
      var found = 0
      for entry in entries[slots] where !entry.access.isEmpty {
        if entry.memory != memory, found > 0 {
          displaced[memory, default: 0] += found
          found = 0
        }
        memory = entry.memory
        found += 1
        count -= 1
      }
      if found > 0 { displaced[memory, default: 0] += found }
    }

    mutating func set(_ slots: Range<Int>, _ first: TCE, pageSize: UInt64) {
      var entry = first
      var places = entries.mutableSpan
      for slot in slots {
        places[slot] = entry
        entry.offset &+= pageSize
      }
      count += slots.count
    }

    mutating func clear(_ slots: Range<Int>) {
      var places = entries.mutableSpan
      for slot in slots { places[slot] = TCE() }
    }
  }

  var leafCount: Int { leaves.count }

  /// How many leaves `set` would add for some pages, or more than `limit` if there are more.
  func newLeaves(for pages: Range<UInt64>, limit: Int) -> Int {
    guard let numbers = Self.leaves(of: pages) else { return 0 }
    guard numbers.upperBound - numbers.lowerBound < UInt64(limit + leaves.count) else {
      return limit + 1
    }
    return numbers.count { leaves[$0] == nil }
  }

  /// The entries from a page on that continue its memory with the same permission, up to the leaf's end;
  /// nil when the page has none.
  func run(from page: UInt64, pageSize: UInt64) -> (first: TCE, pages: UInt64)? {
    guard let leaf = leaves[page / Self.leafSize] else { return nil }
    let entries = leaf.entries[Int(page % Self.leafSize)...]
    guard let first = entries.first, !first.access.isEmpty else { return nil }
    var next = first
    let pages = entries.prefix { entry in
      defer { next.offset &+= pageSize }
      return entry == next
    }
    return (first, UInt64(pages.count))
  }

  /// Sets the entries of some pages, the first to `entry`, each other to the memory that follows.
  /// `displaced` counts the entries that were there, by their memory.
  mutating func set(
    _ pages: Range<UInt64>, _ entry: TCE, pageSize: UInt64, displaced: inout [UInt32: Int]
  ) {
    guard let numbers = Self.leaves(of: pages) else { return }
    var entry = entry
    for number in numbers {
      let slots = Self.slots(of: pages, in: number)
      var leaf = leaves.removeValue(forKey: number) ?? Leaf()
      leaf.displace(slots, &displaced)
      leaf.set(slots, entry, pageSize: pageSize)
      leaves[number] = leaf
      entry.offset &+= UInt64(slots.count) * pageSize
    }
  }

  /// Removes the entries of some pages, as `set` does.
  mutating func clear(_ pages: Range<UInt64>, displaced: inout [UInt32: Int]) {
    guard let numbers = Self.leaves(of: pages) else { return }
    // A range may be far larger than what is set in it.
    if numbers.upperBound - numbers.lowerBound < UInt64(leaves.count) {
      for number in numbers { clear(pages, in: number, &displaced) }
    } else {
      for number in leaves.keys.filter(numbers.contains) { clear(pages, in: number, &displaced) }
    }
  }

  private mutating func clear(
    _ pages: Range<UInt64>, in number: UInt64, _ displaced: inout [UInt32: Int]
  ) {
    guard var leaf = leaves.removeValue(forKey: number) else { return }
    let slots = Self.slots(of: pages, in: number)
    leaf.displace(slots, &displaced)
    guard leaf.count > 0 else { return }
    leaf.clear(slots)
    leaves[number] = leaf
  }

  /// The numbers of the leaves that some pages are in.
  private static func leaves(of pages: Range<UInt64>) -> ClosedRange<UInt64>? {
    guard !pages.isEmpty else { return nil }
    return pages.lowerBound / leafSize...(pages.upperBound - 1) / leafSize
  }

  /// Where in a leaf some pages are.
  private static func slots(of pages: Range<UInt64>, in number: UInt64) -> Range<Int> {
    let leaf = number * leafSize..<(number + 1) * leafSize
    let part = pages.clamped(to: leaf)
    return Int(part.lowerBound - leaf.lowerBound)..<Int(part.upperBound - leaf.lowerBound)
  }
}
