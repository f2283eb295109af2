import CLinux
import Glibc
import SystemPackage
import Testing

@testable import LinuxIO

/// A child that does nothing, or what a program of Python's says, until it is ended.
private final class Child {
  let process: ProcessID
  private var isEnded = false
  /// What the child prints, and what it reads.
  private let channel: Descriptor

  init(_ program: String? = nil) throws {
    // Closed on exec, so that a child's input ends with this object.
    let (ours, theirs) = try Socket.pair()
    channel = ours.descriptor
    let words =
      program.map { ["/usr/bin/env", "python3", "-u", "-c", $0] } ?? ["/bin/sleep", "1000"]
    var process = pid_t()
    // Sound: the arguments and actions outlive the call.
    var actions = unsafe posix_spawn_file_actions_t()
    unsafe posix_spawn_file_actions_init(&actions)
    defer { unsafe posix_spawn_file_actions_destroy(&actions) }
    unsafe posix_spawn_file_actions_adddup2(&actions, theirs.descriptor.rawValue, 0)
    unsafe posix_spawn_file_actions_adddup2(&actions, theirs.descriptor.rawValue, 1)
    let arguments = unsafe words.map { unsafe strdup($0) } + [nil]
    defer { for index in unsafe arguments.indices { unsafe free(arguments[index]) } }
    let result = unsafe posix_spawn(&process, words[0], &actions, nil, arguments, environ)
    guard result == 0 else { throw Errno(rawValue: result) }
    self.process = process
  }

  /// The next line that it prints.
  func line() throws -> String {
    var line: [UInt8] = []
    while true {
      var byte: UInt8 = 0
      guard unsafe Glibc.read(channel.rawValue, &byte, 1) == 1 else { throw Errno.brokenPipe }
      if byte == UInt8(ascii: "\n") { return String(decoding: line, as: UTF8.self) }
      line.append(byte)
    }
  }

  /// The address that it prints.
  func address() throws -> UInt64 { try #require(UInt64(try line())) }

  /// Gives it a line to read.
  func goOn(_ line: String = "") throws { try channel.borrowed.writeAll(Array("\(line)\n".utf8)) }

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

  // MARK: what the process does to its memory

  private static let buffer = """
    import ctypes, os, sys
    buffer = ctypes.create_string_buffer(b"parent", 16)
    print(ctypes.addressof(buffer))
    wait = sys.stdin.readline
    wait()

    """

  @Test func `what a fork's child has is not the parent's`() throws {
    let child = try Child(
      Self.buffer + """
        if os.fork() == 0:
            buffer.value = b"child"
            print("forked")
            wait()
            print(buffer.value.decode())
            os._exit(0)
        os.wait()
        print(buffer.value.decode())
        """)
    let place = try child.address()
    let memory = try ProcessMemory(child.process)
    try child.goOn()
    #expect(try child.line() == "forked")
    #expect(try memory.bytes(at: place, 6) == Array("parent".utf8))
    try memory.write(Array("PARENT".utf8).span, at: place)
    try child.goOn()
    #expect(try child.line() == "child")
    #expect(try child.line() == "PARENT")
  }

  @Test func `a fork's child that outlives its parent is not the parent`() throws {
    let child = try Child(
      Self.buffer + """
        if os.fork() == 0:
            print("forked")
            wait()
            os._exit(0)
        wait()
        os._exit(0)
        """)
    let place = try child.address()
    let memory = try ProcessMemory(child.process)
    try child.goOn()
    #expect(try child.line() == "forked")
    child.end()
    #expect(!memory.isAlive)
    #expect(throws: Errno.badAddress) { try memory.bytes(at: place, 6) }
    #expect(!memory.allows(place, size: 1, writable: false))
  }

  @Test func `a new program in a process is never reached`() throws {
    let child = try Child(
      Self.buffer + #"os.execvp("python3", ["python3", "-u", "-c", "print(1); input()"])"#)
    let place = try child.address()
    let memory = try ProcessMemory(child.process)
    let stack = try child.stack().upperBound
    #expect(memory.isAlive && memory.allows(place, size: 16, writable: true))
    try child.goOn()
    #expect(try child.line() == "1")
    #expect(!memory.isAlive)
    for address in [place, stack, try child.stack().upperBound] {
      #expect(throws: Errno.badAddress) { try memory.bytes(at: address, 1) }
      #expect(throws: Errno.badAddress) { try memory.write([1].span, at: address) }
    }
    #expect(!memory.allows(try child.stack().upperBound, size: 1, writable: false))
    let new = try ProcessMemory(child.process)
    #expect(new.isAlive)
    _ = try new.bytes(at: try child.stack().upperBound, 1)
  }

  @Test func `a process that has another's number now fails with ESRCH`() throws {
    let (earlier, later) = (try Child(), try Child())
    let identity = Descriptor(owning: try call { clinux_pidfd(earlier.process) })
    earlier.end()
    #expect(throws: Errno.noSuchProcess) {
      try ProcessMemory(later.process, identity: identity)
    }
  }

  @Test func `what the process unmaps fails with EFAULT`() throws {
    let area = try Area()
    let memory = try ProcessMemory(area.process)
    try area.unmap(page: 1)
    #expect(try memory.bytes(at: area.address, page).count == page)
    #expect(throws: Errno.badAddress) { try memory.bytes(at: area.address + UInt64(page), 1) }
    #expect(throws: Errno.badAddress) {
      try memory.write([1, 2].span, at: area.address + UInt64(page) - 1)
    }
    #expect(memory.isAlive)
  }

