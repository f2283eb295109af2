import ArgumentParser
import Dispatch
import Glibc
import LinuxIO
import VFIOClient

struct TraceCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "trace",
    abstract: "Shows the messages of a device as they come, until Ctrl-C.",
    discussion: """
      For the administrator. It sees all clients of the device, those that connect later too, and it \
      disturbs none: what it can't read in time is dropped, and counted. A line has the time (UTC), the \
      connection, > for what the client sent and < for what the server sent, the command and its fields. \
      A reply ends with how long the request took.

        vfioctl trace 0000:06:0d.0 --only region-write --only device-set-irqs
        vfioctl trace 0000:06:0d.0 --region bar0 --json --count 100
      """)

  @OptionGroup var server: ServerOptions
  @Argument(help: "The device's PCI address.") var device: String
  @Option(
    help: ArgumentHelp(
      "Show this command, and its replies. May be repeated.", valueName: "command"),
    completion: .list(MessageLayout.names))
  var only: [String] = []
  @Option(
    help: ArgumentHelp(
      "Show what is about this region: bar0 to bar5, rom, config, or an index. May be repeated.",
      valueName: "region"), completion: RegionName.completion)
  var region: [RegionName] = []
  @Option(help: "End after this many lines.") var count: Int?
  @Flag(help: "Print a JSON object per line, times in nanoseconds.") var json = false

  func validate() throws {
    for name in only where !MessageLayout.names.contains(name) {
      throw ValidationError(
        "\(name) is no command: they are \(MessageLayout.names.joined(separator: ", "))")
    }
    if let count, count < 1 { throw ValidationError("--count \(count) is less than 1") }
  }

  func run() throws {
    // Before there are other threads, which would take the signals.
    let signals = HeldSignals([SIGINT, SIGTERM])
    try server.withServer { vfio in
      let trace = try begin(vfio)
      DispatchQueue(label: "signals").async {
        signals.wait()
        trace.end()
        signals.wait()
        Glibc.exit(1)  // it is stuck where its output goes
      }
      complain("tracing \(device); Ctrl-C ends it")
      try show(trace)
    }
  }

  private func begin(_ vfio: VFIO) throws -> Trace {
    do throws(VFIOError) {
      return try vfio.trace(device)
    } catch {
      switch error.errno {
      case .operationNotSupportedByDevice:
        throw Failure("there is no device \(device): see vfioctl ls")
      case .notPermitted:
        throw Failure("trace \(device): only root and the user that runs the server may")
      case .tooManyOpenFiles:
        throw Failure("trace \(device): the server has as many traces or connections as it may")
      default: throw error
      }
    }
  }

  private func show(_ trace: Trace) throws {
    var log = TraceLog(
      commands: Set(only), regions: Set(region.map { UInt64($0.index.rawValue) }), isJSON: json)
    var left = count ?? Int.max
    while true {
      let events = try trace.next()
      guard !events.isEmpty else { return }
      for event in events {
        guard let line = log.line(event) else { continue }
        print(line)
        left -= 1
        if left == 0 { return }
      }
      guard flushOutput() else { throw Failure("standard output cannot be written") }
    }
  }
}
