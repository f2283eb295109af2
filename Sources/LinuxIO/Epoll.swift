import CLinux
import Glibc
import SystemPackage

/// A set of descriptors that one thread waits for. Each has a number, which comes with its events.
public final class Epoll: Sendable {
  public struct Events: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let readable = Events(rawValue: EPOLLIN.rawValue)
    public static let writable = Events(rawValue: EPOLLOUT.rawValue)
    /// The peer has closed, or failed. Always reported.
    public static let hungUp = Events(rawValue: EPOLLHUP.rawValue)
    /// Report a change once instead of a state as long as it lasts.
    public static let edge = Events(rawValue: EPOLLET.rawValue)
  }

  public struct Event: Sendable {
    public var number: UInt64
    public var events: Events
  }

  private let descriptor: Descriptor

  public init() throws(Errno) {
    descriptor = Descriptor(owning: try call { epoll_create1(CInt(EPOLL_CLOEXEC)) })
  }

  public func add(_ file: Descriptor, _ events: Events, number: UInt64) throws(Errno) {
    try call { clinux_epoll_add(descriptor.rawValue, file.rawValue, events.rawValue, number) }
  }

  public func change(_ file: Descriptor, _ events: Events, number: UInt64) throws(Errno) {
    try call { clinux_epoll_change(descriptor.rawValue, file.rawValue, events.rawValue, number) }
  }

  public func remove(_ file: Descriptor) {
    _ = epoll_ctl(descriptor.rawValue, EPOLL_CTL_DEL, file.rawValue, nil)
  }

  /// Waits for events and appends them to `events`, 256 at most.
  public func wait(_ events: inout [Event], forever: Bool) throws(Errno) {
    let most = 256
    // Sound: the kernel fills at most `most` entries and says how many.
    try unsafe withUnsafeTemporaryAllocation(of: epoll_event.self, capacity: most) {
      buffer throws(Errno) in
      let count = try call {
        unsafe epoll_wait(
          descriptor.rawValue, buffer.baseAddress!, CInt(most), forever ? -1 : 0)
      }
      for index in 0..<Int(count) {
        events.append(
          unsafe Event(
            number: buffer[index].data.u64, events: Events(rawValue: buffer[index].events)))
      }
    }
  }
}
