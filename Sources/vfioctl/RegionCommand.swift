import ArgumentParser
import VFIOClient

struct RegionCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "region",
    abstract: "Reads and writes a device's registers and memory.",
    discussion: """
      As a client of the device's own socket: the device must not be in use, and is left as it is.

        vfioctl region read 0000:06:0d.0 bar0 0
        vfioctl region read 0000:06:0d.0 config 0 --count 64
        vfioctl region write 0000:06:0d.0 bar0 4 0x1234
      """,
    subcommands: [Read.self, Write.self])

  /// What both say.
  struct Place: ParsableArguments {
    @Argument(help: "The device's PCI address.") var device: String
    @Argument(
      help: "The region: bar0 to bar5, rom, config, vga, or an index.",
      completion: RegionName.completion)
    var region: RegionName
    @Argument(help: "Where in the region: bytes, decimal or with 0x.") var offset: Number
    @Option(
      help: "How many bytes one access has: 1, 2, 4 or 8.",
      completion: .list(["1", "2", "4", "8"]))
    var size = 4

    func validate() throws {
      guard [1, 2, 4, 8].contains(size) else {
        throw ValidationError("--size \(size) is not 1, 2, 4 or 8")
      }
    }
  }

  struct Read: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Prints a register, or with --count a dump.")

    @OptionGroup var server: ServerOptions
    @OptionGroup var place: Place
    @Option(help: "Dump this many bytes, in accesses of --size.") var count: Number?

    func validate() throws {
      guard let count = count?.value else { return }
      guard count > 0, count <= 1 << 24, count % UInt64(place.size) == 0 else {
        throw ValidationError(
          "--count \(count) is not a multiple of --size, from \(place.size) to \(1 << 24)")
      }
    }

    func run() throws {
      try server.withServer { vfio in
        let region = try vfio.connect(to: place.device).region(place.region.index)
        guard let count = count?.value else {
          return print(
            "0x\(hex(try region.load(at: place.offset.value, place.size), 2 * place.size))")
        }
        var bytes: [UInt8] = []
        for offset in stride(from: 0, to: count, by: place.size) {
          let (at, overflow) = place.offset.value.addingReportingOverflow(offset)
          guard !overflow else { throw Failure("offset \(place.offset.value) is too large") }
          let value = try region.load(at: at, place.size)
          bytes += (0..<place.size).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
        }
        print(dump(bytes, from: place.offset.value))
      }
    }
  }

  struct Write: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Writes a register.")

    @OptionGroup var server: ServerOptions
    @OptionGroup var place: Place
    @Argument(help: "What to write: decimal or with 0x.") var value: Number

    func validate() throws {
      guard place.size == 8 || value.value >> (8 * UInt64(place.size)) == 0 else {
        throw ValidationError("\(value.value) does not fit into \(place.size) bytes")
      }
    }

    func run() throws {
      try server.withServer { vfio in
        let region = try vfio.connect(to: place.device).region(place.region.index)
        try region.store(value.value, at: place.offset.value, place.size)
      }
    }
  }
}

extension Region {
  /// Loads 1, 2, 4 or 8 bytes in one access.
  func load(at offset: UInt64, _ size: Int) throws(VFIOError) -> UInt64 {
    switch size {
    case 1: UInt64(try load(UInt8.self, at: offset))
    case 2: UInt64(try load(UInt16.self, at: offset))
    case 4: UInt64(try load(UInt32.self, at: offset))
    default: try load(UInt64.self, at: offset)
    }
  }

  /// Stores 1, 2, 4 or 8 bytes in one access.
  func store(_ value: UInt64, at offset: UInt64, _ size: Int) throws(VFIOError) {
    switch size {
    case 1: try store(UInt8(truncatingIfNeeded: value), at: offset)
    case 2: try store(UInt16(truncatingIfNeeded: value), at: offset)
    case 4: try store(UInt32(truncatingIfNeeded: value), at: offset)
    default: try store(value, at: offset)
    }
  }
}
