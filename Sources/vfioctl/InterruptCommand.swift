import ArgumentParser
import VFIOClient

struct InterruptCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "irq",
    abstract: "Lists a device's interrupts, waits for them, and triggers them.",
    discussion: """
      wait and trigger are clients of the device's own socket: the device must not be in use.

        vfioctl irq 0000:07:00.0
        vfioctl irq trigger 0000:07:00.0 msix 3
        vfioctl irq wait 0000:06:0d.0 msi --write bar0:0x60=1
      """,
    subcommands: [List.self, Wait.self, Trigger.self], defaultSubcommand: List.self)

  struct List: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Lists kinds, counts and flags.")

    @OptionGroup var server: ServerOptions
    @Argument(help: "The device's PCI address.") var device: String

    func run() throws {
      try server.withServer { vfio in
        var table = Table("INTERRUPT", "COUNT", "FLAGS")
        for interrupt in try vfio.look(at: device).interrupts {
          let flags = names(
            of: UInt64(interrupt.info.flags.rawValue),
            [(1, "eventfd"), (2, "maskable"), (4, "automasked"), (8, "noresize")])
          table.add(
            InterruptName.name(of: UInt64(interrupt.kind.rawValue)), "\(interrupt.info.count)",
            flags.isEmpty ? "-" : flags.joined(separator: ", "))
        }
        print(table.text)
      }
    }
  }

  /// What the other two say.
  struct Which: ParsableArguments {
    @Argument(help: "The device's PCI address.") var device: String
    @Argument(
      help: "The kind: intx, msi, msix, err, req, or an index.",
      completion: InterruptName.completion)
    var kind: InterruptName
    @Argument(help: "Which of its kind, from 0.") var index: UInt32 = 0
    @Option(help: "How many seconds to wait for the interrupt.") var timeout: Int = 10

    func validate() throws {
      if timeout < 0 { throw ValidationError("--timeout \(timeout) is less than 0") }
    }

    var name: String { "\(InterruptName.name(of: UInt64(kind.kind.rawValue))) \(index)" }

    /// Waits for the interrupt, and says that it came.
    func wait(for interrupt: Interrupt) throws {
      let times = try interrupt.wait(timeout: .seconds(timeout))
      guard times > 0 else { throw Failure("\(device): no \(name) in \(timeout) s") }
      print("\(device): \(name), \(times == 1 ? "once" : "\(times) times")")
    }
  }

  struct Wait: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Waits until the device raises an interrupt; status 1 if it doesn't.")

    @OptionGroup var server: ServerOptions
    @OptionGroup var which: Which
    @Option(
      help: ArgumentHelp(
        "Write this once the interrupt is enabled, such as bar0:0x60=1. May be repeated.",
        valueName: "region:offset=value"))
    var write: [RegisterWrite] = []
    @Option(help: "How many bytes a write has: 1, 2, 4 or 8.") var size = 4

    func validate() throws {
      guard [1, 2, 4, 8].contains(size) else {
        throw ValidationError("--size \(size) is not 1, 2, 4 or 8")
      }
    }

    func run() throws {
      try server.withServer { vfio in
        let device = try vfio.connect(to: which.device)
        let interrupt = try device.enableInterrupt(which.kind.kind, which.index)
        for write in write {
          try device.region(write.region.index).store(write.value, at: write.offset, size)
        }
        try which.wait(for: interrupt)
      }
    }
  }

  struct Trigger: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Raises an interrupt as if the device had, and sees it arrive.")

    @OptionGroup var server: ServerOptions
    @OptionGroup var which: Which

    func run() throws {
      try server.withServer { vfio in
        let interrupt = try vfio.connect(to: which.device)
          .enableInterrupt(which.kind.kind, which.index)
        try interrupt.trigger()
        try which.wait(for: interrupt)
      }
    }
  }
}

/// A write of the command line: `region:offset=value`.
struct RegisterWrite: ExpressibleByArgument {
  var region: RegionName
  var offset: UInt64
  var value: UInt64

  init?(argument: String) {
    let sides = argument.split(separator: "=", maxSplits: 1)
    let place = (sides.first ?? "").split(separator: ":", maxSplits: 1)
    guard sides.count == 2, place.count == 2,
      let region = RegionName(argument: String(place[0])),
      let offset = Number(argument: String(place[1])),
      let value = Number(argument: String(sides[1]))
    else { return nil }
    (self.region, self.offset, self.value) = (region, offset.value, value.value)
  }
}
