import ArgumentParser
import Glibc
import LinuxIO
import Logging
import SystemPackage
import VFIOServer

@main
struct VFIOD: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vfiod",
    abstract: "Offers emulated VFIO containers, groups and devices on Unix sockets.",
    discussion: """
      Programs that speak VFIO connect to DIRECTORY/vfio.sock; emulators that speak vfio-user \
      connect to DIRECTORY/devices/NAME.sock, NAME being a device's PCI address.

      SIGINT or SIGTERM stop the server, which then removes its sockets.
      """,
    version: "0.1.0")

  @Option(
    help: ArgumentHelp(
      "Where the sockets are. Default: $XDG_RUNTIME_DIR/vfiod, or /run/vfiod as root.",
      valueName: "directory"))
  var directory: String?

  @Option(help: "The topology and the limits, as JSON. Default: the built-in topology.")
  var config: String?

  @Option(
    help: "What to log: trace, debug, info, notice, warning, error or critical.",
    transform: Self.logLevel)
  var logLevel: Logger.Level = .warning

  func run() throws {
    LoggingSystem.bootstrap(StreamLogHandler.standardError)
    var logger = Logger(label: "vfiod")
    logger.logLevel = logLevel

    // Before anyone can see the server, or a signal sent at once would be lost.
    let signals = HeldSignals([SIGINT, SIGTERM])
    let server: Server
    do {
      server = try Server(
        directory: try directory ?? Self.defaultDirectory(),
        configuration: try config.map(Self.read) ?? .builtIn,
        file: config ?? "built-in topology", logger: logger)
    } catch {
      complain("vfiod: \(error)")
      throw ExitCode.failure
    }
    signals.wait()
    server.stop()
  }

  private static func logLevel(_ name: String) throws -> Logger.Level {
    guard let level = Logger.Level(rawValue: name) else {
      throw ValidationError("\(name) is not one of the levels")
    }
    return level
  }

  private static func defaultDirectory() throws -> String {
    guard let path = defaultServerDirectory() else {
      throw ValidationError("XDG_RUNTIME_DIR is not set: say --directory DIR")
    }
    return path
  }

  private static func read(_ path: String) throws -> Configuration {
    let text: [UInt8]
    do {
      text = try readFile(path, limit: 1 << 20)
    } catch {
      throw ValidationError("\(path): \("\(error)".lowercased())")
    }
    return try Configuration(parsing: text.span, file: path, names: Server.names)
  }
}
