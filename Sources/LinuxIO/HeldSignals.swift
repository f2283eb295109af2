import Glibc

/// Signals that are held back from the process until someone waits for them. Make it before any other
/// thread, which then holds them too: none is lost, however early it comes.
///
/// A Dispatch source would not do: it misses what comes before it is registered.
public struct HeldSignals: Sendable {
  private var set = sigset_t()

  public init(_ numbers: [CInt]) {
    // Sound: these calls fill and read the set given.
    unsafe sigemptyset(&set)
    for number in numbers { unsafe sigaddset(&set, number) }
    unsafe pthread_sigmask(SIG_BLOCK, &set, nil)
  }

  /// Returns the next one.
  @discardableResult
  public func wait() -> CInt {
    var (set, number) = (set, CInt(0))
    // Sound: as above. It only fails for a set of signals that don't exist.
    _ = unsafe sigwait(&set, &number)
    return number
  }
}
