import CLinux
import Glibc
import SystemPackage

/// A file descriptor that closes when its last owner lets go, so that no path can leak it.
public final class Descriptor: Sendable {
  /// -1 for what is left of a socket.
  public let rawValue: CInt
  /// The cookie of a socket of which only that is left.
  let cookie: UInt64?

  /// Takes ownership of an open descriptor.
  public init(owning rawValue: CInt) {
    self.rawValue = rawValue
    cookie = nil
  }

  fileprivate init(cookie: UInt64) {
    rawValue = -1
    self.cookie = cookie
  }

  /// A duplicate of a descriptor that someone else owns.
  public init(duplicating descriptor: FileDescriptor) throws(Errno) {
    rawValue = try call { fcntl(descriptor.rawValue, F_DUPFD_CLOEXEC, 0) }
    cookie = nil
  }

  deinit { if cookie == nil { close(rawValue) } }

  /// This descriptor, or for a socket one that doesn't keep it open and only tells its cookie.
  public var withoutSocket: Descriptor {
    guard let cookie = socketCookie else { return self }
    return Descriptor(cookie: cookie)
  }

  /// The same descriptor for swift-system's calls; valid as long as this object lives.
  public var borrowed: FileDescriptor { FileDescriptor(rawValue: rawValue) }
}

/// The one door for system calls: repeats what a signal interrupted, and turns -1 into `errno`.
@discardableResult
func call<Result: SignedInteger>(_ body: () -> Result) throws(Errno) -> Result {
  while true {
    let result = body()
    if result != -1 { return result }
    let error = Errno(rawValue: errno)
    if error != .interrupted { throw error }
  }
}

/// Raises the limit of open files to what the administrator allows, and returns it.
@discardableResult
public func raiseDescriptorLimit() -> Int {
  var limit = rlimit()
  // Sound: the call fills the structure given.
  guard unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else {
    return 1024
  }
  let before = limit.rlim_cur
  limit.rlim_cur = limit.rlim_max
  let raised = unsafe setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0
  return Int(clamping: raised ? limit.rlim_cur : before)
}
