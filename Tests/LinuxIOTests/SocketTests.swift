import Glibc
import SystemPackage
import Testing

@testable import LinuxIO

@Suite struct SocketTests {
  @Test func `what one end of a pair sends the other receives`() throws {
    let (first, second) = try Socket.pair()
    #expect(try first.give([1, 2, 3]) == 3)
    #expect(try second.take()?.bytes == [1, 2, 3])
    #expect(try second.give([4]) == 1)
    #expect(try first.take()?.bytes == [4])
  }

  @Test func `sockets are closed on exec, accepted ones too`() throws {
    let directory = try Directory()
    let listener = try Socket.listen(at: "\(directory.path)/s", mode: 0o600, owner: nil)
    let client = try Socket.connect(to: "\(directory.path)/s")
    let server = try #require(try listener.accept())
    let (first, second) = try Socket.pair()
    for socket in [listener, client, server, first, second] {
      #expect(fcntl(socket.descriptor.rawValue, F_GETFD) & FD_CLOEXEC != 0)
    }
  }

  @Test func `receiving without waiting returns nil when nothing has arrived`() throws {
    let (first, second) = try Socket.pair()
    #expect(try first.take() == nil)
    _ = second
  }

  @Test func `receiving returns 0 bytes when the peer has closed, after all it sent`() throws {
    var (first, second): (Socket, Socket?) = try Socket.pair()
    try second?.give([7])
    second = nil
    #expect(try first.take()?.bytes == [7])
    #expect(try first.take(wait: true)?.bytes == [])
    first.shutdown()
  }

  @Test func `sending to a peer that has closed fails with EPIPE and raises no signal`() throws {
    let first = try Socket.pair().0
    #expect(throws: Errno.brokenPipe) { try first.give([1]) }
    #expect(throws: Errno.brokenPipe) { try first.give([1], [try Descriptor.null()]) }
  }

  @Test func `sending takes what fits, then nothing, and goes on when the peer has read`() throws {
    let (first, second) = try Socket.pair()
    let piece = [UInt8](repeating: 9, count: 300_000)
    var sent = 0
    while let count = try first.give(piece) { sent += count }
    #expect(sent > 0)
    #expect(try first.give([1]) == nil)
    var received = 0
    while let (bytes, _) = try second.take(), !bytes.isEmpty { received += bytes.count }
    #expect(received == sent)
    #expect(try first.give([1]) == 1)
  }

  @Test func `shutting down ends both directions for every copy`() throws {
    let (first, second) = try Socket.pair()
    let copy = Socket(try first.descriptor.duplicate())
    copy.shutdown()
    #expect(try first.take()?.bytes == [])
    #expect(try second.take()?.bytes == [])
    #expect(throws: Errno.brokenPipe) { try second.give([1]) }
  }

  @Test func `unread counts what the peer hasn't read, and is 0 when it has read all`() throws {
    let (first, second) = try Socket.pair()
    #expect(first.unread() == 0)
    try first.give([UInt8](repeating: 0, count: 1000))
    #expect(first.unread() >= 1000)
    _ = try second.take(most: 999)
    #expect(first.unread() > 0)
    _ = try second.take()
    #expect(first.unread() == 0)
  }

  // MARK: identity

  @Test func `duplicates of a socket share its cookie, other sockets have others`() throws {
    let (first, second) = try Socket.pair()
    let cookie = try #require(first.descriptor.socketCookie)
    #expect(try first.descriptor.duplicate().socketCookie == cookie)
    #expect(second.descriptor.socketCookie != cookie)
    // Also after a journey through a socket.
    try first.give([1], [first.descriptor])
    #expect(try second.take()?.rest.descriptors.first?.socketCookie == cookie)
  }

  @Test func `a cookie is never used again`() throws {
    var seen: Set<UInt64> = []
    for _ in 0..<100 {
      let (first, second) = try Socket.pair()
      for socket in [first, second] {
        #expect(seen.insert(try #require(socket.descriptor.socketCookie)).inserted)
      }
    }
  }

  @Test func `what is no socket has no cookie`() throws {
    #expect(try makePipe().read.socketCookie == nil)
    #expect(try memoryFile(page).socketCookie == nil)
  }

  @Test func `the peer of a pair is the process that made it`() throws {
    let (first, _) = try Socket.pair()
    let own = Credentials(process: getpid(), user: geteuid(), group: getegid())
    #expect(try first.peer() == own)
  }

  @Test func `the sender comes with every message of a socket that asks for it`() throws {
    let (first, second) = try Socket.pair()
    try first.give([1])
    #expect(try second.take()?.rest.sender == nil)
    try second.receiveCredentials()
    let own = Credentials(process: getpid(), user: geteuid(), group: getegid())
    for _ in 0..<2 {
      try first.give([1])
      #expect(try second.take()?.rest.sender == own)
    }
    try first.give([2], [try Descriptor.null()])
    let both = try #require(try second.take())
    #expect(both.rest.sender == own)
    #expect(both.rest.descriptors.count == 1)
  }

  // MARK: addresses

  @Test func `a connection is accepted once, and nil says that none waits`() throws {
    let directory = try Directory()
    let path = "\(directory.path)/s"
    let listener = try Socket.listen(at: path, mode: 0o600, owner: nil)
    #expect(try listener.accept() == nil)
    let client = try Socket.connect(to: path)
    let server = try #require(try listener.accept())
    #expect(try listener.accept() == nil)
    try client.give([5])
    #expect(try server.take()?.bytes == [5])
    #expect(try server.peer().process == getpid())
  }

  @Test func `the socket file has the mode and the owner asked for, whatever the umask`() throws {
    let directory = try Directory()
    for mode: mode_t in [0o600, 0o660, 0o666] {
      let path = "\(directory.path)/\(mode)"
      let listener = try Socket.listen(at: path, mode: mode, owner: geteuid())
      var info = stat()
      #expect(unsafe stat(path, &info) == 0)
      #expect(info.st_mode & 0o7777 == mode)
      #expect(info.st_uid == geteuid())
      _ = listener
    }
  }

  @Test func `listening where something is fails with EADDRINUSE and leaves it there`() throws {
    let directory = try Directory()
    let path = "\(directory.path)/s"
    _ = try openFile(path, O_CREAT)
    #expect(throws: Errno.addressInUse) {
      _ = try Socket.listen(at: path, mode: 0o600, owner: nil)
    }
    #expect(throws: Errno.fileExists) { _ = try isSocket(path) }
  }

  @Test func `connecting to nothing fails with ENOENT, to nobody with ECONNREFUSED`() throws {
    let directory = try Directory()
    let path = "\(directory.path)/s"
    #expect(throws: Errno.noSuchFileOrDirectory) { _ = try Socket.connect(to: path) }
    _ = try Socket.listen(at: path, mode: 0o600, owner: nil)
    #expect(throws: Errno.connectionRefused) { _ = try Socket.connect(to: path) }
  }

  @Test func `a path of 107 bytes is the longest`() throws {
    let directory = try Directory()
    let room = 107 - directory.path.utf8.count - 1
    let longest = "\(directory.path)/\(String(repeating: "x", count: room))"
    let listener = try Socket.listen(at: longest, mode: 0o600, owner: nil)
    _ = try Socket.connect(to: longest)
    #expect(try listener.accept() != nil)
    #expect(throws: Errno.fileNameTooLong) { _ = try Socket.connect(to: longest + "x") }
    #expect(throws: Errno.fileNameTooLong) {
      _ = try Socket.listen(at: longest + "x", mode: 0o600, owner: nil)
    }
  }
}
