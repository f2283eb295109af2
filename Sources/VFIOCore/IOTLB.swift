import Locks

/// The devices behind an IOMMU, each of which keeps a translation and may be using it.
public final class IOTLB: Sendable {
  private let uses = Mutex<[Use]>([])

  public init() {}

  /// One device's use of translations.
  final class Use: Sendable {
    /// Held while a copy uses a translation. The IOMMU's locks, and those of memory, come after it.
    let state = Mutex(State())

    struct State {
      /// The last translation that was used.
      var last: Translation?
      /// Transfers that wait for a peer, and the addresses that they use.
      var remote: [(transfer: any RemoteTransfer, range: ClosedRange<UInt64>)] = []
    }

    fileprivate func invalidate(_ range: ClosedRange<UInt64>) {
      // Returned, so that the memory ends outside the lock.
      _ = state.withLock { state -> Translation? in
        for use in state.remote where use.range.overlaps(range) { use.transfer.cancel() }
        guard let last = state.last, last.range.overlaps(range) else { return nil }
        state.last = nil
        return last
      }
    }
  }

  func add(_ use: Use) { uses.withLock { $0.append(use) } }

  func remove(_ use: Use) { uses.withLock { $0.removeAll { $0 === use } } }

  /// Called by the IOMMU's driver when translations have gone, or dirty pages are to be tracked from
  /// now on: returns when no transfer uses what was there before. Transfers that wait for a peer there
  /// fault.
  public func invalidate(_ range: ClosedRange<UInt64>) {
    uses.withLock { uses in
      for index in uses.indices { uses[index].invalidate(range) }
    }
  }
}
