import LinuxIO
import SystemPackage
import Testing
import VFIOCore
import VFIOWire

@testable import VFIOServer

/// Flags of `struct vfio_irq_set`.
private let (none, bools, eventfd): (UInt32, UInt32, UInt32) = (1, 2, 4)
private let (mask, unmask, trigger): (UInt32, UInt32, UInt32) = (8, 16, 32)
/// MSI-X, of which `scratch` has 8 vectors.
private let msix: UInt32 = 2

@Suite struct `SET_IRQS` {
  private let device: DeviceSession

  init() throws { device = try World().device() }

  private func set(
    _ flags: UInt32, _ start: UInt32, _ count: UInt32, index: UInt32 = msix,
    data: [UInt8] = [], with descriptors: [Descriptor] = []
  ) throws(Errno) {
    let body = bytes(UInt32(20 + data.count), flags, index, start, count) + data
    let reply = try device.call(.deviceSetIRQs, body, with: descriptors)
    #expect(reply.body.isEmpty)
  }

  private func events(_ count: Int) throws -> [Descriptor] {
    try (0..<count).map { _ in try EventFD().descriptor }
  }

  private func count(of event: EventFD) -> UInt64? { event.takeCount() }

  @Test func `sets a trigger, which an interrupt by hand then signals`() throws {
    let event = try EventFD()
    try set(eventfd | trigger, 3, 1, with: [event.descriptor])
    try set(none | trigger, 3, 1)
    #expect(count(of: event) == 1)
  }

  @Test func `gives each interrupt of a range its own descriptor`() throws {
    let all = try (0..<3).map { _ in try EventFD() }
    try set(eventfd | trigger, 2, 3, with: all.map(\.descriptor))
    try set(bools | trigger, 2, 3, data: [0, 1, 0])
    #expect(all.map { count(of: $0) } == [nil, 1, nil])
  }

  @Test func `takes triggers away when it brings no descriptors`() throws {
    let event = try EventFD()
    try set(eventfd | trigger, 0, 1, with: [event.descriptor])
    try set(eventfd | trigger, 0, 8)
    try? set(none | trigger, 0, 1)
    #expect(count(of: event) == nil)
  }

  @Test func `disables a kind with no data and a count of 0`() throws {
    let event = try EventFD()
    try set(eventfd | trigger, 7, 1, with: [event.descriptor])
    try set(none | trigger, 0, 0)
    try? set(none | trigger, 7, 1)
    #expect(count(of: event) == nil)
  }

  @Test(
    arguments: [
      (0, 9), (8, 1), (9, 0), (1, 8), (UInt32.max, 1), (1, UInt32.max), (UInt32.max, UInt32.max),
      (0, UInt32.max), (0x8000_0000, 0x8000_0000),
    ] as [(UInt32, UInt32)])
  func `fails with EINVAL for a range that the device lacks, whatever the data`(
    _ start: UInt32, _ count: UInt32
  ) {
    for kind in [none, bools, eventfd] {
      #expect(throws: Errno.invalidArgument) {
        try set(kind | trigger, start, count, data: [UInt8](repeating: 0, count: 16))
      }
    }
  }

  @Test(arguments: [5, UInt32.max])
  func `fails with EINVAL for a kind of interrupt that the device lacks`(_ index: UInt32) {
    #expect(throws: Errno.invalidArgument) { try set(none | trigger, 0, 0, index: index) }
  }

  @Test(arguments: [
    0, none, bools, eventfd, mask, trigger, none | bools | trigger, eventfd | bools | trigger,
    none | mask | unmask, none | mask | trigger, none | mask | unmask | trigger, 7 | trigger,
    none | trigger | 64, none | trigger | 1 << 31, UInt32.max,
  ])
  func `fails with EINVAL unless there is one kind of data and one action`(_ flags: UInt32) throws {
    let all = try events(1)
    #expect(throws: Errno.invalidArgument) { try set(flags, 0, 1, data: [1]) }
    #expect(throws: Errno.invalidArgument) { try set(flags, 0, 1, data: [1], with: all) }
  }

  @Test(arguments: [(8, 7), (8, 0), (1, 0)] as [(UInt32, Int)])
  func `fails with EINVAL for fewer bools than interrupts`(_ interrupts: UInt32, _ bytes: Int) {
    #expect(throws: Errno.invalidArgument) {
      try set(bools | trigger, 0, interrupts, data: [UInt8](repeating: 1, count: bytes))
    }
  }

  @Test(arguments: [(8, 7), (1, 2), (2, 1), (0, 1)] as [(UInt32, Int)])
  func `fails with EINVAL for other than one descriptor for each interrupt`(
    _ interrupts: UInt32, _ descriptors: Int
  ) throws {
    let all = try events(descriptors)
    #expect(throws: Errno.invalidArgument) { try set(eventfd | trigger, 0, interrupts, with: all) }
  }

  @Test(arguments: [none | trigger, bools | trigger, none | mask, bools | unmask])
  func `fails with EINVAL for a descriptor that nothing asks for`(_ flags: UInt32) throws {
    try set(eventfd | trigger, 0, 1, with: try events(1))
    #expect(throws: Errno.invalidArgument) { try set(flags, 0, 1, data: [1], with: try events(1)) }
    try set(flags, 0, 1, data: [1])
  }

  @Test func `fails with EINVAL for a descriptor that is no eventfd, and changes nothing`() throws {
    let event = try EventFD()
    try set(eventfd | trigger, 0, 1, with: [event.descriptor])
    let file = try makeMemoryFile("[eventfd]", size: 4096)
    for other in [file, try Descriptor.null(), try Socket.pair().0.descriptor] {
      #expect(throws: Errno.invalidArgument) {
        try set(eventfd | trigger, 0, 2, with: [try EventFD().descriptor, other])
      }
    }
    try set(none | trigger, 0, 1)
    #expect(count(of: event) == 1)
  }
}
