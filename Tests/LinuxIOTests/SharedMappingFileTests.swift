import Glibc
import SystemPackage
import Testing

@testable import LinuxIO

@Suite struct SharedMappingFileTests {
  private let directory: Directory
  private let file: Descriptor
  private let memory: Descriptor
  private let mapping: SharedMapping

  init() throws {
    directory = try Directory()
    file = try openFile("\(directory.path)/file", O_RDWR | O_CREAT)
    try file.borrowed.writeAll((0..<100).map { UInt8($0) })
    memory = try memoryFile(4 * page)
    mapping = try SharedMapping(memory, size: UInt64(4 * page), writable: true)
  }

  @Test func `ranges are filled from a file, and written to one`() throws {
    #expect(try mapping.read(file.borrowed, at: 10, into: [8...9, 4...6]) == 5)
    #expect(try mapping.bytes(at: 3, 8) == [0, 12, 13, 14, 0, 10, 11, 0])
    #expect(try mapping.write([9...9, 4...4], to: file.borrowed, at: 0) == 2)
    #expect(try mapping.read(file.borrowed, at: 0, into: [0...2]) == 3)
    #expect(try mapping.bytes(at: 0, 3) == [11, 12, 2])
  }

  @Test func `a file that ends gives what it has`() throws {
    #expect(try mapping.read(file.borrowed, at: 95, into: [0...3, 8...20]) == 5)
    #expect(try mapping.read(file.borrowed, at: 100, into: [0...3]) == 0)
  }

  @Test(
    arguments: [
      16384...16384, 16383...16384, 0...16384, UInt64.max...UInt64.max, 0...UInt64.max,
      1 << 63...1 << 63,
    ] as [ClosedRange<UInt64>])
  func `a range outside the mapping fails with EFAULT`(range: ClosedRange<UInt64>) throws {
    #expect(throws: Errno.badAddress) {
      try mapping.read(file.borrowed, at: 0, into: [0...0, range])
    }
    #expect(throws: Errno.badAddress) {
      try mapping.write([0...0, range], to: file.borrowed, at: 0)
    }
    #expect(try mapping.bytes(at: 0, 1) == [0])
  }

  @Test func `a mapping that is for reading isn't filled, but written to a file`() throws {
    let readable = try SharedMapping(memory, size: UInt64(page), writable: false)
    #expect(throws: Errno.badAddress) { try readable.read(file.borrowed, at: 0, into: [0...0]) }
    #expect(try readable.write([0...0], to: file.borrowed, at: 0) == 1)
  }

  @Test func `where the mapping's file was truncated fails with EFAULT, and nothing is poisoned`()
    throws
  {
    try memory.setSize(page)
    let (first, second) = (UInt64(page) - 4, UInt64(page))
    #expect(throws: Errno.badAddress) {
      try mapping.read(file.borrowed, at: 0, into: [second...second + 7])
    }
    #expect(throws: Errno.badAddress) {
      try mapping.write([second...second + 7], to: file.borrowed, at: 0)
    }
    #expect(try mapping.read(file.borrowed, at: 0, into: [first...second + 7]) == 4)
    #expect(try mapping.write([first...second + 7], to: file.borrowed, at: 50) == 4)
    #expect(!mapping.isPoisoned)
  }

  @Test func `the file's error is told`() throws {
    let readable = try openFile("\(directory.path)/file", O_RDONLY)
    #expect(throws: Errno.badFileDescriptor) {
      try mapping.write([0...0], to: readable.borrowed, at: 0)
    }
    let pipe = try makePipe()
    #expect(throws: Errno.illegalSeek) {
      try mapping.read(pipe.read.borrowed, at: 0, into: [0...0])
    }
  }

  // MARK: integers in one step

  @Test func `an integer is changed, and what it was is told`() throws {
    #expect(try mapping.add(UInt32(7), at: 4) == 0)
    #expect(try mapping.add(UInt32.max, at: 4) == 7)
    #expect(try mapping.swap(UInt32(1), at: 4) == 6)
    #expect(try mapping.compareAndSwap(UInt32(2), 9, at: 4) == 1)
    #expect(try mapping.compareAndSwap(UInt32(1), 9, at: 4) == 1)
    #expect(try mapping.bytes(at: 0, 12) == [0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0])
    #expect(try mapping.add(UInt64(1) << 32, at: 0) == 9 << 32)
    #expect(try mapping.swap(UInt64.max, at: 0) == 10 << 32)
    #expect(try mapping.compareAndSwap(UInt64(0), 1, at: 0) == .max)
    #expect(try mapping.compareAndSwap(UInt64.max, 1, at: 0) == .max)
    #expect(try mapping.bytes(at: 0, 9) == [1, 0, 0, 0, 0, 0, 0, 0, 0])
  }

  @Test func `one that isn't aligned, or not in the mapping, fails with EFAULT`() throws {
    for offset: UInt64 in [1, 2, 6, UInt64(4 * page), .max - 3] {
      #expect(throws: Errno.badAddress) { try mapping.add(UInt32(1), at: offset) }
    }
    for offset: UInt64 in [4, UInt64(4 * page) - 4, UInt64(4 * page)] {
      #expect(throws: Errno.badAddress) { try mapping.swap(UInt64(1), at: offset) }
    }
    #expect(try mapping.bytes(at: UInt64(4 * page) - 8, 8) == [UInt8](repeating: 0, count: 8))
  }

  @Test func `one in a mapping that is for reading fails with EFAULT`() throws {
    let readable = try SharedMapping(memory, size: UInt64(page), writable: false)
    #expect(throws: Errno.badAddress) { try readable.add(UInt32(0), at: 0) }
    #expect(throws: Errno.badAddress) { try readable.compareAndSwap(UInt64(1), 2, at: 0) }
  }

  @Test func `one in a page that the file lost fails with EFAULT, and poisons the mapping`() throws
  {
    try memory.setSize(page)
    #expect(throws: Errno.badAddress) { try mapping.add(UInt64(1), at: UInt64(page)) }
    #expect(mapping.isPoisoned)
    #expect(throws: Errno.badAddress) { try mapping.add(UInt64(1), at: 0) }
  }

  @Test func `threads that add lose nothing`() throws {
    let mapping = mapping
    try inThreads(4) { _ in
      for _ in 0..<20_000 { _ = try? mapping.add(UInt64(1), at: 8) }
    }
    #expect(try mapping.add(UInt64(0), at: 8) == 80_000)
  }
}
