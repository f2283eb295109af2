/// The live mappings of a container, disjoint and ordered by IOVA. Their addresses are multiples of
/// 4 KiB.
///
/// They are kept in chunks of at most 127, found by the first address of each. A look-up is two
/// binary searches; an insertion or removal moves at most a KiB of addresses and no mapping, and once
/// in dozens the list of chunks, which stays fast for millions of mappings. What then takes the time
/// is memory that isn't in the processor's cache, so each step touches as little of it as it can.
struct IOVAMap {
  private(set) var count = 0
  private var chunks: [Chunk] = []
  /// The first address of each chunk.
  private var firsts: [UInt64] = []

  private struct Position {
    var chunk: Int
    var index: Int
  }

  /// How many chunks are allocated, which is what the map's memory depends on.
  var chunkCount: Int { chunks.count }

  /// All mappings, in the order of their addresses.
  var all: some Sequence<Mapping> { chunks.lazy.flatMap(\.all) }

  /// The mapping that contains an address.
  func mapping(containing iova: UInt64) -> Mapping? {
    guard let position = lastPosition(startingBy: iova),
      let mapping = chunks[position.chunk][position.index], iova <= mapping.last
    else { return nil }
    return mapping
  }

  /// The mapping that contains an address, or else the first one behind it.
  func first(from iova: UInt64) -> Mapping? {
    guard let position = lastPosition(startingBy: iova) else { return chunks.first?[0] }
    if let mapping = chunks[position.chunk][position.index], iova <= mapping.last {
      return mapping
    }
    if let next = chunks[position.chunk][position.index + 1] { return next }
    return position.chunk + 1 < chunks.count ? chunks[position.chunk + 1][0] : nil
  }

  /// Adds a mapping that overlaps none.
  mutating func insert(_ mapping: Mapping) {
    if chunks.isEmpty {
      chunks = [Chunk([])]
      firsts = [mapping.iova]
    }
    let before = lastPosition(startingBy: mapping.iova)
    let chunk = before?.chunk ?? 0
    chunks[chunk].insert(mapping, at: before.map { $0.index + 1 } ?? 0)
    count += 1
    if before == nil { firsts[0] = mapping.iova }
    if chunks[chunk].count == Chunk.capacity { split(chunk) }
  }

  /// Removes and returns the mapping that starts at an address.
  @discardableResult
  mutating func remove(startingAt iova: UInt64) -> Mapping? {
    guard let position = position(startingAt: iova) else { return nil }
    count -= 1
    let chunk = position.chunk
    let mapping = chunks[chunk].remove(at: position.index)
    if chunks[chunk].count == 0 {
      // The last chunk stays, for a client that maps and unmaps again and again.
      guard count > 0 else { return mapping }
      chunks.remove(at: chunk)
      firsts.remove(at: chunk)
    } else {
      if position.index == 0 { firsts[chunk] = chunks[chunk].start(at: 0) }
      // Asked first, so that the neighbours aren't touched for nothing.
      if chunks[chunk].count <= Chunk.capacity / 2 {
        mergeIfSmall(chunk)
        if chunk > 0 { mergeIfSmall(chunk - 1) }
      }
    }
    return mapping
  }

  private mutating func split(_ chunk: Int) {
    let all = Array(chunks[chunk].all)
    let upper = Chunk(all[(all.count / 2)...])
    chunks[chunk] = Chunk(all[..<(all.count / 2)])
    chunks.insert(upper, at: chunk + 1)
    firsts.insert(upper.start(at: 0), at: chunk + 1)
  }

  /// Joins a chunk with the next when both are small; without it, a client that leaves one mapping in
  /// each chunk would keep the memory of all.
  private mutating func mergeIfSmall(_ chunk: Int) {
    guard chunk + 1 < chunks.count,
      chunks[chunk].count + chunks[chunk + 1].count <= Chunk.capacity / 2
    else { return }
    firsts.remove(at: chunk + 1)
    for mapping in chunks.remove(at: chunk + 1).all {
      chunks[chunk].insert(mapping, at: chunks[chunk].count)
    }
  }

  private func position(startingAt iova: UInt64) -> Position? {
    guard let position = lastPosition(startingBy: iova),
      chunks[position.chunk].start(at: position.index) == iova
    else { return nil }
    return position
  }

  /// The last mapping that starts at or before an address.
  private func lastPosition(startingBy iova: UInt64) -> Position? {
    let chunk = firsts.span.count(upTo: iova) - 1
    guard count > 0, chunk >= 0 else { return nil }
    return Position(chunk: chunk, index: chunks[chunk].countOfStarts(by: iova) - 1)
  }
}

/// Some mappings, in slots that they keep as long as they live.
private struct Chunk {
  static let capacity = 128
  /// The bits of an address that are free to hold a slot, since mappings start at pages.
  private static let slotMask: UInt64 = 0xFFF

  private(set) var count = 0
  /// The addresses of the mappings, ascending, each with the slot of its mapping in the low bits;
  /// behind them the numbers of the free slots.
  private var entries = (0..<UInt64(capacity)).map { $0 }
  private var slots = [Mapping?](repeating: nil, count: capacity)

  /// Takes mappings in the order of their addresses.
  init(_ mappings: some Sequence<Mapping>) {
    for mapping in mappings { insert(mapping, at: count) }
  }

  var all: some Sequence<Mapping> { (0..<count).lazy.compactMap { self[$0] } }

  /// The mapping at a place in the order; nil behind the last one.
  subscript(index: Int) -> Mapping? {
    get { index < count ? slots[slot(at: index)] : nil }
    set { slots[slot(at: index)] = newValue }
  }

  private func slot(at index: Int) -> Int { Int(entries[index] & Self.slotMask) }

  func start(at index: Int) -> UInt64 { entries[index] & ~Self.slotMask }

  mutating func insert(_ mapping: Mapping, at index: Int) {
    let free = entries.remove(at: count)
    entries.insert(mapping.iova | free, at: index)
    count += 1
    self[index] = mapping
  }

  mutating func remove(at index: Int) -> Mapping? {
    let slot = slot(at: index)
    entries.remove(at: index)
    entries.append(UInt64(slot))
    count -= 1
    return slots[slot].take()
  }

  /// How many mappings start at or before an address.
  func countOfStarts(by iova: UInt64) -> Int {
    entries.span.extracting(first: count).count(upTo: iova | Self.slotMask)
  }
}

extension Span<UInt64> {
  /// How many of these ascending numbers are at most `bound`. Without branches, since a processor
  /// can't guess them.
  fileprivate func count(upTo bound: UInt64) -> Int {
    var low = 0
    var rest = count
    while rest > 0 {
      let half = rest / 2
      let isBelow = self[low + half] <= bound
      low = isBelow ? low + half + 1 : low
      rest = isBelow ? rest - half - 1 : half
    }
    return low
  }
}
