import Locks
import SystemPackage

import struct Synchronization.Atomic

/// The pages of client memory that one device has written, while a client wants to know: the device
/// features `VFIO_DEVICE_FEATURE_DMA_LOGGING_START`, `_STOP` and `_REPORT`.
public final class DirtyLog: Sendable {
  /// The smallest page that is logged by itself.
  public static let smallestPage: UInt64 = 4096
  /// How many ranges may be logged, as in the kernel: what fits into a page.
  public static let mostRanges = 256

  /// Spares the transfers of devices that aren't logged the lock.
  private let isStarted = Atomic(false)
  /// Guards the log, nil while it is off. A leaf.
  private let log = Mutex<Log?>(nil)

  private struct Log {
    let pageSize: UInt64
    /// What is logged; with none, everything.
    let ranges: [ClosedRange<UInt64>]
    var pages = DirtyPages()
  }

  public init() {}

  /// Starts with all pages clean, and returns the page size that it chose: the one asked for if that is
  /// a power of two from 4096 up, else 4096. `ranges` are pairs of address and length; without any, all
  /// that the device writes is logged. Does nothing when started again with the same page size.
  ///
  /// `EINVAL` for the page size 0, when started with another one, and for a range that is empty, not of
  /// whole pages, or overlaps another; `E2BIG` for more than 256 ranges; `EOVERFLOW` for one beyond 2^64.
  @discardableResult public func start(
    pageSize: UInt64, ranges: [(iova: UInt64, length: UInt64)] = []
  ) throws(Errno) -> UInt64 {
    guard pageSize > 0 else { throw .invalidArgument }
    guard ranges.count <= Self.mostRanges else { throw .argListTooLong }
    let isGood = pageSize >= Self.smallestPage && pageSize.nonzeroBitCount == 1
    let chosen = isGood ? pageSize : Self.smallestPage
    var logged: [ClosedRange<UInt64>] = []
    for (iova, length) in ranges {
      guard length > 0, iova % chosen == 0, length % chosen == 0 else { throw .invalidArgument }
      let (last, wraps) = iova.addingReportingOverflow(length - 1)
      guard !wraps else { throw .overflow }
      guard !logged.contains(where: { $0.overlaps(iova...last) }) else { throw .invalidArgument }
      logged.append(iova...last)
    }
    try log.withLock { log throws(Errno) in
      if let log {
        guard log.pageSize == pageSize else { throw .invalidArgument }
        return
      }
      log = Log(pageSize: chosen, ranges: logged)
      isStarted.store(true, ordering: .relaxed)
    }
    return chosen
  }

  public var isOn: Bool { isStarted.load(ordering: .relaxed) }

  /// Forgets everything; nothing is logged until the next start.
  public func stop() {
    log.withLock { log in
      log = nil
      isStarted.store(false, ordering: .relaxed)
    }
  }

  /// The device has written these bytes.
  func mark(_ written: ClosedRange<UInt64>) {
    guard isOn else { return }
    log.withLock { log in
      guard let pageSize = log?.pageSize, let ranges = log?.ranges else { return }
      for range in ranges.isEmpty ? [0...UInt64.max] : ranges where range.overlaps(written) {
        let part = written.clamped(to: range)
        log?.pages.mark(part.lowerBound / pageSize...part.upperBound / pageSize)
      }
    }
  }

  /// Bytes of the bitmap that `report` gives: a bit for each page, in whole 64-bit words. Throws as it
  /// does for the same length and page size.
  public static func bitmapSize(length: UInt64, pageSize: UInt64) throws(Errno) -> UInt64 {
    guard pageSize.nonzeroBitCount == 1, length >= pageSize else { throw .invalidArgument }
    return DirtyPages.bitmapSize(pages: (length - 1) / pageSize + 1)
  }

  /// Which pages of `pageSize` bytes, counted from `iova`, were written: bit 0 of byte 0 is the first
  /// one's, bits behind the last are 0. Pages that are wholly in the range are clean from now on.
  ///
  /// `EINVAL` when the log is off, and for a page size that isn't a power of two or exceeds the length;
  /// `EOVERFLOW` for a range beyond 2^64; `E2BIG` for a bitmap larger than the kernel's limit.
  public func report(iova: UInt64, length: UInt64, pageSize: UInt64) throws(Errno) -> [UInt8] {
    let size = try Self.bitmapSize(length: length, pageSize: pageSize)
    let (last, wraps) = iova.addingReportingOverflow(length - 1)
    guard !wraps else { throw .overflow }
    guard size <= DirtyPages.bitmapSize(pages: DirtyPages.maximumPages) else {
      throw .argListTooLong
    }
    return try log.withLock { log throws(Errno) in
      guard let own = log?.pageSize else { throw .invalidArgument }
      var bitmap = [UInt8](repeating: 0, count: Int(size))
      var partlyReported: [UInt64] = []
      log?.pages.remove(iova / own...last / own) { page in
        let whole = page * own...page * own + (own - 1)
        let part = whole.clamped(to: iova...last)
        if part != whole { partlyReported.append(page) }
        for bit in (part.lowerBound - iova) / pageSize...(part.upperBound - iova) / pageSize {
          bitmap[Int(bit / 8)] |= 1 << UInt8(bit % 8)
        }
      }
      for page in partlyReported { log?.pages.mark(page...page) }
      return bitmap
    }
  }
}
