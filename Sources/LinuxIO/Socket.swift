import CLinux
import Glibc
import SystemPackage

/// A stream socket of the Unix domain.
public struct Socket: Sendable {
  public let descriptor: Descriptor

  public init(_ descriptor: Descriptor) { self.descriptor = descriptor }

  /// Two connected sockets, closed on exec.
  public static func pair() throws(Errno) -> (Socket, Socket) {
    var ends: (CInt, CInt) = (-1, -1)
    // Sound: a tuple of two integers has the layout of the array that the call fills.
    try call {
      unsafe withUnsafeMutableBytes(of: &ends) { bytes in
        unsafe socketpair(
          AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0,
          bytes.assumingMemoryBound(to: CInt.self).baseAddress!)
      }
    }
    return (
      Socket(Descriptor(owning: ends.0)), Socket(Descriptor(owning: ends.1))
    )
  }

  /// A socket connected to the one bound at `path`.
  public static func connect(to path: String) throws(Errno) -> Socket {
    let socket = try Socket()
    // Sound: the address is valid for the closure's duration.
    try unsafe withAddress(of: path) { address, size throws(Errno) in
      _ = try call { unsafe Glibc.connect(socket.descriptor.rawValue, address, size) }
    }
    return socket
  }

  /// A socket bound at `path` with these permissions, listening and non-blocking.
  ///
  /// Nobody can connect before the permissions are in place, because listening comes last.
  public static func listen(at path: String, mode: mode_t, owner: uid_t?) throws(Errno) -> Socket {
    let socket = try Socket()
    // It gets its name when it can be connected to: there are clients that wait for the name. The other
    // one is no longer, as the length is limited.
    let early = path.dropLast() + "~"
    // Sound: the address is valid for the closure's duration.
    try unsafe withAddress(of: String(early)) { address, size throws(Errno) in
      unsafe _ = unlink(String(early))
      _ = try call { unsafe bind(socket.descriptor.rawValue, address, size) }
    }
    // Sound: the strings and the socket outlive the calls.
    defer { unsafe _ = unlink(String(early)) }
    try call { unsafe chmod(String(early), mode) }
    if let owner { try call { unsafe lchown(String(early), owner, gid_t.max) } }
    try call { Glibc.listen(socket.descriptor.rawValue, 4096) }
    do throws(Errno) {
      try call { unsafe link(String(early), path) }
    } catch {
      throw error == .fileExists ? .addressInUse : error
    }
    try call { fcntl(socket.descriptor.rawValue, F_SETFL, O_NONBLOCK) }
    return socket
  }

  private init() throws(Errno) {
    let file = try call {
      Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    }
    self.init(Descriptor(owning: file))
  }

