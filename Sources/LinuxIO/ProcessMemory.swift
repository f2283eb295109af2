import CLinux
import Glibc
import SystemPackage

/// The number of a process.
public typealias ProcessID = pid_t

/// Another process's memory, as one program has it: reached by `/proc/PID/mem`, which pins that address
/// space. When the process ends or executes another program, every copy fails with `EFAULT`, so that no
/// other program's memory is ever met, nor that of a later process with the same number.
///
/// `process_vm_readv` is faster from some 100 KiB on, but reaches the new program after an `execve`.
public final class ProcessMemory: Sendable {
  private let process: ProcessID
  /// Tells whether `process` is still the one it was.
  private let identity: Descriptor
  private let memory: Descriptor

  /// `identity` is a pidfd of the process, if its caller has one.
  ///
  /// Throws `ESRCH` when there is no such process, `EACCES` when this one may not look into it.
  public init(_ process: ProcessID, identity: Descriptor? = nil) throws(Errno) {
    self.process = process
    if let identity {
      self.identity = identity
    } else {
      self.identity = Descriptor(owning: try call { clinux_pidfd(process) })
    }
    do throws(Errno) {
      // Sound: the path outlives the call.
      memory = Descriptor(
        owning: try call { unsafe open("/proc/\(process)/mem", O_RDWR | O_CLOEXEC) })
    } catch {
      throw error == .noSuchFileOrDirectory ? .noSuchProcess : error
    }
    // Asked after the memory was opened, so that it cannot be another process's.
    guard Self.isRunning(self.identity) else { throw .noSuchProcess }
  }

  private static func isRunning(_ identity: Descriptor) -> Bool {
    var state = pollfd(fd: identity.rawValue, events: Int16(POLLIN), revents: 0)
    // Sound: one entry is given and one is said. Repeated, since a signal's -1 says nothing.
    return (try? call { unsafe poll(&state, 1, 0) }) == 0
  }

  /// Whether the process still runs the program that it ran.
  public var isAlive: Bool {
    var byte: UInt8 = 0
    // Sound: there is room for a byte. Nothing is at address 0, an error as long as the address space
    // is used; the end of file comes when it isn't any more.
    return unsafe pread(memory.rawValue, &byte, 1, 0) != 0 && Self.isRunning(identity)
  }

  /// The user that the process belongs to: root's for one that nobody may look into. Throws `ESRCH`
  /// when it has ended.
  public func owner() throws(Errno) -> uid_t {
    var info = stat()
    // Sound: the path outlives the call, which fills the structure.
    try call { unsafe stat("/proc/\(process)", &info) }
    guard isAlive else { throw .noSuchProcess }
    return info.st_uid
  }

  /// Whether the process may read, or read and write, all of `address ..< address + size`.
  public func allows(_ address: UInt64, size: UInt64, writable: Bool) -> Bool {
    let (end, overflow) = address.addingReportingOverflow(size)
    // Sound: the path outlives the call.
    guard size > 0, !overflow,
      let file = try? call({ unsafe open("/proc/\(process)/maps", O_RDONLY | O_CLOEXEC) })
    else { return false }
    let maps = Descriptor(owning: file)
    var next = address
    var line: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 65536)
    while next < end {
      // Sound: the call writes at most the buffer's size.
      let count = unsafe Glibc.read(maps.rawValue, &buffer, buffer.count)
      guard count > 0 else { return false }
      for byte in buffer[..<count] {
        guard byte == UInt8(ascii: "\n") else {
          line.append(byte)
          continue
        }
        let area = Self.area(String(decoding: line, as: UTF8.self))
        line.removeAll(keepingCapacity: true)
        guard let area, area.range.upperBound > next else { continue }
        guard area.range.lowerBound <= next, area.permissions.hasPrefix(writable ? "rw" : "r")
        else { return false }
        next = area.range.upperBound
        if next >= end { return isAlive }
      }
    }
    return isAlive
  }

  /// A line of `/proc/PID/maps`: `7f5e000-7f5f000 rw-p …`.
  private static func area(_ line: String) -> (range: Range<UInt64>, permissions: Substring)? {
    let fields = line.split(separator: " ", maxSplits: 2)
    let ends = fields.first?.split(separator: "-") ?? []
    guard fields.count > 1, ends.count == 2, let start = UInt64(ends[0], radix: 16),
      let end = UInt64(ends[1], radix: 16), start <= end
    else { return nil }
    return (start..<end, fields[1])
  }

  /// Copies from the process's address `offset`; `EFAULT` where it has no such memory, or has ended.
  public func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    guard let position = off_t(exactly: offset) else { throw .badAddress }
    // Sound: the kernel writes at most the buffer's size.
    let copied = unsafe bytes.withUnsafeMutableBytes { buffer in
      unsafe pread(memory.rawValue, buffer.baseAddress, buffer.count, position)
    }
    guard copied == bytes.count else { throw .badAddress }
  }

  /// Copies to the process's address `offset`, as `read` does.
  public func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {
    guard let position = off_t(exactly: offset) else { throw .badAddress }
    // Sound: the kernel only reads the buffer.
    let copied = unsafe bytes.withUnsafeBufferPointer { buffer in
      unsafe pwrite(memory.rawValue, buffer.baseAddress, buffer.count, position)
    }
    guard copied == bytes.count else { throw .badAddress }
  }
}
