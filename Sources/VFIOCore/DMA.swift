import Locks
import SystemPackage

/// A device's way to its clients' memory, through its container's IOMMU, as long as its group isn't
/// quarantined. A device gets it when it is opened and drops it with its last release.
///
/// It keeps the last translation, and holds its lock while a copy uses that. So whoever removes a
/// translation from the IOMMU and then calls `IOTLB.invalidate` knows that nothing uses it any more.
public final class DMA: Sendable {
  let iommu: any IOMMU
  private let group: IOMMUGroup
  /// Faults of all the device's transfers, not of this opening's alone.
  public let faults: DMAFaults
  /// What the device has written.
  public let log: DirtyLog
  /// The client by message, for devices that want it so even where they could reach its memory.
  private let messages: (any RemoteMemory)?
  private let use = IOTLB.Use()

  public init(
    iommu: any IOMMU, group: IOMMUGroup, faults: DMAFaults = DMAFaults(),
    log: DirtyLog = DirtyLog(), messages: (any RemoteMemory)? = nil
  ) {
    self.iommu = iommu
    self.group = group
    self.faults = faults
    self.log = log
    self.messages = messages
    iommu.iotlb.add(use)
  }

  deinit { iommu.iotlb.remove(use) }

  /// Whether an address is mapped for `access`.
  public func reaches(_ iova: UInt64, _ access: DMAAccess) -> Bool {
    use.state.withLock { translate(iova, &$0)?.access.isSuperset(of: access) ?? false }
  }

  /// Copies from client memory at `iova`; throws at the first address that isn't mapped for reading.
  /// `byMessage` asks the client of a device's own socket for the bytes, however it mapped them.
  public func read(
    _ iova: UInt64, into bytes: inout MutableSpan<UInt8>, byMessage: Bool = false
  ) throws(DMAFault) {
    try transfer(iova, bytes.count, .read, byMessage: byMessage) {
      (memory, offset, range) throws(Errno) in
      var part = bytes._mutatingExtracting(range)
      try memory.read(at: offset, into: &part)
    }
  }

  /// Copies to client memory at `iova`; throws at the first address that isn't mapped for writing.
  public func write(
    _ bytes: Span<UInt8>, to iova: UInt64, byMessage: Bool = false
  ) throws(DMAFault) {
    try transfer(iova, bytes.count, .write, byMessage: byMessage) {
      (memory, offset, range) throws(Errno) in
      try memory.write(bytes.extracting(range), at: offset)
    }
  }

  /// The little-endian integer in client memory at `iova`, in one access of its size where it is aligned.
  public func load<Value: FixedWidthInteger>(_ iova: UInt64) throws(DMAFault) -> Value {
    var bytes = InlineArray<16, UInt8>(repeating: 0)
    let size = Value.bitWidth / 8
    var all = bytes.mutableSpan
    var span = all._mutatingExtracting(0..<size)
    try read(iova, into: &span)
    var value: Value = 0
    for index in (0..<size).reversed() {
      value = value << 8 | Value(truncatingIfNeeded: bytes[index])
    }
    return value
  }

  /// Stores a little-endian integer, as `load` reads it.
  public func store<Value: FixedWidthInteger>(_ value: Value, at iova: UInt64) throws(DMAFault) {
    var bytes = InlineArray<16, UInt8>(repeating: 0)
    let size = Value.bitWidth / 8
    for index in 0..<size { bytes[index] = UInt8(truncatingIfNeeded: value >> (8 * index)) }
    try write(bytes.span.extracting(0..<size), to: iova)
  }

  /// Changes a little-endian integer in client memory at `iova` in one step, and returns what it was;
  /// PCI Express's AtomicOps. The address must be a multiple of the integer's size, and the memory a
  /// client's file, mapped for reading and writing: everything else faults.
  public func update(_ iova: UInt64, _ operation: AtomicOperation) throws(DMAFault) -> UInt64 {
    var old: UInt64 = 0
    // An aligned integer lies in one page, so it is one piece.
    guard iova.isMultiple(of: UInt64(operation.size)) else { throw fault(iova, .write, 0) }
    try transfer(iova, operation.size, [.read, .write]) { (memory, offset, range) throws(Errno) in
      guard range.count == operation.size else { throw .badAddress }
      old = try memory.update(at: offset, operation)
    }
    return old
  }

  /// Bytes that are copied in one hold of the lock, so that a long transfer keeps nobody waiting long.
  private static let piece = 65536

  /// Copies piece by piece, across mappings that touch. A transfer that would go on behind 2^64
  /// faults there, at address 0.
  private func transfer(
    _ iova: UInt64, _ count: Int, _ access: DMAAccess, byMessage: Bool = false,
    _ copy: (any DMAMemory, UInt64, Range<Int>) throws(Errno) -> Void
  ) throws(DMAFault) {
    var completed = 0
    while completed < count {
      let (address, wraps) = iova.addingReportingOverflow(UInt64(completed))
      guard !wraps, !group.isQuarantined else { throw fault(address, access, completed) }
      let copied = copyPiece(
        at: address, min(count - completed, Self.piece), access, byMessage
      ) {
        (memory, offset, length) throws(Errno) in
        try copy(memory, offset, completed..<completed + length)
      }
      guard let copied else { continue }
      guard copied > 0 else { throw fault(address, access, completed) }
      completed += copied
    }
  }

