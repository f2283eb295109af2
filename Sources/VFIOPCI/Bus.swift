import VFIOCore

/// What a device's effects may do besides changing its state. They run under the device's lock and
/// never wait; `PCIDevice.later` does what takes time.
public struct Bus {
  var interrupts: InterruptLines
  /// Work to be queued when the effect has returned.
  var work: [Work] = []

  init(_ interrupts: InterruptLines) { self.interrupts = interrupts }

  /// Raises an interrupt: the message `vector` if the client uses MSI or MSI-X, else INTx, which
  /// stays asserted until `lower`.
  public mutating func raise(_ vector: Int = 0) { interrupts.raise(vector) }

  /// Deasserts INTx.
  public mutating func lower() { interrupts.lower() }
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

/// A device's way to its client's memory, while it works on its queue.
public struct BusMaster: Sendable {
  let function: PCIFunction
  /// The memory of the client for whom the work was begun; a later client's is never touched.
  let dma: DMA?
  let generation: UInt64

  /// Copies `count` bytes from client memory at `iova`. Throws at the first address that can't be
  /// read, and before anything is read when bus mastering is off or the device was reset.
  public func read(_ count: Int, from iova: UInt64) throws(DMAFault) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    do {
      var span = bytes.mutableSpan
      try allowed(iova).read(iova, into: &span)
    } catch {
      function.countFault()
      throw error
    }
    return bytes
  }

  /// Copies to client memory at `iova`; throws as `read` does.
  public func write(_ bytes: Span<UInt8>, to iova: UInt64) throws(DMAFault) {
    do {
      try allowed(iova).write(bytes, to: iova)
    } catch {
      function.countFault()
      throw error
    }
  }

  private func allowed(_ iova: UInt64) throws(DMAFault) -> DMA {
    guard let dma, function.mayMaster(generation) else { throw DMAFault(iova: iova, completed: 0) }
    return dma
  }
}
