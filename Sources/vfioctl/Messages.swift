import JSON
import VFIOClient

/// What the messages of vfio-user mean: the names of commands and of their fields, as
/// `protocol/protocol.json` has them.
struct MessageLayout: Sendable {
  /// How a field is written.
  enum Style: Sendable {
    case decimal, hex, region, interrupt
    case flags([(UInt64, String)])
    /// The rest of the message.
    case bytes, text
  }

  struct Field: Sendable {
    var name: String
    /// Bytes; 0 for the rest.
    var size: Int
    var style: Style
  }

  var name: String
  var request: [Field] = []
  var reply: [Field] = []

  private static func u16(_ name: String, _ style: Style = .decimal) -> Field {
    Field(name: name, size: 2, style: style)
  }
  private static func u32(_ name: String, _ style: Style = .decimal) -> Field {
    Field(name: name, size: 4, style: style)
  }
  private static func u64(_ name: String, _ style: Style = .hex) -> Field {
    Field(name: name, size: 8, style: style)
  }
  private static func rest(_ name: String, _ style: Style = .bytes) -> Field {
    Field(name: name, size: 0, style: style)
  }

  private static let version = [u16("major"), u16("minor"), rest("data", .text)]
  private static let access = [u64("offset"), u32("region", .region), u32("count")]
  private static let dma = [u64("address"), u64("count", .decimal)]
  private static let unmap = [
    u32("argsz"), u32("flags", .flags([(1, "dirty-bitmap"), (2, "all")])), u64("address"),
    u64("size"),
  ]
  private static let deviceInfo = [
    u32("argsz"), u32("flags", .flags([(1, "reset"), (2, "pci")])), u32("num_regions"),
    u32("num_irqs"),
  ]
  private static let regionInfo = [
    u32("argsz"),
    u32("flags", .flags([(1, "read"), (2, "write"), (4, "mmap"), (8, "caps")])),
    u32("index", .region), u32("cap_offset"), u64("size"), u64("offset"),
  ]
  private static let regionIO = [
    u32("argsz"), u32("flags", .hex), u32("index", .region), u32("count"),
  ]
  private static let interruptInfo = [
    u32("argsz"),
    u32(
      "flags", .flags([(1, "eventfd"), (2, "maskable"), (4, "automasked"), (8, "noresize")])),
    u32("index", .interrupt), u32("count"),
  ]
  private static let feature = [
    u32("argsz"),
    u32("flags", .flags([(0x10000, "get"), (0x20000, "set"), (0x40000, "probe")])), rest("data"),
  ]
  private static let migration = [u32("argsz"), u32("size")]

  /// By the command's number.
  static let all: [UInt16: MessageLayout] = [
    1: MessageLayout(name: "version", request: version, reply: version),
    2: MessageLayout(
      name: "dma-map",
      request: [
        u32("argsz"), u32("flags", .flags([(1, "read"), (2, "write")])), u64("offset"),
        u64("address"), u64("size"),
      ]),
    3: MessageLayout(name: "dma-unmap", request: unmap, reply: unmap + [rest("bitmap")]),
    4: MessageLayout(name: "device-get-info", request: deviceInfo, reply: deviceInfo),
    5: MessageLayout(
      name: "device-get-region-info", request: regionInfo,
      reply: regionInfo + [rest("capabilities")]),
    6: MessageLayout(
      name: "device-get-region-io-fds", request: regionIO, reply: regionIO + [rest("sub_regions")]),
    7: MessageLayout(name: "device-get-irq-info", request: interruptInfo, reply: interruptInfo),
    8: MessageLayout(
      name: "device-set-irqs",
      request: [
        u32("argsz"),
        u32(
          "flags",
          .flags([
            (1, "none"), (2, "bool"), (4, "eventfd"), (8, "mask"), (16, "unmask"),
            (32, "trigger"),
          ])),
        u32("index", .interrupt), u32("start"), u32("count"), rest("data"),
      ]),
    9: MessageLayout(name: "region-read", request: access, reply: access + [rest("data")]),
    10: MessageLayout(name: "region-write", request: access + [rest("data")], reply: access),
    11: MessageLayout(name: "dma-read", request: dma, reply: dma + [rest("data")]),
    12: MessageLayout(name: "dma-write", request: dma + [rest("data")], reply: dma),
    13: MessageLayout(name: "device-reset"),
    15: MessageLayout(
      name: "region-write-multi", request: [u64("wr_cnt", .decimal), rest("writes")],
      reply: [u64("wr_cnt", .decimal)]),
    16: MessageLayout(name: "device-feature", request: feature, reply: feature),
    17: MessageLayout(
      name: "mig-data-read", request: migration, reply: migration + [rest("data")]),
    18: MessageLayout(name: "mig-data-write", request: migration + [rest("data")]),
  ]

