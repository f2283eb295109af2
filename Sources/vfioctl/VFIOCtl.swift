import ArgumentParser
import LinuxIO
import VFIOClient

@main
struct VFIOCtl: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vfioctl",
    abstract: "Looks at a running vfiod, and changes its devices.",
    discussion: """
      A group is what /dev/vfio/26 is to the kernel's clients: devices that an IOMMU can't tell apart, so \
      that one user gets all of them or none. A group is viable when none of its devices is in the hands \
      of a driver that does DMA behind the user's back.

        vfioctl ls                          what there is, and who uses it
        vfioctl demo                        the whole way to a device, call by call
        vfioctl unbind 0000:08:00.1         makes group 28 viable
        vfioctl bind 0000:08:00.1 e1000     and undoes it
        vfioctl add 29 '{"address": "0000:09:00.0", "model": "edu"}'
        vfioctl remove 0000:09:00.0 --timeout 5
        vfioctl trace 0000:06:0d.0          its messages, as they come
        vfioctl lspci -v 0000:06:0d.0       what the device says of itself
        vfioctl region read 0000:06:0d.0 bar0 0
        vfioctl irq 0000:06:0d.0

      For completion: vfioctl --generate-completion-script bash (or zsh).
      """,
    version: "0.1.0",
    subcommands: [
      List.self, Demo.self, Bind.self, Unbind.self, Add.self, Remove.self, Info.self,
      TraceCommand.self, ListPCI.self, RegionCommand.self, InterruptCommand.self,
    ])
}

/// Where the server is; every command takes it.
struct ServerOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "The server's directory. Default: $XDG_RUNTIME_DIR/vfiod, or /run/vfiod as root.",
      valueName: "directory"),
    completion: .directory)
  var directory: String?

  func path() throws -> String {
    if let directory { return directory }
    guard let path = defaultServerDirectory() else {
      throw ValidationError("XDG_RUNTIME_DIR is not set: say --directory DIR")
    }
    return path
  }

  private func connect(_ path: String) throws -> VFIO {
    do {
      return try VFIO.connect(directory: path)
    } catch {
      let isMissing = error.errno == .noSuchFileOrDirectory || error.errno == .connectionRefused
      guard isMissing else { throw error }
      throw Failure("no vfiod serves \(path): start one with vfiod --directory \(path)")
    }
  }

  /// Runs `body` with a connection to the server. What fails is said in one sentence, with status 1.
  func withServer(_ body: (VFIO) throws -> Void) throws {
    let path = try path()
    do {
      try body(try connect(path))
      guard flushOutput() else { throw Failure("standard output cannot be written") }
    } catch let error as ValidationError {
      throw error
    } catch {
      complain("vfioctl: \(error)")
      throw ExitCode.failure
    }
  }
}

/// Runs an administrator's request. `meanings` tells what an errno of it means to a person.
func administer(
  _ meanings: [Errno: String], _ body: () throws(VFIOError) -> Void
) throws {
  do throws(VFIOError) {
    try body()
  } catch {
    guard let meaning = meanings[error.errno] else { throw error }
    throw Failure("\(error.operation): \(meaning)")
  }
}

extension VFIO {
  /// The group that has the device.
  func group(of device: String) throws -> Topology.Group {
    let groups = try topology().groups
    guard let group = groups.first(where: { $0.devices.contains { $0.address == device } }) else {
      throw Failure("there is no device \(device): see vfioctl ls")
    }
    return group
  }
}

/// What went wrong, as a sentence.
struct Failure: Error, CustomStringConvertible {
  var description: String
  init(_ description: String) { self.description = description }
}
