import Foundation
import Glibc
import LinuxIO
import SystemPackage
import VFIOWire

@testable import VFIOServer

/// A server in this process, in a directory of its own.
final class Running {
  let directory: TemporaryDirectory
  let server: Server

  init(_ configuration: Configuration = .builtIn) throws {
    directory = try TemporaryDirectory()
    server = try Server(directory: directory.path, configuration: configuration, logger: quiet)
  }

  deinit { server.stop() }

  /// A client of the root socket, after VERSION.
  func root() throws -> Client { try connectRoot(directory.path) }

  /// A client of a device's socket, before VERSION.
  func socket(_ device: String = World.scratch) throws -> Client {
    try Client(path: "\(directory.path)/devices/\(device).sock")
  }

  /// A client of a device's socket, after VERSION.
  func device(_ device: String = World.scratch) throws -> Client {
    let client = try socket(device)
    try client.call(.version, version01)
    return client
  }
}

private func connectRoot(_ directory: String) throws -> Client {
  let client = try Client(path: "\(directory)/vfio.sock")
  try client.call(.version, version01)
  return client
}

/// Asks a device's socket something that it must answer.
func ask(_ device: Client) throws(Errno) {
  try device.call(.deviceGetInfo, bytes(UInt32(16), UInt32(0), UInt32(0), UInt32(0)))
}

extension Client {
  /// What a root socket opens.
  func openContainer() throws -> Client { try Client(call(.openContainer).descriptor) }

  func openGroup(_ id: UInt32 = World.group) throws -> Client {
    try Client(call(.openGroup, bytes(id)).descriptor)
  }

  func externalUser(of group: Client) throws -> Client {
    try Client(call(.getExternalUser, with: [group.descriptor]).descriptor)
  }

  /// What a group's does.
  func setContainer(_ container: Client) throws {
    try call(.groupSetContainer, with: [container.descriptor])
  }

  func openDevice(_ name: String = World.scratch) throws -> Client {
    let device = try Client(call(.groupGetDeviceFD, text(name)).descriptor)
    try device.call(.version, version01)
    return device
  }
}

/// `vfiod` in a process of its own, whose descriptors and memory are nobody else's.
final class Daemon {
  let directory: TemporaryDirectory
  private let process: ProcessID
  /// How it ended.
  private var status: Int32?

  /// Starts it, with as many descriptors as it may open, and waits until it serves.
  init(descriptors: Int = 4096) throws {
    directory = try TemporaryDirectory()
    let vfiod = Bundle.main.bundleURL.appending(path: "vfiod").path
    process = try spawn([
      "/bin/sh", "-c",
      "ulimit -n \(descriptors); exec \"$0\" --directory \"$1\" --log-level critical", vfiod,
      directory.path,
    ])
    for _ in 0..<60_000 {
      if (try? root()) != nil { return }
      usleep(1000)
    }
    throw Errno.timedOut
  }

  deinit { _ = stop() }

  /// Ends it with SIGTERM, and returns its status, or -1 when something else has ended it.
  func stop() -> Int32 {
    if let status { return status }
    kill(process, SIGTERM)
    var end: CInt = 0
    // Sound: the call fills the integer given.
    while unsafe waitpid(process, &end, 0) == -1 && errno == EINTR {}
    let exited = end & 0x7F == 0 ? end >> 8 : -1
    status = exited
    return exited
  }

  func root() throws -> Client { try connectRoot(directory.path) }

  func socket(_ device: String = World.scratch) throws -> Client {
    try Client(path: "\(directory.path)/devices/\(device).sock")
  }

  func device(_ device: String = World.scratch) throws -> Client {
    let client = try socket(device)
    try client.call(.version, version01)
    return client
  }

  /// How many descriptors it has open.
  var descriptors: Int {
    let path = "/proc/\(process)/fd"
    return (try? FileManager.default.contentsOfDirectory(atPath: path).count) ?? 0
  }

  /// Whether it comes to have this many descriptors open. `root` is asked in between, so that the
  /// server has a reason to look at what has closed.
  func comes(to count: Int, _ root: Client) throws -> Bool {
    for _ in 0..<5000 {
      if descriptors == count { return true }
      try root.call(.getTopology, bytes(UInt32(8), UInt32(0)))
      sched_yield()
    }
    return false
  }

  /// Processor time that it has used, in seconds.
  var processorTime: Double {
    let path = "/proc/\(process)/stat"
    let fields = (try? String(contentsOfFile: path, encoding: .utf8))?.split(separator: " ") ?? []
    guard fields.count > 15, let user = Double(fields[13]), let system = Double(fields[14]) else {
      return 0
    }
    return (user + system) / Double(sysconf(CInt(_SC_CLK_TCK)))
  }
}

/// Starts a program.
private func spawn(_ arguments: [String]) throws(Errno) -> ProcessID {
  // Sound: the copies are there until the call has returned, and end with nil.
  let copies = unsafe arguments.map { unsafe strdup($0) } + [nil]
  defer { for index in unsafe copies.indices { unsafe free(copies[index]) } }
  var process: ProcessID = 0
  let error = unsafe posix_spawn(&process, copies[0]!, nil, nil, copies, environ)
  guard error == 0 else { throw Errno(rawValue: error) }
  return process
}
