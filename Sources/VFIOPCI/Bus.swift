import Dispatch
import Glibc
import SystemPackage
import VFIOCore

/// What a device's effects may do besides changing its state. They run under the device's lock and
/// never wait; `PCIDevice.later` does what takes time.
public struct Bus {
  var interrupts: InterruptLines
  /// Work to be queued when the effect has returned.
  var work: [Work] = []
  /// What the timer is to be set to; `.some(nil)` turns it off.
  var timer: DispatchWallTime??

  init(_ interrupts: InterruptLines) { self.interrupts = interrupts }

  /// Raises an interrupt: the message `vector` if the client uses MSI or MSI-X, else INTx, which
  /// stays asserted until `lower`.
  public mutating func raise(_ vector: Int = 0) { interrupts.raise(vector) }

  /// Deasserts INTx.
  public mutating func lower() { interrupts.lower() }

  /// Sets the device's timer, instead of to when it was set before: `timerFired` is called that many
  /// seconds after 1970, at once if that has passed. With nil it is off, as after a reset or a stop.
  public mutating func setTimer(_ seconds: Int64?) {
    timer = .some(
      seconds.map { seconds in
        // Dispatch counts nanoseconds in 64 bits.
        let seconds = Int(min(max(seconds, 0), 9_000_000_000))
        return DispatchWallTime(timespec: timespec(tv_sec: seconds, tv_nsec: 0))
      })
  }
}

/// Runs on the device's queue, and returns what is to be done under the lock.
typealias Work = @Sendable (BusMaster) -> @Sendable (Cell, inout Bus) -> Void

extension PCIDevice {
  /// Does `work` on the device's own serial queue, where it may wait and use DMA, then `finish`
  /// under the lock, on the state as it is by then. A reset in between voids what is left of it.
  public func later<Result: Sendable>(
    _ bus: inout Bus, work: @escaping @Sendable (BusMaster) -> Result,
    finish: @escaping @Sendable (inout Self, Result, inout Bus) -> Void
  ) {
    bus.work.append { master in
      let result = work(master)
      return { cell, bus in cell.update(Self.self) { finish(&$0, result, &bus) } }
    }
  }
}

/// A device's way to its client's memory, while it works on its queue. All of it throws at the first
/// address that can't be reached, and before anything is reached when bus mastering is off or the
/// device was reset.
public struct BusMaster: Sendable {
  let function: PCIFunction
  /// The memory of the client for whom the work was begun; a later client's is never touched.
  let dma: DMA?
  let generation: UInt64

  /// Whether the address is mapped for reading and writing. It may be gone the next moment.
  public func reaches(_ iova: UInt64) -> Bool { dma?.reaches(iova, [.read, .write]) ?? false }

  /// Copies `count` bytes from client memory at `iova`. `byMessage` asks the client of the device's own
  /// socket for them, however it mapped them.
  public func read(
    _ count: Int, from iova: UInt64, byMessage: Bool = false
  ) throws(DMAFault) -> [UInt8] {
    let dma = try allowed(iova, .read)
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    try dma.read(iova, into: &span, byMessage: byMessage)
    return bytes
  }

  /// Fills `bytes` from client memory at `iova`.
  public func read(_ iova: UInt64, into bytes: inout MutableSpan<UInt8>) throws(DMAFault) {
    try allowed(iova, .read).read(iova, into: &bytes)
  }

  /// Copies to client memory at `iova`.
  public func write(
    _ bytes: Span<UInt8>, to iova: UInt64, byMessage: Bool = false
  ) throws(DMAFault) {
    try allowed(iova, .write).write(bytes, to: iova, byMessage: byMessage)
  }

  /// The little-endian integer in client memory at `iova`, in one access where it is aligned.
  public func load<Value: FixedWidthInteger>(
    _ iova: UInt64, as _: Value.Type = Value.self
  ) throws(DMAFault) -> Value {
    try allowed(iova, .read).load(iova)
  }

  /// Stores a little-endian integer in client memory at `iova`, as `load` reads it.
  public func store<Value: FixedWidthInteger>(
    _ value: Value, at iova: UInt64
  ) throws(DMAFault) {
    try allowed(iova, .write).store(value, at: iova)
  }

  /// Changes an integer in client memory in one step, and returns what it was. It must be aligned, and
  /// lie in a file that the client mapped for reading and writing.
  public func update(_ iova: UInt64, _ operation: AtomicOperation) throws(DMAFault) -> UInt64 {
    try allowed(iova, [.read, .write]).update(iova, operation)
  }

  /// Fills pieces of client memory, in their order, from a file at `position`; `preadv`. Returns how
  /// many bytes there were, fewer at the file's end. The pieces' bytes aren't copied on the way where
  /// they lie in files that the client mapped.
  public func read(
    _ file: FileDescriptor, at position: Int, into pieces: [DMAPiece]
  ) throws(DMATransferError) -> Int {
    try transfer(pieces, .write) { dma throws(DMATransferError) in
      try dma.read(file, at: position, into: pieces)
    }
  }

  /// Writes pieces of client memory to a file at `position`; `pwritev`. Returns how many bytes the file
  /// took.
  public func write(
    _ pieces: [DMAPiece], to file: FileDescriptor, at position: Int
  ) throws(DMATransferError) -> Int {
    try transfer(pieces, .read) { dma throws(DMATransferError) in
      try dma.write(pieces, to: file, at: position)
    }
  }

  private func transfer(
    _ pieces: [DMAPiece], _ access: DMAAccess,
    _ body: (DMA) throws(DMATransferError) -> Int
  ) throws(DMATransferError) -> Int {
    guard let first = pieces.first else { return 0 }
    let dma: DMA
    do { dma = try allowed(first.iova, access) } catch { throw .fault(error) }
    return try body(dma)
  }

  private func allowed(_ iova: UInt64, _ access: DMAAccess) throws(DMAFault) -> DMA {
    guard let dma, function.isCurrent(generation) else { throw DMAFault(iova: iova, completed: 0) }
    guard function.mayMaster else { throw dma.fault(iova, access, 0) }
    return dma
  }
}
