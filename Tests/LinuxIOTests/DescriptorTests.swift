import Glibc
import SystemPackage
import Testing

@testable import LinuxIO

@Suite struct DescriptorTests {
  @Test func `a descriptor closes when its last owner lets go`() throws {
    let (read, write) = try makePipe()
    var first: Descriptor? = try write.duplicate()
    var second = first
    #expect(write.copies == read.copies)
    let before = write.copies
    first = nil
    #expect(write.copies == before)
    #expect(second != nil)
    second = nil
    #expect(write.copies == before - 1)
  }

  @Test func `a duplicate is the same file under a number of its own, closed on exec`() throws {
    let (_, write) = try makePipe()
    let duplicate = try write.duplicate()
    #expect(duplicate.rawValue != write.rawValue)
    #expect(duplicate.identity == write.identity)
    #expect(fcntl(duplicate.rawValue, F_GETFD) & FD_CLOEXEC != 0)
  }

  @Test func `a descriptor that nobody has can't be duplicated`() {
    #expect(throws: Errno.badFileDescriptor) {
      try Descriptor(duplicating: FileDescriptor(rawValue: -1))
    }
  }

  @Test func `raising the limit of open files returns the limit that holds afterwards`() {
    let raised = raiseDescriptorLimit()
    var limit = rlimit()
    #expect(unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0)
    #expect(raised == Int(clamping: limit.rlim_cur))
  }

  @Test func `the null descriptor reads as empty`() throws {
    let null = try Descriptor.null()
    var byte: UInt8 = 1
    #expect(unsafe read(null.rawValue, &byte, 1) == 0)
  }
}
