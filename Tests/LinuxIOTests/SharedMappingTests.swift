import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import LinuxIO

@Suite struct SharedMappingTests {
  @Test func `what is written through a mapping is in the file, and the other way round`() throws {
    let file = try memoryFile(2 * page)
    let mapping = try SharedMapping(file, size: UInt64(2 * page), writable: true)
    let other = try SharedMapping(file, size: UInt64(2 * page), writable: false)
    // Every size that is a single access, aligned and not, and sizes that aren't.
    for (offset, count) in [
      (0, 1), (2, 2), (3, 2), (8, 4), (13, 4), (16, 8), (21, 8), (40, 3), (50, 64), (page - 5, 10),
      (page, page), (7, 0),
    ] {
      let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ offset &+ 1) }
      try mapping.write(bytes.span, at: UInt64(offset))
      #expect(try other.bytes(at: UInt64(offset), count) == bytes)
    }
  }

  @Test func `a copy touches nothing beside its range`() throws {
    let mapping = try SharedMapping(try memoryFile(page), size: UInt64(page), writable: true)
    for count in [1, 2, 4, 8, 5] {
      try mapping.write([UInt8](repeating: 0xAA, count: 64).span, at: 0)
      try mapping.write([UInt8](repeating: 1, count: count).span, at: 24)
      let expected =
        [UInt8](repeating: 0xAA, count: 24) + [UInt8](repeating: 1, count: count)
        + [UInt8](repeating: 0xAA, count: 40 - count)
      #expect(try mapping.bytes(at: 0, 64) == expected)
    }
  }

  @Test(arguments: [
    (UInt64(4096), 1), (4095, 2), (4097, 0), (1 << 32, 8), (1 << 63, 8), (.max - 7, 8), (.max, 1),
    (.max, 0),
  ])
  func `a range outside the mapping fails with EFAULT`(offset: UInt64, count: Int) throws {
    let mapping = try SharedMapping(try memoryFile(2 * page), size: UInt64(page), writable: true)
    #expect(throws: Errno.badAddress) { try mapping.bytes(at: offset, count) }
    #expect(throws: Errno.badAddress) {
      try mapping.write([UInt8](repeating: 1, count: count).span, at: offset)
    }
    #expect(!mapping.isPoisoned)
  }

  @Test func `writing to a mapping that is for reading fails with EFAULT`() throws {
    let mapping = try SharedMapping(try memoryFile(page), size: UInt64(page), writable: false)
    #expect(throws: Errno.badAddress) { try mapping.write([1].span, at: 0) }
    #expect(try mapping.bytes(at: 0, 1) == [0])
  }

  @Test func `a size of zero, or beyond an address space, is refused`() throws {
    let file = try memoryFile(page)
    #expect(throws: Errno.invalidArgument) {
      try SharedMapping(file, size: 0, writable: true)
    }
    #expect(throws: Errno.invalidArgument) {
      try SharedMapping(file, size: .max, writable: true)
    }
    #expect(throws: Errno.noMemory) {
      try SharedMapping(file, size: 1 << 62, writable: true)
    }
  }

  @Test func `a mapping keeps its file alive, not the descriptor`() throws {
    var file: Descriptor? = try memoryFile(page)
    let mapping = try SharedMapping(try #require(file), size: UInt64(page), writable: true)
    try mapping.write([5].span, at: 9)
    file = nil
    #expect(try mapping.bytes(at: 9, 1) == [5])
  }

  // MARK: truncation

  @Test(arguments: [1, 8, 64, 3 * page])
  func `a truncated file fails with EFAULT and poisons the mapping`(count: Int) throws {
    let file = try memoryFile(4 * page)
    let mapping = try SharedMapping(file, size: UInt64(4 * page), writable: true)
    try mapping.write([1].span, at: UInt64(page))
    try file.setSize(page)
    #expect(!mapping.isPoisoned)
    #expect(throws: Errno.badAddress) { try mapping.bytes(at: UInt64(page), count) }
    #expect(mapping.isPoisoned)
  }

  @Test func `a write to a truncated file fails with EFAULT`() throws {
    let file = try memoryFile(2 * page)
    let mapping = try SharedMapping(file, size: UInt64(2 * page), writable: true)
    try file.setSize(0)
    #expect(throws: Errno.badAddress) { try mapping.write([1, 2].span, at: UInt64(page)) }
  }

  @Test func `a copy that begins in the file and ends behind its end fails with EFAULT`() throws {
    let file = try memoryFile(4 * page)
    let mapping = try SharedMapping(file, size: UInt64(4 * page), writable: true)
    try file.setSize(2 * page)
    #expect(throws: Errno.badAddress) {
      try mapping.write([UInt8](repeating: 1, count: 4 * page).span, at: 0)
    }
  }

  @Test func `a poisoned mapping stays so, even where the file has pages and when it grows`() throws
  {
    let file = try memoryFile(2 * page)
    let mapping = try SharedMapping(file, size: UInt64(2 * page), writable: true)
    try file.setSize(page)
    #expect(throws: Errno.badAddress) { try mapping.bytes(at: UInt64(page), 1) }
    try file.setSize(2 * page)
    for offset in [0, UInt64(page)] {
      #expect(throws: Errno.badAddress) { try mapping.bytes(at: offset, 1) }
      #expect(throws: Errno.badAddress) { try mapping.write([1].span, at: offset) }
    }
  }

  @Test func `other mappings are unaffected, of the same file as well`() throws {
    let (file, bystander) = (try memoryFile(2 * page), try memoryFile(page))
    let mappings = try (0..<2).map { _ in
      try SharedMapping(file, size: UInt64(2 * page), writable: true)
    }
    let other = try SharedMapping(bystander, size: UInt64(page), writable: true)
    try mappings[0].write([1].span, at: 0)
    try other.write([2].span, at: 0)
    try file.setSize(page)
    #expect(throws: Errno.badAddress) { try mappings[0].bytes(at: UInt64(page), 1) }
    #expect(try mappings[1].bytes(at: 0, 1) == [1])
    #expect(try other.bytes(at: 0, 1) == [2])
    #expect(!mappings[1].isPoisoned && !other.isPoisoned)
  }

  @Test func `files may be truncated many times in a row`() throws {
    for round in 0..<2000 {
      let file = try memoryFile(4 * page)
      let mapping = try SharedMapping(file, size: UInt64(4 * page), writable: true)
      try file.setSize(round % 4 * page)
      #expect(throws: Errno.badAddress) { try mapping.bytes(at: 0, 4 * page) }
    }
  }

  @Test func `a mapping made where a poisoned one was is sound`() throws {
    for _ in 0..<200 {
      let file = try memoryFile(page)
      var poisoned: SharedMapping? = try SharedMapping(file, size: UInt64(page), writable: true)
      try file.setSize(0)
      #expect(throws: Errno.badAddress) { try poisoned?.bytes(at: 0, 1) }
      poisoned = nil
      try file.setSize(page)
      let fresh = try SharedMapping(file, size: UInt64(page), writable: true)
      #expect(!fresh.isPoisoned)
      try fresh.write([3].span, at: 0)
      #expect(try fresh.bytes(at: 0, 1) == [3])
    }
  }

  @Test func `two threads copy while a third truncates and grows the file`() throws {
    let pages = 16
    let file = try memoryFile(pages * page)
    let running = Atomic(2)
    let faults = Atomic(0)
    try inThreads(3) { thread in
      guard thread < 2 else {
        while running.load(ordering: .acquiring) > 0 {
          for size in [0, 3, pages] { try? file.setSize(size * page) }
        }
        return
      }
      defer { running.subtract(1, ordering: .releasing) }
      // Halves of their own, since what two threads write at once is their users' affair.
      let start = UInt64(thread * pages / 2 * page)
      let piece = [UInt8](repeating: 1, count: pages / 2 * page)
      for round in 0..<1500 {
        guard
          let mapping = try? SharedMapping(file, size: UInt64(pages * page), writable: true)
        else { continue }
        do throws(Errno) {
          if round % 2 == 0 {
            _ = try mapping.bytes(at: start, piece.count)
          } else {
            try mapping.write(piece.span, at: start)
          }
        } catch {
          if error == .badAddress, mapping.isPoisoned { faults.add(1, ordering: .relaxed) }
        }
      }
    }
    #expect(faults.load(ordering: .relaxed) > 0)
  }

  @Test func `two threads that share a mapping both learn of its truncation`() throws {
    for _ in 0..<50 {
      let file = try memoryFile(8 * page)
      let mapping = try SharedMapping(file, size: UInt64(8 * page), writable: true)
      let learned = Atomic(0)
      try inThreads(3) { thread in
        if thread == 2 {
          try? file.setSize(page)
          return
        }
        // Bounded by the truncation, which comes for sure.
        while (try? mapping.bytes(at: UInt64((1 + thread * 3) * page), page)) != nil {}
        learned.add(1, ordering: .relaxed)
      }
      #expect(learned.load(ordering: .relaxed) == 2)
    }
  }

  // MARK: memory files

  @Test func `a memory file can be neither resized nor sealed by anyone`() throws {
    let file = try makeMemoryFile("test", size: UInt64(page))
    for size in [0, page / 2, 2 * page] {
      #expect(throws: Errno.notPermitted) { try file.duplicate().setSize(size) }
    }
    #expect(throws: Errno.notPermitted) { try call { fcntl(file.rawValue, 1033, 8) } }
    let mapping = try SharedMapping(file, size: UInt64(page), writable: true)
    try mapping.write([1].span, at: UInt64(page - 1))
    #expect(try mapping.bytes(at: UInt64(page - 2), 2) == [0, 1])
  }

  @Test func `a memory file of impossible size is refused`() {
    #expect(throws: Errno.noMemory) { try makeMemoryFile("test", size: .max) }
  }
}
