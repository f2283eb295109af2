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
      var remote: [RemoteUse] = []
    }

    fileprivate func invalidate(_ range: ClosedRange<UInt64>) {
      // Returned, so that the memory ends outside the lock.
      _ = state.withLock { state -> Translation? in
        state.remote.removeAll { use in
          guard use.range.overlaps(range) else { return false }
          use.transfer.cancel()
          use.markDirty()
          return true
        }
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
  /// look for another translation, or fault.
  public func invalidate(_ range: ClosedRange<UInt64>) {
    uses.withLock { uses in
      for index in uses.indices { uses[index].invalidate(range) }
    }
  }
}

/// A transfer that waits for a peer, and the addresses that it uses.
struct RemoteUse: Sendable {
  let transfer: any RemoteTransfer
  let range: ClosedRange<UInt64>
  /// Marks what the peer may have written.
  let markDirty: @Sendable () -> Void
}
