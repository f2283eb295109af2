import Glibc
import SystemPackage
import Testing

@testable import LinuxIO

/// A child that does nothing until it is ended.
private final class Child {
  let process: ProcessID
  private var isEnded = false

  init() throws {
    var process = pid_t()
    // Sound: the arguments outlive the call.
    let arguments = unsafe [strdup("sleep"), strdup("1000"), nil]
    defer { for index in 0..<2 { unsafe free(arguments[index]) } }
    let result = unsafe posix_spawn(&process, "/bin/sleep", nil, nil, arguments, nil)
    guard result == 0 else { throw Errno(rawValue: result) }
    self.process = process
  }

  /// Ends it, so that its number may be used again.
  func end() {
    guard !isEnded else { return }
    isEnded = true
    kill(process, SIGKILL)
    _ = waitpid(process, nil, 0)
  }

  deinit { end() }

  /// Where its stack is, which is mapped, readable and writable from the first instruction on.
  func stack() throws -> ClosedRange<UInt64> {
    let maps = String(
      decoding: try readFile("/proc/\(process)/maps", limit: 1 << 20), as: UTF8.self)
    for line in maps.split(separator: "\n") where line.hasSuffix("[stack]") {
      let ends = line.split(separator: " ")[0].split(separator: "-")
      if let first = UInt64(ends[0], radix: 16), let end = UInt64(ends[1], radix: 16) {
        return first...(end - 1)
      }
    }
    throw Errno.noSuchProcess
  }
}

@Suite struct ProcessMemoryTests {
  @Test func `another process's memory can be read and written`() throws {
    let child = try Child()
    let memory = try ProcessMemory(child.process)
    // The last bytes of a stack are the program's name, then eight zeros.
    let stack = try child.stack()
    let name = Array("/bin/sleep".utf8) + [UInt8](repeating: 0, count: 9)
    let place = stack.upperBound - UInt64(name.count) + 1
    #expect(try memory.bytes(at: place, name.count) == name)
    try memory.write([1, 2, 3].span, at: place)
    #expect(try memory.bytes(at: place, 4) == [1, 2, 3, name[3]])
  }

  @Test func `an address where the process has nothing fails with EFAULT`() throws {
    let child = try Child()
    let memory = try ProcessMemory(child.process)
    let stack = try child.stack()
    for address: UInt64 in [0, 1, stack.upperBound, .max, .max - 7, 1 << 63] {
      #expect(throws: Errno.badAddress) { try memory.bytes(at: address, 8) }
      #expect(throws: Errno.badAddress) { try memory.write([1, 2].span, at: address) }
    }
    #expect(memory.isAlive)
  }

  @Test func `a process that has ended fails with EFAULT, before and after it is waited for`()
    throws
  {
    let child = try Child()
    let memory = try ProcessMemory(child.process)
    let place = try child.stack().upperBound
    #expect(memory.isAlive)
    #expect(try memory.bytes(at: place, 1) == [0])
    child.end()
    #expect(!memory.isAlive)
    #expect(throws: Errno.badAddress) { try memory.bytes(at: place, 1) }
    #expect(throws: Errno.badAddress) { try memory.write([1].span, at: place) }
  }

  @Test func `a process that isn't there fails with ESRCH`() throws {
    let child = try Child()
    child.end()
    #expect(throws: Errno.noSuchProcess) { try ProcessMemory(child.process) }
  }

  @Test func `this process is one like any other`() throws {
    let memory = try ProcessMemory(getpid())
    let mark: [UInt8] = [3, 1, 4, 1, 5]
    let read = try unsafe mark.withUnsafeBufferPointer { buffer in
      try memory.bytes(at: UInt64(UInt(bitPattern: buffer.baseAddress)), mark.count)
    }
    #expect(read == mark)
  }
}
