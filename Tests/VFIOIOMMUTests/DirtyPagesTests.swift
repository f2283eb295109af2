import Testing
import VFIOCore

@testable import VFIOIOMMU

@Suite struct DirtyPagesTests {
  @Test func `dirty pages agree with a naive set of page numbers`() {
    var random = SeededGenerator(seed: 7)
    var dirty = DirtyPages()
    var naive: Set<UInt64> = []
    var differences = 0
    for _ in 0..<20_000 {
      let first = UInt64.random(in: 0..<2_000, using: &random)
      let pages = first...first + UInt64.random(in: 0..<200, using: &random)
      switch Int.random(in: 0..<4, using: &random) {
      case 0, 1:
        dirty.mark(pages)
        naive.formUnion(pages)
      case 2:
        dirty.clear(pages)
        naive.subtract(pages)
      default:
        var expected = [UInt8](repeating: 0, count: (pages.count + 63) / 64 * 8)
        for page in pages where naive.contains(page) {
          expected[Int(page - first) / 8] |= 1 << UInt8((page - first) % 8)
        }
        if dirty.takeBitmap(pages) != expected { differences += 1 }
        naive.subtract(pages)
      }
    }
    #expect(differences == 0)
  }

  @Test func `a range of all pages costs no more than the pages that were written in it`() {
    var dirty = DirtyPages()
    dirty.mark(1 << 51...1 << 51)
    dirty.clear(0...1 << 52)
    #expect(dirty.takeBitmap(1 << 51...1 << 51) == [UInt8](repeating: 0, count: 8))
  }
}
