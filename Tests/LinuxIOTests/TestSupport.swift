import CLinux
import Glibc
import SystemPackage

@testable import LinuxIO

let page = 4096

/// Shared memory whose size its owner may change, as a client's.
func memoryFile(_ size: Int) throws -> Descriptor {
  let file = Descriptor(owning: try call { unsafe clinux_memfd("test") })
  try file.setSize(size)
  return file
}

/// A file that is open at `path` as `flags` say.
func openFile(_ path: String, _ flags: CInt) throws -> Descriptor {
  Descriptor(owning: try call { unsafe open(path, flags | O_CLOEXEC, 0o600) })
}

func makePipe() throws -> (read: Descriptor, write: Descriptor) {
  let (read, write) = try FileDescriptor.pipe()
  return (Descriptor(owning: read.rawValue), Descriptor(owning: write.rawValue))
}

/// An eventfd as a client makes it.
func eventFile(_ flags: Int, count: UInt32 = 0) throws -> Descriptor {
  Descriptor(owning: try call { eventfd(count, CInt(flags)) })
}

// Two calls that Glibc's module lacks.
private typealias IntegerCall = @convention(c) (CInt, CInt) -> CInt

private func libraryCall(_ name: String, _ first: CInt, _ second: CInt) throws -> CInt {
  let symbol = unsafe dlsym(nil, name)
  let function = unsafe unsafeBitCast(symbol, to: IntegerCall.self)
  return try call { function(first, second) }
}

func timerFile() throws -> Descriptor {
  Descriptor(owning: try libraryCall("timerfd_create", CLOCK_MONOTONIC, 0))
}

/// Gives the calling thread a table of descriptors of its own.
func unshareDescriptors() throws { _ = try libraryCall("unshare", 0x400, 0) }

extension Descriptor {
  func setSize(_ size: Int) throws(Errno) { try call { ftruncate(rawValue, size) } }

  /// The same open file under another number.
  func duplicate() throws(Errno) -> Descriptor { try Descriptor(duplicating: borrowed) }

  /// Which open file this is, whatever its number: equal for pipes' and files' duplicates.
  var identity: String { Descriptor.identity(of: rawValue) ?? "closed" }

  /// What number `descriptor` of this process refers to; nil when it is closed.
  static func identity(of descriptor: CInt) -> String? {
    var info = stat()
    guard unsafe fstat(descriptor, &info) == 0 else { return nil }
    return "\(info.st_dev):\(info.st_ino)"
  }

  /// Descriptors of this process that refer to the same file: other tests' don't count.
  var copies: Int {
    (0..<CInt(32_768)).count { Descriptor.identity(of: $0) == identity }
  }

  func writeCount(_ value: UInt64) throws(Errno) {
    var value = value
    try call { unsafe write(rawValue, &value, 8) }
  }

  /// Reads an eventfd; nil when it is empty.
  func readCount() -> UInt64? {
    var state = pollfd(fd: rawValue, events: Int16(POLLIN), revents: 0)
    guard unsafe poll(&state, 1, 0) == 1 else { return nil }
    var value: UInt64 = 0
    return unsafe read(rawValue, &value, 8) == 8 ? value : nil
  }
}

/// Runs `body` in so many threads at once, each with its number, and returns when all are done. They are
/// threads of their own: Dispatch has no more than there are processors.
func inThreads(_ count: Int, _ body: @escaping (Int) -> Void) throws {
  final class Job {
    let run: () -> Void
    init(_ run: @escaping () -> Void) { self.run = run }
  }
  var threads: [pthread_t] = []
  defer { for thread in threads { pthread_join(thread, nil) } }
  for number in 0..<count {
    var thread = pthread_t()
    let job = unsafe Unmanaged.passRetained(Job { body(number) })
    // Sound: the thread takes over the reference that it is given.
    let result = unsafe pthread_create(
      &thread, nil,
      { context in
        if let context = unsafe context {
          unsafe Unmanaged<Job>.fromOpaque(context).takeRetainedValue().run()
        }
        return nil
      }, job.toOpaque())
    guard result == 0 else { throw Errno(rawValue: result) }
    threads.append(thread)
  }
}

extension SharedMapping {
  func bytes(at offset: UInt64, _ count: Int) throws(Errno) -> [UInt8] {
    var bytes = [UInt8](repeating: 0xEE, count: count)
    var span = bytes.mutableSpan
    try read(at: offset, into: &span)
    return bytes
  }
}

extension ProcessMemory {
  func bytes(at offset: UInt64, _ count: Int) throws(Errno) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    try read(at: offset, into: &span)
    return bytes
  }
}

extension Socket {
  /// Reads what has arrived: the bytes, and what came with them. nil when nothing has.
  func take(
    most: Int = 65_536, wait: Bool = false
  ) throws(Errno) -> (bytes: [UInt8], rest: Received)? {
    var bytes = [UInt8](repeating: 0, count: most)
    var span = bytes.mutableSpan
    guard let received = try receive(into: &span, wait: wait) else { return nil }
    return (Array(bytes.prefix(received.count)), received)
  }

  @discardableResult
  func give(_ bytes: [UInt8], _ descriptors: [Descriptor] = []) throws(Errno) -> Int? {
    try send(bytes.span, with: descriptors, wait: false)
  }
}

/// A directory of a test's own, gone with it.
final class Directory {
  let path: String

  init() throws {
    var template = Array("/tmp/linuxio-XXXXXX".utf8CString)
    guard unsafe mkdtemp(&template) != nil else { throw Errno(rawValue: errno) }
    path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  deinit {
    guard let stream = unsafe opendir(path) else { return }
    while let entry = unsafe readdir(stream) {
      let name = unsafe withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
        unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
      }
      _ = unsafe unlink("\(path)/\(name)") == 0 || rmdir("\(path)/\(name)") == 0
    }
    _ = unsafe closedir(stream)
    _ = unsafe rmdir(path)
  }
}
