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
  /// Who made it. It lives until the last of them unmaps it.
  var owners: [DMAOwner]

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
  private var chunks: [[Mapping]] = []
  /// The first address of each chunk, apart from them so that the search touches little memory.
  private var firsts: [UInt64] = []
  /// Where the last look-up ended: a guess for the next, checked against what is there now.
  private var hit = Position(chunk: 0, slot: 0)

  private static let chunkCapacity = 128

  private struct Position {
    var chunk: Int
    var slot: Int
  }

  /// How many chunks are allocated, which is what the map's memory depends on.
  var chunkCount: Int { chunks.count }

  /// All mappings, in the order of their addresses.
  var all: FlattenSequence<[[Mapping]]> { chunks.joined() }

  /// The mapping that contains an address.
  mutating func mapping(containing iova: UInt64) -> Mapping? {
    if hit.chunk < chunks.count, hit.slot < chunks[hit.chunk].count {
      let guess = chunks[hit.chunk][hit.slot]
      if guess.iova <= iova, iova <= guess.last { return guess }
    }
    guard let position = lastPosition(startingBy: iova) else { return nil }
    let mapping = chunks[position.chunk][position.slot]
    guard iova <= mapping.last else { return nil }
    hit = position
    return mapping
  }

  /// The mapping that contains an address, or else the first one behind it.
  func first(from iova: UInt64) -> Mapping? {
    guard let position = lastPosition(startingBy: iova) else { return chunks.first?.first }
    let chunk = chunks[position.chunk]
    if iova <= chunk[position.slot].last { return chunk[position.slot] }
    if position.slot + 1 < chunk.count { return chunk[position.slot + 1] }
    return position.chunk + 1 < chunks.count ? chunks[position.chunk + 1].first : nil
  }

  /// Adds a mapping that overlaps none.
  mutating func insert(_ mapping: Mapping) {
    count += 1
    guard !chunks.isEmpty else {
      chunks = [[mapping]]
      firsts = [mapping.iova]
      return
    }
    let before = lastPosition(startingBy: mapping.iova)
    let index = before?.chunk ?? 0
    chunks[index].insert(mapping, at: before.map { $0.slot + 1 } ?? 0)
    firsts[index] = chunks[index][0].iova
    if chunks[index].count > Self.chunkCapacity {
      let upper = Array(chunks[index][(Self.chunkCapacity / 2)...])
      chunks[index].removeSubrange((Self.chunkCapacity / 2)...)
      chunks.insert(upper, at: index + 1)
      firsts.insert(upper[0].iova, at: index + 1)
    }
  }

  /// Replaces the mapping that starts at the same address and has the same size.
  mutating func update(_ mapping: Mapping) {
    guard let position = position(startingAt: mapping.iova) else { return }
    chunks[position.chunk][position.slot] = mapping
  }

  /// Removes and returns the mapping that starts at an address.
  @discardableResult
  mutating func remove(startingAt iova: UInt64) -> Mapping? {
    guard let position = position(startingAt: iova) else { return nil }
    count -= 1
    let index = position.chunk
    let mapping = chunks[index].remove(at: position.slot)
    if chunks[index].isEmpty {
      chunks.remove(at: index)
      firsts.remove(at: index)
    } else {
      firsts[index] = chunks[index][0].iova
      mergeIfSmall(index)
      if index > 0 { mergeIfSmall(index - 1) }
    }
    return mapping
  }

  /// Joins a chunk with the next when both are small; without it, a client that leaves one mapping in
  /// each chunk would keep the memory of all.
  private mutating func mergeIfSmall(_ index: Int) {
    guard index + 1 < chunks.count,
      chunks[index].count + chunks[index + 1].count <= Self.chunkCapacity / 2
    else { return }
    chunks[index] += chunks.remove(at: index + 1)
    firsts.remove(at: index + 1)
  }

  private func position(startingAt iova: UInt64) -> Position? {
    guard let position = lastPosition(startingBy: iova),
      chunks[position.chunk][position.slot].iova == iova
    else { return nil }
    return position
  }

  /// The last mapping that starts at or before an address.
  private func lastPosition(startingBy iova: UInt64) -> Position? {
    var low = 0
    var high = firsts.count
    while low < high {
      let middle = (low + high) / 2
      if firsts[middle] <= iova { low = middle + 1 } else { high = middle }
    }
    guard low > 0 else { return nil }
    let chunk = low - 1
    let mappings = chunks[chunk]
    // The chunk's first mapping starts at or before the address.
    low = 1
    high = mappings.count
    while low < high {
      let middle = (low + high) / 2
      if mappings[middle].iova <= iova { low = middle + 1 } else { high = middle }
    }
    return Position(chunk: chunk, slot: low - 1)
  }
}
