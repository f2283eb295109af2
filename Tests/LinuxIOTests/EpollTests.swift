import Glibc
import SystemPackage
import Testing

@testable import LinuxIO

@Suite struct EpollTests {
  /// Events that are there now, in the order of their numbers.
  private func events(_ epoll: Epoll) throws -> [Epoll.Event] {
    var events: [Epoll.Event] = []
    try epoll.wait(&events, forever: false)
    return events.sorted { $0.number < $1.number }
  }

  @Test func `nothing is reported while nothing happens`() throws {
    let (first, second) = try Socket.pair()
    let epoll = try Epoll()
    try epoll.add(first.descriptor, .readable, number: 1)
    #expect(try events(epoll).isEmpty)
    _ = second
  }

  @Test func `events come with the 64-bit numbers of their descriptors`() throws {
    let numbers: [UInt64] = [3, 0x1_0000_0002, 0x7766_5544_3322_1100, .max]
    let epoll = try Epoll()
    var pairs: [(Socket, Socket)] = []
    for number in numbers {
      let pair = try Socket.pair()
      try epoll.add(pair.0.descriptor, .readable, number: number)
      try pair.1.give([1])
      pairs.append(pair)
    }
    let events = try events(epoll)
    #expect(events.map(\.number) == numbers)
    #expect(events.allSatisfy { $0.events == .readable })
  }

  @Test func `a wait appends to what is there`() throws {
    let epoll = try Epoll()
    let event = try EventFD()
    event.signal()
    try epoll.add(event.descriptor, .readable, number: 5)
    var events = [Epoll.Event(number: 9, events: .writable)]
    try epoll.wait(&events, forever: true)
    #expect(events.map(\.number) == [9, 5])
  }

  @Test func `a state is reported as long as it lasts`() throws {
    let event = try EventFD()
    let epoll = try Epoll()
    try epoll.add(event.descriptor, .readable, number: 1)
    event.signal()
    #expect(try events(epoll).count == 1)
    #expect(try events(epoll).count == 1)
    event.clear()
    #expect(try events(epoll).isEmpty)
  }

  @Test func `a hang-up is reported once at the edge`() throws {
    let (first, second) = try Socket.pair()
    let epoll = try Epoll()
    try epoll.add(first.descriptor, [.edge], number: 4)
    #expect(try events(epoll).isEmpty)
    second.shutdown()
    let reported = try events(epoll)
    #expect(reported.map(\.number) == [4])
    #expect(reported.first?.events.contains(.hungUp) == true)
    #expect(try events(epoll).isEmpty)
  }

  @Test func `a hang-up is reported when the last copy of the peer closes, not before`() throws {
    var (first, second): (Socket, Socket?) = try Socket.pair()
    var copy: Descriptor? = try second?.descriptor.duplicate()
    let epoll = try Epoll()
    try epoll.add(first.descriptor, .edge, number: 4)
    second = nil
    #expect(try events(epoll).isEmpty)
    #expect(copy != nil)
    copy = nil
    #expect(try events(epoll).count == 1)
    first.shutdown()
  }

  @Test func `what is waited for can be changed`() throws {
    let (first, second) = try Socket.pair()
    let epoll = try Epoll()
    try epoll.add(first.descriptor, .readable, number: 1)
    #expect(try events(epoll).isEmpty)
    try epoll.change(first.descriptor, .writable, number: 2)
    let changed = try events(epoll)
    #expect(changed.map(\.number) == [2])
    #expect(changed.map(\.events) == [.writable])
    _ = second
  }

  @Test func `what is removed is silent, and may be added again`() throws {
    let event = try EventFD()
    let epoll = try Epoll()
    try epoll.add(event.descriptor, .readable, number: 1)
    event.signal()
    epoll.remove(event.descriptor)
    epoll.remove(event.descriptor)
    #expect(try events(epoll).isEmpty)
    try epoll.add(event.descriptor, .readable, number: 2)
    #expect(try events(epoll).map(\.number) == [2])
  }

  @Test func `adding twice fails with EEXIST, changing the unknown with ENOENT`() throws {
    let event = try EventFD()
    let epoll = try Epoll()
    #expect(throws: Errno.noSuchFileOrDirectory) {
      try epoll.change(event.descriptor, .readable, number: 1)
    }
    try epoll.add(event.descriptor, .readable, number: 1)
    #expect(throws: Errno.fileExists) { try epoll.add(event.descriptor, .readable, number: 1) }
  }

  @Test func `more events than one wait takes are reported by the next`() throws {
    let epoll = try Epoll()
    let events = try (0..<UInt64(300)).map { number in
      let event = try EventFD()
      event.signal()
      try epoll.add(event.descriptor, [.readable, .edge], number: number)
      return event
    }
    var reported: [Epoll.Event] = []
    try epoll.wait(&reported, forever: false)
    #expect(reported.count == 256)
    try epoll.wait(&reported, forever: false)
    #expect(Set(reported.map(\.number)).count == events.count)
  }
}
