import JSON
import SystemPackage
import VFIOCore
import VFIOStream
import VFIOWire

/// The negotiation that opens the root socket and device sockets (vfio-user, `VFIO_USER_VERSION`).
struct Version {
  /// The version of the protocol that this server speaks: 0.1, and with it 0.0.
  static let major: UInt16 = 0
  static let minor: UInt16 = 1
  /// What QEMU takes at most as an answer. A client that proposes more is told of more.
  private static let mostDescriptors = 16
  private static let mostMappings = 65535
  /// The largest message before VERSION has told the limit.
  static let messageLimit = 64 << 10
  /// vfio-user's `max_data_xfer_size` of a client that names none.
  static let defaultTransferSize = 1 << 20

  /// The major version isn't ours: the connection cannot go on.
  private(set) var isRefused = false
  private(set) var isDone = false
  /// The client gets a second socket for this server's requests, whose descriptor is the reply's first.
  private(set) var hasTwin = false
  /// What the client can take; without a word of it vfio-user's defaults.
  private(set) var peer = Peer()

  struct Peer {
    /// Descriptors in one message.
    var messageDescriptors = 1
    /// Bytes in one message's transfer.
    var maxDataTransferSize = Version.defaultTransferSize
  }

  /// Answers VERSION. `EINVAL` when it comes twice, for another major version, and for capabilities
  /// that aren't what they should be.
  ///
  /// `mayTwin`: whether a second socket can be had. `begin` runs when the request is good; its error is
  /// the answer, and VERSION may be tried again.
  mutating func negotiate(
    _ body: Span<UInt8>, _ limits: Configuration.Limits, mayTwin: Bool = false,
    _ reply: inout Output, begin: () throws(Errno) -> Void = {}
  ) throws(Errno) {
    guard !isDone else { throw .invalidArgument }
    try body.require(4)
    guard body.uint16(at: 0) == Self.major else {
      isRefused = true
      throw .invalidArgument
    }
    var peer = Peer()
    let answer = try capabilities(body, limits, mayTwin, &peer)
    try begin()
    self.peer = peer
    isDone = true
    reply.append(Self.major)
    reply.append(min(Self.minor, body.uint16(at: 2)))
    reply.append(Array(answer.text.utf8) + [0])
  }

  /// What is offered back: of the capabilities proposed, those that this server has.
  private mutating func capabilities(
    _ body: Span<UInt8>, _ limits: Configuration.Limits, _ mayTwin: Bool, _ peer: inout Peer
  ) throws(Errno) -> JSONValue {
    // A request before this one may have been refused.
    hasTwin = false
    guard body.count > 4 else { return .object([]) }
    var end = 4
    while end < body.count, body[end] != 0 { end += 1 }
    guard end == body.count - 1 else { throw .invalidArgument }
    do throws(JSONError) {
      let document = JSONReader(try JSONValue(parsing: body.extracting(4..<end)))
      _ = try document.members()
      let proposed = document["capabilities"]
      guard proposed.exists else { return .object([]) }
      var offered: [JSONMember] = []
      for member in try proposed.members() {
        var ours: Int
        switch member.name {
        case "write_multiple":
          if try member.reader.bool() { offered.append(JSONMember(member.name, true)) }
          continue
        case "twin_socket":
          _ = try member.reader.members()
          hasTwin = try member.reader["supported"].bool(default: false) && mayTwin
          if hasTwin {
            offered.append(
              JSONMember(
                member.name,
                .object([JSONMember("supported", true), JSONMember("fd_index", .integer(0))])))
          }
          continue
        case "migration":
          // The size of a dirty page. What a client proposes is a hint, as DMA_LOGGING_START's is.
          if member.reader["pgsize"].exists {
            _ = try member.reader["pgsize"].integer(in: 0...UInt64.max)
          }
          _ = try member.reader.members()
          let page = JSONMember("pgsize", .integer(Int128(DirtyLog.smallestPage)))
          offered.append(JSONMember(member.name, .object([page])))
          continue
        case "max_msg_fds": ours = limits.messageDescriptors
        case "max_data_xfer_size": ours = limits.maxDataTransferSize
        case "max_dma_maps": ours = limits.mappings
        case "pgsizes": ours = 4096
        default: continue
        }
        let theirs: UInt64 = try member.reader.integer(in: 0...UInt64.max)
        switch member.name {
        case "max_msg_fds":
          peer.messageDescriptors = Int(clamping: theirs)
          ours = min(ours, max(Self.mostDescriptors, peer.messageDescriptors))
        case "max_dma_maps": ours = min(ours, max(Self.mostMappings, Int(clamping: theirs)))
        case "max_data_xfer_size": peer.maxDataTransferSize = Int(clamping: theirs)
        default: break
        }
        offered.append(JSONMember(member.name, .integer(Int128(ours))))
      }
      return .object([JSONMember("capabilities", .object(offered))])
    } catch {
      throw .invalidArgument
    }
  }
}
