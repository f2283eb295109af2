import CLinux
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import LinuxIO

@Suite struct EventFDTests {
  static let full = UInt64.max - 1

  @Test(arguments: [0, EFD_NONBLOCK, EFD_SEMAPHORE])
  func `every kind of eventfd is taken`(flags: Int) throws {
    let file = try eventFile(Int(flags))
    try EventFD(checking: file).signal()
    #expect(file.readCount() == 1)
  }

  @Test func `what is no eventfd fails with EINVAL`() throws {
    let pipe = try makePipe()
    let timer = try timerFile()
    let epoll = Descriptor(owning: try call { epoll_create1(0) })
    let others = [
      pipe.read, pipe.write, try Socket.pair().0.descriptor, timer, epoll, try memoryFile(page),
      try Descriptor.null(), try openFile("/tmp", O_RDONLY),
    ]
    for other in others {
      #expect(throws: Errno.invalidArgument) { try EventFD(checking: other) }
    }
  }

  @Test func `a file that is named like an eventfd is none`() throws {
    let directory = try Directory()
    for name in ["anon_inode:[eventfd]", "[eventfd]"] {
      let file = try openFile("\(directory.path)/\(name)", O_RDWR | O_CREAT)
      #expect(throws: Errno.invalidArgument) { try EventFD(checking: file) }
    }
  }

  @Test func `each signal adds 1`() throws {
    let file = try eventFile(0)
    let event = try EventFD(checking: file)
    for _ in 0..<1000 { event.signal() }
    #expect(file.readCount() == 1000)
    #expect(file.readCount() == nil)
  }

  @Test func `clearing takes the whole count, and an empty one is no obstacle`() throws {
    let event = try EventFD()
    event.signal()
    event.signal()
    event.clear()
    #expect(event.descriptor.readCount() == nil)
    event.clear()
  }

  @Test(arguments: [0, EFD_NONBLOCK])
  func `signalling a full counter returns, and leaves it readable`(flags: Int) throws {
    let file = try eventFile(Int(flags))
    try file.writeCount(Self.full)
    let event = try EventFD(checking: file)
    event.signal()
    event.signal()
    #expect(try #require(file.readCount()) >= Self.full)
    event.signal()
    #expect(file.readCount() == 1)
  }

  @Test func `signals from several threads all count`() throws {
    let file = try eventFile(0)
    let event = try EventFD(checking: file)
    try inThreads(4) { _ in
      for _ in 0..<2000 { event.signal() }
    }
    #expect(file.readCount() == 8000)
  }

  @Test func `signalling wakes who waits at the edge, every time`() throws {
    let file = try eventFile(EFD_NONBLOCK)
    let epoll = try Epoll()
    try epoll.add(file, [.readable, .edge], number: 7)
    let event = try EventFD(checking: file)
    for _ in 0..<3 {
      event.signal()
      var events: [Epoll.Event] = []
      try epoll.wait(&events, forever: true)
      #expect(events.map(\.number) == [7])
    }
  }

  /// A hang would be a write that blocks: the racing client sees to it that the counter is full most of
  /// the time, and changes the file's flags, which it shares.
  @Test(.timeLimit(.minutes(1)))
  func `a client that fills its blocking eventfd all the time doesn't hang the signaller`() throws {
    let file = try eventFile(0)
    let event = try EventFD(checking: file)
    let isDone = Atomic(false)
    try inThreads(2) { thread in
      if thread == 0 {
        for _ in 0..<50_000 { event.signal() }
        isDone.store(true, ordering: .releasing)
      } else {
        while !isDone.load(ordering: .acquiring) {
          // Non-blocking for these calls of the client's own, which no other thread may fall into.
          _ = fcntl(file.rawValue, F_SETFL, O_NONBLOCK)
          _ = file.readCount()
          try? file.writeCount(Self.full)
          _ = fcntl(file.rawValue, F_SETFL, 0)
        }
      }
    }
  }
}
