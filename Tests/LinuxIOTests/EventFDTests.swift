import CLinux
import Dispatch
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
  func `draining takes the whole count, and an empty one doesn't block`(flags: Int) throws {
    let event = try EventFD(checking: try eventFile(Int(flags)))
    event.signal()
    event.signal()
    #expect(event.drain() == 2)
    #expect(event.drain() == 0)
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

  /// Each counter has room for one signal, and two threads race for it as a client would: after a poll
  /// that says "writable" to both, one write would block until someone reads, and nobody does.
  @Test func `a blocking eventfd that is filled in between doesn't hang the signaller`() throws {
    for _ in 0..<10 {
      let files = try (0..<200).map { _ in
        let file = try eventFile(0)
        try file.writeCount(Self.full - 1)
        return file
      }
      let events = try files.map { file in try EventFD(checking: file) }
      let arrived = Atomic(0)
      let done = DispatchSemaphore(value: 0)
      try inThreads(3) { thread in
        if thread == 2 {
          for _ in 0..<2 where done.wait(timeout: .now() + 30) == .timedOut {
            Issue.record("a signaller hangs")
            for file in files { _ = file.readCount() }
          }
          return
        }
        for (round, event) in events.enumerated() {
          arrived.add(1, ordering: .sequentiallyConsistent)
          while arrived.load(ordering: .sequentiallyConsistent) < 2 * (round + 1) { sched_yield() }
          event.signal()
        }
        done.signal()
      }
    }
  }
}
