import Foundation
import Glibc
import SystemPackage

@testable import LinuxIO

/// This process, as the kernel would name it in its messages.
let thisProcess = Credentials(process: getpid(), user: getuid(), group: getgid())

/// A page of this process's memory.
@safe final class Page {
  // Sound: allocated here, freed in deinit, and read by nobody but the kernel.
  private let memory = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 4096)

  init() { unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: 4096) }
  deinit { unsafe memory.deallocate() }

  var address: UInt64 { UInt64(UInt(bitPattern: unsafe memory)) }
}

extension EventFD {
  /// How often it was signalled since it was last asked; nil for never.
  func takeCount() -> UInt64? {
    var count: UInt64 = 0
    // Sound: eight bytes are written to an integer of eight. Those of LinuxIO don't block.
    return unsafe Glibc.read(descriptor.rawValue, &count, 8) == 8 ? count : nil
  }
}

extension Socket {
  /// Makes a wait for something to read end with nothing after this time, so that a server which
  /// doesn't answer fails a test instead of hanging it.
  func limitWait(seconds: Int) {
    var time = timeval(tv_sec: seconds, tv_usec: 0)
    // Sound: the option is a timeval, given with its size.
    _ = unsafe setsockopt(
      descriptor.rawValue, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
    _ = unsafe setsockopt(
      descriptor.rawValue, SOL_SOCKET, SO_SNDTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
  }
}

/// A directory that goes with all that is in it.
final class TemporaryDirectory {
  let path: String

  init() throws {
    path = "/tmp/vfiod-test-\(UUID().uuidString.prefix(8))"
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
  }
  deinit { try? FileManager.default.removeItem(atPath: path) }

  /// The names of all that is in it, except directories.
  var files: [String] {
    let names = FileManager.default.enumerator(atPath: path)?.allObjects as? [String] ?? []
    return names.filter { $0 != "devices" }.sorted()
  }
}

/// Makes a file of zero bytes, or changes its size.
func openFile(making path: String, size: Int64) throws -> Descriptor {
  if !FileManager.default.fileExists(atPath: path) {
    _ = FileManager.default.createFile(atPath: path, contents: nil)
  }
  let file = try openFile(path)
  try file.borrowed.resize(to: size)
  return file
}