  /// Copies what of a piece is behind one translation, and returns how much; 0 for a fault, and nil when
  /// the translation was taken back meanwhile, and there may be another.
  private func copyPiece(
    at iova: UInt64, _ count: Int, _ access: DMAAccess, _ byMessage: Bool,
    _ copy: (any DMAMemory, UInt64, Int) throws(Errno) -> Void
  ) -> Int? {
    enum Outcome {
      case copied(Int)
      case waits(RemoteUse, offset: UInt64, Int)
    }
    let outcome = use.state.withLock { state -> Outcome in
      guard let translation = translate(iova, &state), translation.access.isSuperset(of: access)
      else { return .copied(0) }
      var length = translation.length(from: iova, most: count)
      var offset = translation.offset &+ (iova &- translation.range.lowerBound)
      var remote = translation.memory.remote
      // By message, addresses are those that the device uses.
      if byMessage, let messages { (remote, offset) = (messages, iova) }
      if let remote {
        length = min(length, remote.limit)
        let use = begin(remote, iova, length, access, &state)
        return .waits(use, offset: offset, length)
      }
      let copied = Self.copy(length, toPageEnd: Int(4096 - iova % 4096)) { length throws(Errno) in
        try copy(translation.memory, offset, length)
      }
      if copied > 0, access.contains(.write) { wrote(iova...iova + UInt64(copied - 1)) }
      return .copied(copied)
    }
    switch outcome {
    case .copied(let count): return count
    case .waits(let use, let offset, let length):
      let succeeded = (try? copy(use.transfer, offset, length)) != nil
      let isMapped = end(use)
      return succeeded ? length : isMapped ? 0 : nil
    }
  }

  /// Calls `move` with the memory behind the first piece, and where in it that piece is and those that
  /// follow it there, as far as one translation reaches. `EFAULT` where nothing is mapped for `access`;
  /// nil as from `copyPiece`.
  func withRun(
    _ pieces: ArraySlice<DMAPiece>, _ access: DMAAccess,
    _ move: (any DMAMemory, [ClosedRange<UInt64>]) throws(Errno) -> Int
  ) throws(Errno) -> Int? {
    var ranges: [ClosedRange<UInt64>] = []
    var remote: RemoteUse?
    let count = try use.state.withLock { state throws(Errno) -> Int in
      guard let first = pieces.first, !group.isQuarantined,
        let translation = translate(first.iova, &state), translation.access.isSuperset(of: access)
      else { throw .badAddress }
      let memory = translation.memory
      var room = Self.mostBytes
      for piece in pieces.prefix(memory.remote == nil ? Self.mostRanges : 1) {
        guard room > 0, translation.range.contains(piece.iova) else { break }
        let most = min(piece.count, memory.remote.map { min($0.limit, Self.piece) } ?? room)
        let length = translation.length(from: piece.iova, most: most)
        let start = translation.offset &+ (piece.iova &- translation.range.lowerBound)
        ranges.append(start...start + UInt64(length - 1))
        room -= length
        if length < piece.count { break }
      }
      if let peer = memory.remote {
        let length = Self.mostBytes - room
        remote = begin(peer, first.iova, length, access, &state)
        return 0
      }
      let count = try move(memory, ranges)
      if access.contains(.write) { markDirty(pieces, count) }
      return count
    }
    guard let remote else { return count }
    do throws(Errno) {
      let count = try move(remote.transfer, ranges)
      _ = end(remote)
      return count
    } catch {
      if end(remote) { throw error }
      return nil
    }
  }

  private func begin(
    _ memory: any RemoteMemory, _ iova: UInt64, _ length: Int, _ access: DMAAccess,
    _ state: inout IOTLB.Use.State
  ) -> RemoteUse {
    let range = iova...iova + UInt64(length - 1)
    let use = RemoteUse(transfer: memory.begin(), range: range) { [self] in
      if access.contains(.write) { wrote(range) }
    }
    state.remote.append(use)
    return use
  }

  /// A transfer is over. Whatever came of it, the peer may have written what it was asked to. False when
  /// it was invalidated.
  private func end(_ remote: RemoteUse) -> Bool {
    use.state.withLock { state in
      let index = state.remote.firstIndex { $0.transfer === remote.transfer }
      guard let index else { return false }
      state.remote.remove(at: index)
      remote.markDirty()
      return true
    }
  }

  /// Ranges that are moved in one hold of the lock; Linux's `IOV_MAX`.
  private static let mostRanges = 1024
  private static let mostBytes = 1 << 20

  private func markDirty(_ pieces: ArraySlice<DMAPiece>, _ count: Int) {
    var left = count
    for piece in pieces where left > 0 {
      let count = min(left, piece.count)
      wrote(piece.iova...piece.iova + UInt64(count - 1))
      left -= count
    }
  }

  private func wrote(_ range: ClosedRange<UInt64>) {
    iommu.wrote(range)
    log.mark(range)
  }

  private func translate(_ iova: UInt64, _ state: inout IOTLB.Use.State) -> Translation? {
    if let last = state.last, last.range.contains(iova) { return last }
    guard let translation = iommu.translate(iova) else { return nil }
    state.last = translation
    return translation
  }

  /// Copies a piece, or what of it is in the first page if the whole piece can't be reached, so that
  /// a fault tells the page it met. Returns the number of bytes, 0 if even those can't.
  private static func copy(
    _ length: Int, toPageEnd: Int, _ copy: (Int) throws(Errno) -> Void
  ) -> Int {
    do {
      try copy(length)
      return length
    } catch {
      return length > toPageEnd ? Self.copy(toPageEnd, toPageEnd: toPageEnd, copy) : 0
    }
  }

  /// Counts a fault, for whoever throws it.
  public func fault(_ iova: UInt64, _ access: DMAAccess, _ completed: Int) -> DMAFault {
    let fault = DMAFault(iova: iova, completed: completed)
    faults.record(fault, access)
    return fault
  }
}

extension Translation {
  /// How many of `most` bytes, which is more than 0, at an address of its are behind it.
  fileprivate func length(from iova: UInt64, most: Int) -> Int {
    Int(min(UInt64(most - 1), range.upperBound - iova)) + 1
  }
}
