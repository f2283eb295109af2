import CLinux
import Glibc
import SystemPackage

extension EventFD {
  /// Takes the count: how often it was signalled since the last look. Doesn't wait. Only for one's own
  /// eventfd, which doesn't block.
  public func take() -> UInt64 {
    var count: UInt64 = 0
    // Sound: eight bytes are written to an integer of eight.
    return unsafe read(descriptor.rawValue, &count, 8) == 8 ? count : 0
  }

  /// Waits until there is a count to take, at most `milliseconds`; forever without.
  public func wait(milliseconds: Int? = nil) throws(Errno) {
    var state = pollfd(fd: descriptor.rawValue, events: Int16(POLLIN), revents: 0)
    // Sound: one entry is given and one is said.
    try call { unsafe poll(&state, 1, milliseconds.map { CInt(clamping: $0) } ?? -1) }
  }
}
