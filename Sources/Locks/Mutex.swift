// `Mutex` for the whole package: Synchronization's, save in a build for the thread sanitizer, which
// cannot see into its futex and would report every value it guards as a race. Such a build defines
// SANITIZE_THREAD and gets the same type over a pthread mutex.

#if SANITIZE_THREAD
  import Glibc

  /// A value that is reached only under its lock; stands in for `Synchronization.Mutex`.
  @safe public struct Mutex<Value: ~Copyable>: ~Copyable, @unchecked Sendable {
    private let lock: UnsafeMutablePointer<pthread_mutex_t>
    private let value: UnsafeMutablePointer<Value>

    public init(_ initial: consuming sending Value) {
      // Sound: both are allocated here, initialised before use and freed only in deinit.
      unsafe lock = .allocate(capacity: 1)
      unsafe lock.initialize(to: pthread_mutex_t())
      unsafe pthread_mutex_init(lock, nil)
      unsafe value = .allocate(capacity: 1)
      unsafe value.initialize(to: initial)
    }

    deinit {
      unsafe pthread_mutex_destroy(lock)
      unsafe lock.deallocate()
      unsafe value.deinitialize(count: 1)
      unsafe value.deallocate()
    }

    public borrowing func withLock<Result: ~Copyable, E: Error>(
      _ body: (inout sending Value) throws(E) -> sending Result
    ) throws(E) -> sending Result {
      unsafe pthread_mutex_lock(lock)
      defer { unsafe pthread_mutex_unlock(lock) }
      // Sound: the lock makes this the only access.
      return try body(&(unsafe value).pointee)
    }
  }
#else
  @_exported import struct Synchronization.Mutex
#endif
