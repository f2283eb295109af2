import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import LinuxIO

@Suite struct DescriptorPassingTests {
  @Test func `descriptors arrive in order, as the same files, closed on exec`() throws {
    let (first, second) = try Socket.pair()
    let files = try (0..<3).map { _ in try memoryFile(page) }
    try first.give([1, 2], files)
    let (bytes, rest) = try #require(try second.take())
    #expect(bytes == [1, 2])
    #expect(rest.descriptors.map(\.identity) == files.map(\.identity))
    #expect(rest.descriptors.allSatisfy { fcntl($0.rawValue, F_GETFD) & FD_CLOEXEC != 0 })
    #expect(!rest.truncated)
  }

  @Test func `253 descriptors come in one message`() throws {
    let (first, second) = try Socket.pair()
    try second.receiveCredentials()
    let file = try memoryFile(page)
    try first.give([1], Array(repeating: file, count: 253))
    let (_, rest) = try #require(try second.take())
    #expect(rest.descriptors.count == 253)
    #expect(Set(rest.descriptors.map(\.rawValue)).count == 253)
    #expect(rest.descriptors.allSatisfy { $0.identity == file.identity })
    #expect(rest.sender?.process == getpid())
    #expect(!rest.truncated)
  }

  @Test func `sending 254 descriptors fails with EINVAL and sends nothing`() throws {
    let (first, second) = try Socket.pair()
    let file = try memoryFile(page)
    #expect(throws: Errno.invalidArgument) {
      try first.give([1], Array(repeating: file, count: 254))
    }
    #expect(try second.take() == nil)
  }

  @Test func `received descriptors close with what was received`() throws {
    let (first, second) = try Socket.pair()
    let file = try memoryFile(page)
    try first.give([1], Array(repeating: file, count: 10))
    try first.give([2], Array(repeating: file, count: 253))
    var received = try second.take()
    #expect(file.copies == 11)
    #expect(received != nil)
    received = try second.take()
    #expect(file.copies == 254)
    received = nil
    #expect(file.copies == 1)
  }

  @Test func `a read ends after the data that brought descriptors`() throws {
    let (first, second) = try Socket.pair()
    let files = try (0..<2).map { _ in try memoryFile(page) }
    try first.give([1], [files[0]])
    try first.give([2], [files[1]])
    try first.give([3])
    for (byte, file) in zip([UInt8(1), 2], files) {
      let (bytes, rest) = try #require(try second.take())
      #expect(bytes == [byte])
      #expect(rest.descriptors.map(\.identity) == [file.identity])
    }
    let (bytes, rest) = try #require(try second.take())
    #expect(bytes == [3])
    #expect(rest.descriptors.isEmpty)
  }

  @Test func `plain bytes sent before are glued in front of those that bring descriptors`() throws {
    let (first, second) = try Socket.pair()
    try first.give([1, 2])
    try first.give([3, 4], [try memoryFile(page)])
    try first.give([5])
    let (bytes, rest) = try #require(try second.take())
    #expect(bytes == [1, 2, 3, 4])
    #expect(rest.descriptors.count == 1)
    #expect(try second.take()?.bytes == [5])
  }

  @Test func `descriptors come with the first byte of what they were sent with`() throws {
    let (first, second) = try Socket.pair()
    try first.give([1, 2, 3], [try memoryFile(page)])
    #expect(try second.take(most: 1)?.rest.descriptors.count == 1)
    let (bytes, rest) = try #require(try second.take())
    #expect(bytes == [2, 3])
    #expect(rest.descriptors.isEmpty)
  }

  @Test func `a descriptor on its way keeps its file alive, and goes with an unread socket`() throws
  {
    var (first, second): (Socket?, Socket?) = try Socket.pair()
    var pipe: (read: Descriptor, write: Descriptor?) = try makePipe()
    if let write = pipe.write { try first?.give([1], [write]) }
    pipe.write = nil
    let epoll = try Epoll()
    try epoll.add(pipe.read, .readable, number: 1)
    var events: [Epoll.Event] = []
    try epoll.wait(&events, forever: false)
    #expect(events.isEmpty)
    (first, second) = (nil, nil)
    // The kernel may collect what was on its way a moment later.
    try epoll.wait(&events, forever: true)
    #expect(events.first?.events.contains(.hungUp) == true)
    _ = second
  }

  // The thread sanitizer follows descriptors by number, and takes the thread's own for the process's.
  #if !SANITIZE_THREAD
    @Test(arguments: [false, true], [0, 1])
    func `descriptors that the process may not open are noticed, also when none is left`(
      asksForSender: Bool, room: Int
    ) throws {
      let (first, second) = try Socket.pair()
      if asksForSender { try second.receiveCredentials() }
      let file = try memoryFile(page)
      try first.give([1, 2, 3], [file, file])
      try first.give([4], [file])

      let result = try withFullTable(room: room) { try second.take() }
      let (bytes, count, truncated) = try #require(result)
      #expect(bytes == [1, 2, 3])
      #expect(count == room)
      #expect(truncated)
      // The stream goes on where it was.
      let (next, rest) = try #require(try second.take())
      #expect(next == [4])
      #expect(rest.descriptors.count == 1)
      #expect(!rest.truncated)
    }

    /// Receives in a thread whose own table of descriptors has room for `room` more, and leaves the
    /// rest of the process alone.
    private func withFullTable(
      room: Int, _ body: @escaping () throws -> (bytes: [UInt8], rest: Received)?
    ) throws -> (bytes: [UInt8], count: Int, truncated: Bool)? {
      var result: (bytes: [UInt8], count: Int, truncated: Bool)?
      var failure: (any Error)?
      try inThreads(1) { _ in
        do {
          try unshareDescriptors()
          var taken: [CInt] = []
          while true {
            let next = fcntl(0, F_DUPFD_CLOEXEC, 0)
            if next < 0 { break }
            taken.append(next)
          }
          for number in taken.suffix(room) { close(number) }
          if let (bytes, rest) = try body() {
            result = (bytes, rest.descriptors.count, rest.truncated)
          }
        } catch { failure = error }
      }
      if let failure { throw failure }
      return result
    }
  #endif
}
