import LinuxIO
import Locks
import SystemPackage

/// The directory of a server's sockets, which no second server may have at the same time.
final class DirectoryLock: Sendable {
  /// Absolute, so that the paths told to clients hold anywhere.
  let path: String
  private let lock: Mutex<Descriptor?>

  /// Makes the directory and `devices` in it, and removes what a dead server left there.
  init(_ path: String) throws(ServerError) {
    do throws(Errno) {
      self.path = try makeDirectory(path)
      _ = try makeDirectory("\(path)/devices")
      lock = Mutex(try lockDirectory(path))
      try removeSockets(in: "\(path)/devices")
    } catch {
      throw ServerError(
        error == .wouldBlock
          ? "\(path): another vfiod serves this directory" : "\(path): \("\(error)".lowercased())")
    }
  }
  /// Lets another server have the directory.
  func release() { lock.withLock { $0 = nil } }
}
