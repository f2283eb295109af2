import Locks
import SystemPackage
import VFIOCore

extension Type1 {
  /// Bytes that are copied in one hold of the lock, so that a long transfer keeps nobody waiting long.
  private static let piece = 65536

  func dmaRead(_ iova: UInt64, into bytes: inout MutableSpan<UInt8>) throws(DMAFault) {
    try transfer(iova, bytes.count, .read) { (memory, offset, range) throws(Errno) in
      var part = bytes._mutatingExtracting(range)
      try memory.read(at: offset, into: &part)
    }
  }

  func dmaWrite(_ bytes: Span<UInt8>, to iova: UInt64) throws(DMAFault) {
    try transfer(iova, bytes.count, .write) { (memory, offset, range) throws(Errno) in
      try memory.write(bytes.extracting(range), at: offset)
    }
  }

  /// Copies piece by piece, across mappings that touch. A transfer that would go on behind 2^64
  /// faults there, at address 0.
  private func transfer(
    _ iova: UInt64, _ count: Int, _ access: DMAAccess,
    _ copy: (any DMAMemory, UInt64, Range<Int>) throws(Errno) -> Void
  ) throws(DMAFault) {
    var completed = 0
    while completed < count {
      let (address, wraps) = iova.addingReportingOverflow(UInt64(completed))
      let copied = state.withLock { state in
        guard !wraps, let mapping = state.map.mapping(containing: address),
          mapping.access.contains(access)
        else { return 0 }
        let mapped = Int(clamping: mapping.last &- address &+ 1)
        let copied = Self.copyPiece(
          min(count - completed, mapped, Self.piece),
          toPageEnd: Int(Self.pageSize - address % Self.pageSize)
        ) { (length) throws(Errno) in
          try copy(
            mapping.memory, mapping.offset &+ (address &- mapping.iova),
            completed..<completed + length)
        }
        if access == .write, copied > 0 {
          state.dirtyPages?.mark(Self.pages(address...address + UInt64(copied - 1)))
        }
        return copied
      }
      guard copied > 0 else { throw DMAFault(iova: address, completed: completed) }
      completed += copied
    }
  }

  /// Copies a piece, or what of it is in the first page if the whole piece can't be reached, so that
  /// a fault tells the page it met. Returns the number of bytes, 0 if even those can't.
  private static func copyPiece(
    _ length: Int, toPageEnd: Int, _ copy: (Int) throws(Errno) -> Void
  ) -> Int {
    do {
      try copy(length)
      return length
    } catch {
      return length > toPageEnd ? copyPiece(toPageEnd, toPageEnd: toPageEnd, copy) : 0
    }
  }
}