  // MARK: what the process may do itself

  @Test func `all of a range must be the process's`() throws {
    let area = try Area()
    let memory = try ProcessMemory(area.process)
    let (start, size) = (area.address, UInt64(3 * page))
    #expect(memory.allows(start, size: size, writable: true))
    #expect(memory.allows(start + 1, size: size - 1, writable: false))
    try area.unmap(page: 1)
    #expect(!memory.allows(start, size: size, writable: false))
    #expect(!memory.allows(start + UInt64(page), size: 1, writable: false))
    #expect(memory.allows(start, size: UInt64(page), writable: true))
    #expect(memory.allows(start + UInt64(2 * page), size: UInt64(page), writable: true))
    #expect(!memory.allows(start, size: UInt64(page) + 1, writable: false))
  }

  @Test func `a range may have several areas that touch`() throws {
    let area = try Area()
    let memory = try ProcessMemory(area.process)
    try area.protect(page: 1, PROT_READ)
    #expect(memory.allows(area.address, size: UInt64(3 * page), writable: false))
    #expect(!memory.allows(area.address, size: UInt64(3 * page), writable: true))
    try area.protect(page: 1, PROT_NONE)
    #expect(!memory.allows(area.address, size: UInt64(3 * page), writable: false))
    try area.protect(page: 1, PROT_WRITE)
    #expect(!memory.allows(area.address, size: UInt64(3 * page), writable: true))
  }

  @Test(
    arguments: [(0, 0), (0, 4096), (.max, 1), (.max, 2), (1 << 47, 1), (4096, .max)]
      as [(UInt64, UInt64)])
  func `an empty or impossible range is nobody's`(address: UInt64, size: UInt64) throws {
    #expect(!(try ProcessMemory(getpid())).allows(address, size: size, writable: false))
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

/// Three pages of another process's memory: in this one, a thread's might come where one was unmapped.
private final class Area {
  private let child: Child
  let address: UInt64
  var process: ProcessID { child.process }

  init() throws {
    child = try Child(
      """
      import ctypes
      libc = ctypes.CDLL(None)
      libc.mmap.restype = ctypes.c_void_p
      base = libc.mmap(None, 12288, 3, 0x22, -1, 0)
      print(base)
      while True: print(eval(input()))
      """)
    address = try child.address()
  }

  func unmap(page index: Int) throws {
    try call("libc.munmap(ctypes.c_void_p(base + \(index * page)), \(page))")
  }

  func protect(page index: Int, _ protection: CInt) throws {
    try call("libc.mprotect(ctypes.c_void_p(base + \(index * page)), \(page), \(protection))")
  }

  private func call(_ expression: String) throws {
    try child.goOn(expression)
    #expect(try child.line() == "0")
  }
}
