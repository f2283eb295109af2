import Foundation
import Logging
import Testing
import VFIOClient
import VFIOServer

/// One at a time, because some of them count the process's descriptors.
@Suite(.serialized) struct `The client` {}

let edu = "0000:06:0d.0"
let scratch = "0000:07:00.0"

/// A server in this process, of the built-in topology by default, in a directory of its own.
final class World {
  let directory: String
  private let server: Server
  let vfio: VFIO

  init(_ configuration: Configuration = .builtIn) throws {
    directory = FileManager.default.temporaryDirectory.path + "/vfio-\(UUID().uuidString.prefix(8))"
    var logger = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
    logger.logLevel = .critical
    server = try Server(directory: directory, configuration: configuration, logger: logger)
    vfio = try VFIO.connect(directory: directory)
  }

  func stop() {
    if !isStopped { server.stop() }
    isStopped = true
  }
  private var isStopped = false

  deinit {
    stop()
    try? FileManager.default.removeItem(atPath: directory)
  }

  /// A group in a container with type1 v2.
  func group(_ id: UInt32) throws -> (Container, Group) {
    let container = try vfio.openContainer()
    let group = try vfio.openGroup(id)
    try group.setContainer(container)
    try container.setIOMMU(.type1v2)
    return (container, group)
  }

  func edu() throws -> (Container, Device) {
    let (container, group) = try group(26)
    return (container, try group.openDevice(VFIOClientTests.edu))
  }

  func scratch() throws -> Device { try group(27).1.openDevice(VFIOClientTests.scratch) }
}

/// The errno with which `body` fails; nil when it doesn't.
func errno<Value>(_ body: () throws(VFIOError) -> Value) -> Errno? {
  do throws(VFIOError) {
    _ = try body()
    return nil
  } catch {
    return error.errno
  }
}

func openDescriptors() throws -> Int {
  try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count
}
