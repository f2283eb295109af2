/// The pages that devices have written, one bit each. Memory is used only where a page was written,
/// whatever the size of the mappings.
public struct DirtyPages: Sendable {
  /// The kernel's `DIRTY_BITMAP_PAGES_MAX`: how many pages a bitmap, and so a mapping, may have.
  public static let maximumPages = UInt64(Int32.max)

  /// The bits of pages `64 * key ..< 64 * key + 64`; never 0.
  private var words: [UInt64: UInt64] = [:]

  public init() {}

  /// Bytes of a bitmap for a number of pages: whole 64-bit words, as `struct vfio_bitmap` has it.
  public static func bitmapSize(pages: UInt64) -> UInt64 {
    (pages / 64 + (pages % 64 == 0 ? 0 : 1)) * 8
  }

  /// Marks pages, given by their numbers, as dirty.
  public mutating func mark(_ pages: ClosedRange<UInt64>) {
    for key in pages.lowerBound / 64...pages.upperBound / 64 {
      words[key, default: 0] |= Self.mask(of: pages, in: key)
    }
  }

  /// Makes pages clean.
  public mutating func clear(_ pages: ClosedRange<UInt64>) {
    remove(pages) { _ in }
  }

  /// Makes pages clean and returns which were dirty: bit 0 of byte 0 is the first page's, bits behind
  /// the last page are 0.
  public mutating func takeBitmap(_ pages: ClosedRange<UInt64>) -> [UInt8] {
    let size = Self.bitmapSize(pages: pages.upperBound - pages.lowerBound + 1)
    var bitmap = [UInt8](repeating: 0, count: Int(size))
    remove(pages) { page in
      let bit = Int(page - pages.lowerBound)
      bitmap[bit / 8] |= 1 << UInt8(bit % 8)
    }
    return bitmap
  }

  /// Makes pages clean and tells `body` each that was dirty.
  public mutating func remove(_ pages: ClosedRange<UInt64>, _ body: (UInt64) -> Void) {
    let range = pages.lowerBound / 64...pages.upperBound / 64
    // A range may be far larger than what was written in it.
    if range.upperBound - range.lowerBound < UInt64(words.count) {
      for key in range { remove(pages, in: key, body) }
    } else {
      for key in words.keys.filter(range.contains) { remove(pages, in: key, body) }
    }
  }

  private mutating func remove(
    _ pages: ClosedRange<UInt64>, in key: UInt64, _ body: (UInt64) -> Void
  ) {
    guard let word = words[key] else { return }
    let mask = Self.mask(of: pages, in: key)
    words[key] = word & ~mask == 0 ? nil : word & ~mask
    var bits = word & mask
    while bits != 0 {
      body(key * 64 + UInt64(bits.trailingZeroBitCount))
      bits &= bits - 1
    }
  }

  /// The bits of one word that belong to a range of pages.
  private static func mask(of pages: ClosedRange<UInt64>, in key: UInt64) -> UInt64 {
    let low = key == pages.lowerBound / 64 ? pages.lowerBound % 64 : 0
    let high = key == pages.upperBound / 64 ? pages.upperBound % 64 : 63
    return (UInt64.max << low) & (UInt64.max >> (63 - high))
  }
}
