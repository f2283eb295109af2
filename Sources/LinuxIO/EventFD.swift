import CLinux
import Glibc
import SystemPackage

/// A counter that wakes whoever waits for it (eventfd(2)): an interrupt's way to the client, and a
/// loop's way to be woken.
public final class EventFD: Sendable {
  public let descriptor: Descriptor

  public init() throws(Errno) {
    descriptor = Descriptor(
      owning: try call { eventfd(0, CInt(EFD_CLOEXEC | EFD_NONBLOCK)) })
  }

  /// Takes a client's descriptor; throws `EINVAL` unless it is an eventfd.
  public init(checking descriptor: Descriptor) throws(Errno) {
    guard Self.isEventFD(descriptor) else { throw .invalidArgument }
    self.descriptor = descriptor
  }

  /// Adds 1, and never blocks. A counter that is full stays so, and wakes its reader all the same.
  public func signal() { clinux_signal(descriptor.rawValue) }

  /// Takes the count, so that the next wait waits.
  public func clear() {
    var count: UInt64 = 0
    // Sound: eight bytes are written to an integer of eight. Only used on our own, which don't block.
    _ = unsafe read(descriptor.rawValue, &count, 8)
  }

  /// Takes the count, 0 if there is none, and never blocks: for an eventfd that a client has too.
  public func drain() -> UInt64 { clinux_drain(descriptor.rawValue) }

  private static func isEventFD(_ descriptor: Descriptor) -> Bool {
    // Sound: the kernel writes at most the buffer's size and says how much.
    unsafe withUnsafeTemporaryAllocation(byteCount: 32, alignment: 1) { buffer in
      let count = unsafe readlink(
        "/proc/self/fd/\(descriptor.rawValue)",
        buffer.assumingMemoryBound(to: CChar.self).baseAddress!, buffer.count)
      return unsafe count > 0 && buffer.prefix(count).elementsEqual("anon_inode:[eventfd]".utf8)
    }
  }
}