  /// The names of all commands, in their order.
  static let names = all.sorted { $0.key < $1.key }.map(\.value.name)

  static func name(of command: UInt16) -> String { all[command]?.name ?? "command-\(command)" }
}

/// A field of a message, and what is in it.
struct DecodedField {
  enum Value {
    case number(UInt64)
    case bytes([UInt8])
  }
  var name: String
  var style: MessageLayout.Style
  var value: Value

  /// The fields that are there. What the layout doesn't know, or only half of came, is bytes.
  static func fields(of message: Trace.Message) -> [DecodedField] {
    guard message.errno == nil else { return [] }
    let layout = MessageLayout.all[message.command]
    let known = (message.isReply ? layout?.reply : layout?.request) ?? []
    var (fields, place) = ([DecodedField](), 0)
    for field in known + [.init(name: "rest", size: 0, style: .bytes)] {
      let left = message.payload[place...]
      guard !left.isEmpty else { break }
      if field.size == 0 || left.count < field.size {
        fields.append(
          DecodedField(
            name: field.size == 0 ? field.name : "rest",
            style: field.size == 0 ? field.style : .bytes, value: .bytes(Array(left))))
        break
      }
      let number = left.prefix(field.size).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
      fields.append(DecodedField(name: field.name, style: field.style, value: .number(number)))
      place += field.size
    }
    return fields
  }

  /// For people.
  var text: String { "\(name)=\(shown)" }

  private var shown: String {
    switch (value, style) {
    case (.number(let number), .decimal): "\(number)"
    case (.number(let number), .region): RegionName.name(of: number)
    case (.number(let number), .interrupt): InterruptName.name(of: number)
    case (.number(let flags), .flags(let known)):
      flags == 0 ? "0" : names(of: flags, known).joined(separator: "|")
    case (.number(let number), _): "0x\(hex(number))"
    case (.bytes(let bytes), .text): String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    case (.bytes(let bytes), _) where [1, 2, 4, 8].contains(bytes.count):
      // Most likely a register, in the device's byte order.
      "0x\(hex(bytes.reversed()))"
    case (.bytes(let bytes), _):
      bytes.count <= 16 ? hex(bytes) : "\(hex(bytes.prefix(16)))..."
    }
  }

  /// For programs: integers as they are, flags as a list of names, bytes as hexadecimal digits.
  var json: JSONMember {
    switch (value, style) {
    case (.number(let flags), .flags(let known)):
      JSONMember(name, .array(names(of: flags, known).map { .string($0) }))
    case (.number(let number), _): JSONMember(name, .integer(Int128(number)))
    case (.bytes(let bytes), .text):
      JSONMember(name, .string(String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)))
    case (.bytes(let bytes), _): JSONMember(name, .string(hex(bytes)))
    }
  }
}

extension Errno {
  /// Its name, such as EINVAL; its number when it has none here.
  var name: String {
    switch self {
    case .notPermitted: "EPERM"
    case .noSuchFileOrDirectory: "ENOENT"
    case .interrupted: "EINTR"
    case .ioError: "EIO"
    case .noSuchAddressOrDevice: "ENXIO"
    case .badFileDescriptor: "EBADF"
    case .resourceTemporarilyUnavailable: "EAGAIN"
    case .noMemory: "ENOMEM"
    case .permissionDenied: "EACCES"
    case .badAddress: "EFAULT"
    case .resourceBusy: "EBUSY"
    case .fileExists: "EEXIST"
    case .operationNotSupportedByDevice: "ENODEV"
    case .invalidArgument: "EINVAL"
    case .tooManyOpenFiles: "EMFILE"
    case .inappropriateIOCTLForDevice: "ENOTTY"
    case .fileTooLarge: "EFBIG"
    case .noSpace: "ENOSPC"
    case .outOfRange: "ERANGE"
    case .noFunction: "ENOSYS"
    case .overflow: "EOVERFLOW"
    case .notSupported: "ENOTSUP"
    case .argListTooLong: "E2BIG"
    case .socketShutdown: "ESHUTDOWN"
    case .tooManyReferences: "ETOOMANYREFS"
    case .timedOut: "ETIMEDOUT"
    case .protocolError: "EPROTO"
    default: "errno \(rawValue)"
    }
  }
}
