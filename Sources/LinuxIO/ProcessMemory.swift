import CLinux
import Glibc
import SystemPackage

/// The number of a process.
public typealias ProcessID = pid_t

/// Another process's memory, copied with `process_vm_readv` and `process_vm_writev`.
public final class ProcessMemory: Sendable {
  private let process: ProcessID
  /// Tells whether `process` is still the one it was.
  private let identity: Descriptor

  /// Throws `ESRCH` when there is no such process.
  public init(_ process: ProcessID) throws(Errno) {
    self.process = process
    identity = Descriptor(owning: try call { clinux_pidfd(process) })
  }

  /// Whether the process still runs, so that its number means no other.
  public var isAlive: Bool {
    var state = pollfd(fd: identity.rawValue, events: Int16(POLLIN), revents: 0)
    // Sound: one entry is given and one is said. Repeated, since a signal's -1 says nothing.
    return (try? call { unsafe poll(&state, 1, 0) }) == 0
  }

  /// The user that the process belongs to: root's for one that nobody may look into. Throws `ESRCH`
  /// when it has ended.
  public func owner() throws(Errno) -> uid_t {
    var info = stat()
    // Sound: the path outlives the call, which fills the structure.
    try call { unsafe stat("/proc/\(process)", &info) }
    guard isAlive else { throw .noSuchProcess }
    return info.st_uid
  }

  /// Copies from the process's address `offset`; `EFAULT` where it has no such memory, may not be
  /// read by this one, or has ended.
  public func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    // Sound: the kernel checks the other process's range, and writes only into the buffer.
    let copied = unsafe bytes.withUnsafeMutableBytes { buffer in
      unsafe clinux_process_copy(process, buffer.baseAddress, offset, buffer.count, false)
    }
    // Asked after the copy, so that it cannot have been another process's memory.
    guard copied == bytes.count, isAlive else { throw .badAddress }
  }

  /// Copies to the process's address `offset`, as `read` does.
  public func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {
    // Sound: the kernel checks the other process's range, and only reads the buffer.
    let copied = unsafe bytes.withUnsafeBufferPointer { buffer in
      unsafe clinux_process_copy(
        process, UnsafeMutableRawPointer(mutating: buffer.baseAddress), offset, buffer.count, true)
    }
    guard copied == bytes.count, isAlive else { throw .badAddress }
  }
}
