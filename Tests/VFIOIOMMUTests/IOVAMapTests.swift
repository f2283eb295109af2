import Testing
import VFIOCore

@testable import VFIOIOMMU

/// One entry for each page: the mapping that it belongs to.
private struct NaiveMap {
  var pages: [ClosedRange<UInt64>?]
  let base: UInt64

  init(base: UInt64, count: Int) {
    self.base = base
    pages = Array(repeating: nil, count: count)
  }

  func index(_ iova: UInt64) -> Int { Int((iova - base) / page) }

  func first(from iova: UInt64) -> ClosedRange<UInt64>? {
    pages[index(iova)...].first { $0 != nil } ?? nil
  }

  mutating func set(_ range: ClosedRange<UInt64>, to value: ClosedRange<UInt64>?) {
    for index in index(range.lowerBound)...index(range.upperBound) { pages[index] = value }
  }

  var all: [ClosedRange<UInt64>] {
    var result: [ClosedRange<UInt64>] = []
    for case let range? in pages where result.last != range { result.append(range) }
    return result
  }
}

extension Mapping {
  fileprivate var range: ClosedRange<UInt64> { iova...last }

  fileprivate init(_ range: ClosedRange<UInt64>, _ memory: any DMAMemory) {
    self.init(
      iova: range.lowerBound, last: range.upperBound, memory: memory, offset: 0, access: .read,
      owner: .container)
  }
}

@Suite struct IOVAMapTests {
  @Test(arguments: [1, 2, 3])
  func `a map agrees with one that keeps every page, up to the end of the address space`(
    seed: UInt64
  ) {
    var random = SeededGenerator(seed: seed)
    let pages = 8192
    let base = UInt64.max - UInt64(pages) * page + 1
    var naive = NaiveMap(base: base, count: pages)
    var map = IOVAMap()
    let memory = TestMemory(size: 0)
    var differences = 0
    var mostAlive = 0

    for step in 0..<70_000 {
      let iova = base + UInt64.random(in: 0..<UInt64(pages), using: &random) * page
      // The map grows for a while, then shrinks.
      let grows = step / 7_000 % 2 == 0
      switch Int.random(in: 0..<10, using: &random) {
      case 0..<(grows ? 6 : 2):
        let (end, overflow) = iova.addingReportingOverflow(
          UInt64.random(in: 1...4, using: &random) * page - 1)
        let range = iova...(overflow ? UInt64.max : end)
        let found = map.first(from: iova).map(\.range)
        if found != naive.first(from: iova) { differences += 1 }
        if found.map({ !$0.overlaps(range) }) ?? true {
          map.insert(Mapping(range, memory))
          naive.set(range, to: range)
        }
      case ..<8:
        let expected = naive.first(from: iova)
        if map.first(from: iova)?.range != expected { differences += 1 }
        if let expected {
          if map.remove(startingAt: expected.lowerBound)?.range != expected { differences += 1 }
          naive.set(expected, to: nil)
        }
        // What is inside or behind it doesn't start there.
        if map.remove(startingAt: iova + 1) != nil { differences += 1 }
      default:
        let address = iova + UInt64.random(in: 0..<page, using: &random)
        let expected = naive.pages[naive.index(iova)]
        if map.mapping(containing: address)?.range != expected { differences += 1 }
        if map.mapping(containing: address)?.range != expected { differences += 1 }
      }
      mostAlive = max(mostAlive, map.count)
      if step % 500 == 0 {
        let all = naive.all
        if map.all.map(\.range) != all || map.count != all.count { differences += 1 }
      }
    }
    #expect(differences == 0)
    #expect(mostAlive > 1_000)
  }

  @Test func `memory stays small when most mappings of every chunk go`() {
    var map = IOVAMap()
    let memory = TestMemory(size: 0)
    for index in 0..<20_000 as Range<UInt64> {
      map.insert(Mapping(index * page...index * page + page - 1, memory))
    }
    for index in 0..<20_000 as Range<UInt64> where index % 64 != 0 {
      map.remove(startingAt: index * page)
    }
    #expect(map.count == 313)
    #expect(map.chunkCount <= 2 * 313 / 64 + 1)
    #expect(map.all.map(\.iova) == (0..<313).map { $0 * 64 * page })
  }

  @Test func `a look-up after a removal doesn't find what the last one found`() {
    var map = IOVAMap()
    map.insert(Mapping(0...page - 1, TestMemory(size: 0)))
    #expect(map.mapping(containing: 5) != nil)
    map.remove(startingAt: 0)
    #expect(map.mapping(containing: 5) == nil)
  }
}
