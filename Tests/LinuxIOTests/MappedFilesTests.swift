import CLinux
import Glibc
import SystemPackage
import Testing

@testable import LinuxIO

@Suite struct MappedFilesTests {
  private let files = MappedFiles()
  private let size = UInt64(page)

  @Test func `a file has one mapping, whatever part is asked for and by which descriptor`() throws {
    let file = try memoryFile(4 * page)
    let whole = try files.mapping(of: file, offset: 0, size: 4 * size, writable: true)
    let part = try files.mapping(
      of: try file.duplicate(), offset: 3 * size, size: size, writable: true)
    #expect(whole === part)
    #expect(whole.size == 4 * size)
  }

  @Test func `other files, and the other way of access, have mappings of their own`() throws {
    let (file, other) = (try memoryFile(page), try memoryFile(page))
    let written = try files.mapping(of: file, offset: 0, size: size, writable: true)
    let read = try files.mapping(of: file, offset: 0, size: size, writable: false)
    let second = try files.mapping(of: other, offset: 0, size: size, writable: true)
    #expect(written !== read)
    #expect(written !== second)
    #expect(throws: Errno.badAddress) { try read.write([1].span, at: 0) }
  }

  @Test func `a file that grew gets another mapping, and the first one stays`() throws {
    let file = try memoryFile(page)
    let first = try files.mapping(of: file, offset: 0, size: size, writable: true)
    try file.setSize(2 * page)
    let same = try files.mapping(of: file, offset: 0, size: size, writable: true)
    #expect(same === first)
    let second = try files.mapping(of: file, offset: size, size: size, writable: true)
    #expect(second !== first)
    try first.write([8].span, at: 0)
    #expect(try second.bytes(at: 0, 1) == [8])
  }

  @Test func `a file that is too short fails with EINVAL`() throws {
    let file = try memoryFile(page)
    for (offset, size) in [
      (0, size + 1), (size, 1), (1, size), (UInt64.max, 1), (UInt64.max, .max), (1, .max),
    ] {
      #expect(throws: Errno.invalidArgument) {
        try files.mapping(of: file, offset: offset, size: size, writable: true)
      }
    }
    #expect(throws: Errno.invalidArgument) {
      try files.mapping(of: try memoryFile(0), offset: 0, size: 0, writable: true)
    }
    #expect(files.count == 0)
  }

  @Test func `a file that was truncated before it is asked for again fails with EINVAL`() throws {
    let file = try memoryFile(2 * page)
    let mapping = try files.mapping(of: file, offset: 0, size: 2 * size, writable: true)
    try file.setSize(page)
    #expect(throws: Errno.invalidArgument) {
      try files.mapping(of: file, offset: 0, size: 2 * size, writable: true)
    }
    #expect(!mapping.isPoisoned)
  }

  @Test func `what is no regular file fails with EINVAL`() throws {
    let others = [
      try makePipe().read, try Socket.pair().0.descriptor, try openFile("/tmp", O_RDONLY),
      try openFile("/dev/zero", O_RDWR), try eventFile(0),
    ]
    for other in others {
      #expect(throws: Errno.invalidArgument) {
        try files.mapping(of: other, offset: 0, size: size, writable: false)
      }
    }
  }

  @Test func `a file opened for reading maps for reading, and for writing fails with EACCES`()
    throws
  {
    let file = try memoryFile(page)
    let path = "/proc/self/fd/\(file.rawValue)"
    let readOnly = try openFile(path, O_RDONLY)
    _ = try files.mapping(of: readOnly, offset: 0, size: size, writable: false)
    #expect(throws: Errno.permissionDenied) {
      try files.mapping(of: readOnly, offset: 0, size: size, writable: true)
    }
    let writeOnly = try openFile(path, O_WRONLY)
    for writable in [false, true] {
      #expect(throws: Errno.permissionDenied) {
        try files.mapping(of: writeOnly, offset: 0, size: size, writable: writable)
      }
    }
  }

  @Test func `read-only descriptors don't get at a mapping that is for writing`() throws {
    let file = try memoryFile(page)
    let written = try files.mapping(of: file, offset: 0, size: size, writable: true)
    let readOnly = try openFile("/proc/self/fd/\(file.rawValue)", O_RDONLY)
    let read = try files.mapping(of: readOnly, offset: 0, size: size, writable: false)
    #expect(read !== written)
  }

  @Test func `a file sealed against writing fails with EACCES for writing`() throws {
    let file = try memoryFile(page)
    try call { fcntl(file.rawValue, 1033, 8) }  // F_ADD_SEALS, F_SEAL_WRITE
    #expect(throws: Errno.permissionDenied) {
      try files.mapping(of: file, offset: 0, size: size, writable: true)
    }
    let readOnly = try openFile("/proc/self/fd/\(file.rawValue)", O_RDONLY)
    _ = try files.mapping(of: readOnly, offset: 0, size: size, writable: false)
  }

  @Test func `a poisoned mapping is not used again`() throws {
    let file = try memoryFile(page)
    let poisoned = try files.mapping(of: file, offset: 0, size: size, writable: true)
    try file.setSize(0)
    #expect(throws: Errno.badAddress) { try poisoned.bytes(at: 0, 1) }
    try file.setSize(page)
    let fresh = try files.mapping(of: file, offset: 0, size: size, writable: true)
    #expect(fresh !== poisoned)
    #expect(try fresh.bytes(at: 0, 1) == [0])
    #expect(throws: Errno.badAddress) { try poisoned.bytes(at: 0, 1) }
    let again = try files.mapping(of: file, offset: 0, size: size, writable: true)
    #expect(again === fresh)
  }

  @Test func `a file nobody maps any more is let go`() throws {
    let file = try memoryFile(page)
    weak let mapping = try files.mapping(of: file, offset: 0, size: size, writable: true)
    #expect(mapping == nil)
  }

  @Test func `files that are no longer mapped don't pile up`() throws {
    let kept = try (0..<10).map { _ in
      let file = try memoryFile(page)
      return (file, try files.mapping(of: file, offset: 0, size: size, writable: true))
    }
    for _ in 0..<1000 {
      _ = try files.mapping(of: try memoryFile(page), offset: 0, size: size, writable: true)
    }
    #expect(files.count <= 64)
    for (file, mapping) in kept {
      #expect(
        try files.mapping(of: file, offset: 0, size: size, writable: true) === mapping)
    }
  }
}
