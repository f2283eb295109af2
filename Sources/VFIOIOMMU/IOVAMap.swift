import VFIOCore

/// A run of IOVA and the memory behind it.
struct Mapping: Sendable {
  let iova: UInt64
  /// The last address, not the one behind it, which doesn't exist for a mapping that ends at 2^64.
  let last: UInt64
  let memory: any DMAMemory
  /// Where the first byte is in `memory`.
  let offset: UInt64
  let access: DMAAccess
  /// Who made it.
  let owner: DMAOwner

  /// Bytes; never 2^64, since a request's size has 64 bits.
  var size: UInt64 { last &- iova &+ 1 }
}

/// The live mappings of a container, disjoint and ordered by IOVA.
///
/// They are kept in sorted chunks of at most 128, found by the first address of each. A look-up is
/// two binary searches; an insertion or removal moves the mappings of one chunk, and once in dozens
/// the list of chunks, which stays fast for millions of mappings.
struct IOVAMap {
  private(set) var count = 0
  private var chunks: [Chunk] = []
  /// The first address of each chunk.
  private var firsts: [UInt64] = []
  /// Where the last look-up ended: a guess for the next, checked against what is there now.
  private var hit = Position(chunk: 0, slot: 0)

  private static let chunkCapacity = 128

  /// Some mappings. Their addresses are apart, so that a search touches little memory.
  private struct Chunk {
    var starts: [UInt64]
    var mappings: [Mapping]

    init(_ mappings: [Mapping]) {
      self.mappings = mappings
      starts = mappings.map(\.iova)
    }

    mutating func insert(_ mapping: Mapping, at slot: Int) {
      starts.insert(mapping.iova, at: slot)
      mappings.insert(mapping, at: slot)
    }

    mutating func remove(at slot: Int) -> Mapping {
      starts.remove(at: slot)
      return mappings.remove(at: slot)
    }

    /// Removes and returns the mappings from a slot on.
    mutating func split(at slot: Int) -> Chunk {
      let upper = Chunk(Array(mappings[slot...]))
      starts.removeSubrange(slot...)
      mappings.removeSubrange(slot...)
      return upper
    }
  }

  private struct Position {
    var chunk: Int
    var slot: Int
  }

  /// How many chunks are allocated, which is what the map's memory depends on.
  var chunkCount: Int { chunks.count }

  /// All mappings, in the order of their addresses.
  var all: some Sequence<Mapping> { chunks.lazy.flatMap(\.mappings) }

  /// The mapping that contains an address.
  mutating func mapping(containing iova: UInt64) -> Mapping? {
    if hit.chunk < chunks.count, hit.slot < chunks[hit.chunk].mappings.count {
      let guess = chunks[hit.chunk].mappings[hit.slot]
      if guess.iova <= iova, iova <= guess.last { return guess }
    }
    guard let position = lastPosition(startingBy: iova) else { return nil }
    let mapping = chunks[position.chunk].mappings[position.slot]
    guard iova <= mapping.last else { return nil }
    hit = position
    return mapping
  }

  /// The mapping that contains an address, or else the first one behind it.
  func first(from iova: UInt64) -> Mapping? {
    guard let position = lastPosition(startingBy: iova) else {
      return chunks.first?.mappings.first
    }
    let mappings = chunks[position.chunk].mappings
    if iova <= mappings[position.slot].last { return mappings[position.slot] }
    if position.slot + 1 < mappings.count { return mappings[position.slot + 1] }
    return position.chunk + 1 < chunks.count ? chunks[position.chunk + 1].mappings.first : nil
  }

  /// Adds a mapping that overlaps none.
  mutating func insert(_ mapping: Mapping) {
    count += 1
    guard !chunks.isEmpty else {
      chunks = [Chunk([mapping])]
      firsts = [mapping.iova]
      return
    }
    let before = lastPosition(startingBy: mapping.iova)
    let index = before?.chunk ?? 0
    chunks[index].insert(mapping, at: before.map { $0.slot + 1 } ?? 0)
    firsts[index] = chunks[index].starts[0]
    if chunks[index].starts.count > Self.chunkCapacity {
      let upper = chunks[index].split(at: Self.chunkCapacity / 2)
      chunks.insert(upper, at: index + 1)
      firsts.insert(upper.starts[0], at: index + 1)
    }
  }

  /// Removes and returns the mapping that starts at an address.
  @discardableResult
  mutating func remove(startingAt iova: UInt64) -> Mapping? {
    guard let position = position(startingAt: iova) else { return nil }
    count -= 1
    let index = position.chunk
    let mapping = chunks[index].remove(at: position.slot)
    if let first = chunks[index].starts.first {
      firsts[index] = first
      mergeIfSmall(index)
      if index > 0 { mergeIfSmall(index - 1) }
    } else {
      chunks.remove(at: index)
      firsts.remove(at: index)
    }
    return mapping
  }

  /// Joins a chunk with the next when both are small; without it, a client that leaves one mapping in
  /// each chunk would keep the memory of all.
  private mutating func mergeIfSmall(_ index: Int) {
    guard index + 1 < chunks.count,
      chunks[index].starts.count + chunks[index + 1].starts.count <= Self.chunkCapacity / 2
    else { return }
    chunks[index] = Chunk(chunks[index].mappings + chunks.remove(at: index + 1).mappings)
    firsts.remove(at: index + 1)
  }

  private func position(startingAt iova: UInt64) -> Position? {
    guard let position = lastPosition(startingBy: iova),
      chunks[position.chunk].starts[position.slot] == iova
    else { return nil }
    return position
  }

  /// The last mapping that starts at or before an address.
  private func lastPosition(startingBy iova: UInt64) -> Position? {
    let chunk = Self.countOfStarts(in: firsts, by: iova) - 1
    guard chunk >= 0 else { return nil }
    return Position(
      chunk: chunk, slot: Self.countOfStarts(in: chunks[chunk].starts, by: iova) - 1)
  }

  /// How many of some ascending addresses are at or before `iova`.
  private static func countOfStarts(in starts: [UInt64], by iova: UInt64) -> Int {
    var low = 0
    var high = starts.count
    while low < high {
      let middle = (low + high) / 2
      if starts[middle] <= iova { low = middle + 1 } else { high = middle }
    }
    return low
  }
}