  private static func withAddress(
    of path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) throws(Errno) -> Void
  ) throws(Errno) {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(path.utf8)
    // Sound: the copy is bounded by the field, whose rest stays zero.
    let fits = unsafe withUnsafeMutableBytes(of: &address.sun_path) { field in
      guard bytes.count < field.count else { return false }
      unsafe field.copyBytes(from: bytes)
      return true
    }
    guard fits else { throw .fileNameTooLong }
    try unsafe withUnsafePointer(to: &address) { pointer throws(Errno) in
      try unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        address throws(Errno) in
        try unsafe body(address, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
  }

  /// The next connection; nil when none waits.
  public func accept() throws(Errno) -> Socket? {
    do {
      return Socket(Descriptor(owning: try call { clinux_accept(descriptor.rawValue) }))
    } catch {
      guard error == .wouldBlock else { throw error }
      return nil
    }
  }

  /// Ends both directions, for every copy of the socket: whoever waits in it wakes.
  public func shutdown() {
    Glibc.shutdown(descriptor.rawValue, Int32(SHUT_RDWR))
  }

  /// Asks for the sender's identity with every message (`SO_PASSCRED`, and `SO_PASSPIDFD` where Linux has
  /// it).
  public func receiveCredentials() throws(Errno) {
    try turnOn(SO_PASSCRED)
    try? turnOn(CLINUX_SO_PASSPIDFD)
  }

  private func turnOn(_ option: CInt) throws(Errno) {
    var on: CInt = 1
    // Sound: the option is an int, given with its size.
    try call {
      unsafe setsockopt(
        descriptor.rawValue, SOL_SOCKET, option, &on, socklen_t(MemoryLayout<CInt>.size))
    }
  }

  /// Who connected, or made the pair (`SO_PEERCRED`).
  public func peer() throws(Errno) -> Credentials {
    var peer = clinux_credentials()
    // Sound: the call fills the structure given.
    try call { unsafe clinux_peer(descriptor.rawValue, &peer) }
    return Credentials(process: peer.pid, user: peer.uid, group: peer.gid)
  }

  /// Waits until the peer has made room for more, or has closed; false when that takes longer. A negative
  /// time is for ever.
  @discardableResult
  public func waitUntilWritable(milliseconds: CInt) throws(Errno) -> Bool {
    var state = pollfd(fd: descriptor.rawValue, events: Int16(POLLOUT), revents: 0)
    // Sound: one entry is given and one is said.
    return try call { unsafe poll(&state, 1, milliseconds) } == 1
  }

  /// Bytes sent that the peer hasn't read yet, in the kernel's measure: 0 when it has read all.
  public func unread() -> Int {
    var bytes: CInt = 0
    // Sound: SIOCOUTQ stores an int.
    return unsafe ioctl(descriptor.rawValue, UInt(TIOCOUTQ), &bytes) == 0 ? Int(bytes) : 0
  }
}

extension Descriptor {
  /// A number that all duplicates of a socket share and that is never used again (`SO_COOKIE`); nil
  /// for what isn't a socket.
  public var socketCookie: UInt64? {
    if let cookie { return cookie }
    let cookie = clinux_cookie(rawValue)
    return cookie == 0 ? nil : cookie
  }
}

/// A process and its user, as the kernel vouches for them.
public struct Credentials: Sendable, Equatable {
  public var process: ProcessID
  public var user: uid_t
  public var group: gid_t
  /// The process's pidfd, where it came with a message.
  public var identity: Descriptor?

  public static func == (a: Credentials, b: Credentials) -> Bool {
    (a.process, a.user, a.group) == (b.process, b.user, b.group)
  }
}

/// What one read brought.
public struct Received {
  /// Bytes read; 0 when the peer has closed.
  public var count: Int
  public var descriptors: [Descriptor]
  /// The kernel dropped descriptors, because this process may open no more.
  public var truncated: Bool
  /// The sender, when the socket asks for it.
  public var sender: Credentials?
}

extension Socket {
  /// Reads what has arrived, at most `bytes.count`; nil when nothing has and `wait` is false.
  public func receive(
    into bytes: inout MutableSpan<UInt8>, wait: Bool
  ) throws(Errno) -> Received? {
    var received = clinux_received()
    var result = Received(count: 0, descriptors: [], truncated: false, sender: nil)
    do {
      // Sound: the kernel writes at most the buffer's size, and at most CLINUX_MAX_DESCRIPTORS
      // descriptors, which is what the array holds; `received.count` says how many of them are set.
      try unsafe bytes.withUnsafeMutableBufferPointer { buffer throws(Errno) in
        try unsafe withUnsafeTemporaryAllocation(
          of: CInt.self, capacity: Int(CLINUX_MAX_DESCRIPTORS)
        ) { files throws(Errno) in
          result.count = try call {
            unsafe clinux_receive(
              descriptor.rawValue, buffer.baseAddress, buffer.count,
              wait ? 0 : CLINUX_DONTWAIT, files.baseAddress, &received)
          }
          for index in 0..<Int(received.count) {
            unsafe result.descriptors.append(Descriptor(owning: files[index]))
          }
        }
      }
    } catch {
      guard error == .wouldBlock else { throw error }
      return nil
    }
    result.truncated = received.truncated
    // Owned also where the sender has no number here: it closes.
    let identity = received.identity < 0 ? nil : Descriptor(owning: received.identity)
    if received.sender.pid != 0 {
      result.sender = Credentials(
        process: received.sender.pid, user: received.sender.uid, group: received.sender.gid,
        identity: identity)
    }
    return result
  }

  /// Sends what the socket takes and returns how much; nil when it takes nothing and `wait` is false.
  ///
  /// The descriptors, 253 at most, go with the first byte. Throws `EPIPE` when the peer has closed,
  /// `EINVAL` when there are more descriptors.
  public func send(
    _ bytes: Span<UInt8>, with descriptors: [Descriptor] = [], wait: Bool
  ) throws(Errno) -> Int? {
    let flags = wait ? 0 : CLINUX_DONTWAIT
    guard descriptors.count <= CLINUX_MAX_DESCRIPTORS else { throw .invalidArgument }
    do {
      // Sound: the span's memory outlives the call, which only reads it.
      return try unsafe bytes.withUnsafeBufferPointer { buffer throws(Errno) in
        if descriptors.isEmpty {
          return try call {
            unsafe clinux_send(
              descriptor.rawValue, buffer.baseAddress, buffer.count, flags, nil, 0)
          }
        }
        let files = descriptors.map(\.rawValue)
        return try call {
          unsafe clinux_send(
            descriptor.rawValue, buffer.baseAddress, buffer.count, flags, files,
            CInt(files.count))
        }
      }
    } catch {
      guard error == .wouldBlock else { throw error }
      return nil
    }
  }
}
