import SystemPackage

/// A piece of a scatter list: `count` bytes of client memory at `iova`.
public struct DMAPiece: Sendable, Equatable {
  public var iova: UInt64
  public var count: Int

  public init(iova: UInt64, count: Int) {
    self.iova = iova
    self.count = count
  }
}

/// Why a transfer between a file and client memory ended early.
public enum DMATransferError: Error, Sendable, Equatable {
  /// The client's memory. What was transferred before is in `completed`.
  case fault(DMAFault)
  /// The file's error.
  case file(Errno)
}

// Transfers between client memory and a file of the device's own, such as a disk's image.
extension DMA {
  /// Fills pieces, in their order, from a file at `position`; `preadv`. Returns how many bytes there
  /// were, fewer than the pieces have at the file's end. Nothing is copied on the way into files that the
  /// client mapped.
  public func read(
    _ file: FileDescriptor, at position: Int, into pieces: [DMAPiece]
  ) throws(DMATransferError) -> Int {
    try transfer(pieces, .write) { (memory, ranges, done) throws(Errno) in
      try memory.read(file, at: Self.place(position, done), into: ranges)
    }
  }

  /// Writes pieces to a file at `position`; `pwritev`. Returns how many bytes the file took.
  public func write(
    _ pieces: [DMAPiece], to file: FileDescriptor, at position: Int
  ) throws(DMATransferError) -> Int {
    try transfer(pieces, .read) { (memory, ranges, done) throws(Errno) in
      try memory.write(ranges, to: file, at: Self.place(position, done))
    }
  }

  private typealias Move =
    (any DMAMemory, [ClosedRange<UInt64>], _ done: Int) throws(Errno) -> Int

  /// `EINVAL` beyond what a file can have, as from the kernel.
  private static func place(_ position: Int, _ done: Int) throws(Errno) -> Int {
    let (place, overflow) = position.addingReportingOverflow(done)
    guard !overflow else { throw .invalidArgument }
    return place
  }

  /// Moves run by run: consecutive pieces in one memory.
  private func transfer(
    _ pieces: [DMAPiece], _ access: DMAAccess, _ move: Move
  ) throws(DMATransferError) -> Int {
    var pieces = pieces.filter { $0.count > 0 }[...]
    var done = 0
    while let first = pieces.first {
      let count: Int?
      do {
        count = try withRun(pieces, access) { (memory, ranges) throws(Errno) in
          try move(memory, ranges, done)
        }
      } catch {
        // A file has no EFAULT of its own.
        throw error == .badAddress ? .fault(fault(first.iova, access, done)) : .file(error)
      }
      guard let count else { continue }
      if count == 0 { return done }
      done += count
      pieces = pieces.skipping(count)
    }
    return done
  }
}

extension ArraySlice<DMAPiece> {
  /// What is left behind the first `count` bytes.
  fileprivate func skipping(_ count: Int) -> ArraySlice {
    var (rest, count) = (self, count)
    while let first = rest.first, first.count <= count {
      count -= first.count
      rest = rest.dropFirst()
    }
    if let first = rest.first, count > 0 {
      rest[rest.startIndex] = DMAPiece(
        iova: first.iova &+ UInt64(count), count: first.count - count)
    }
    return rest
  }
}
