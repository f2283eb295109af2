#if DEBUG || FUZZ
  import Glibc
  import LinuxIO
  import SystemPackage
  import VFIOWire

  /// The clients that an input is about, and the things that they send.
  final class Clients {
    private let world: World
    /// nil for one that has closed.
    private var peers: [Peer?] = []
    private var things: [Int: Descriptor] = [:]
    /// Descriptors that the server handed out and that aren't sockets.
    private var received: [Descriptor] = []
    /// How DMA requests are answered.
    private let answers: Int

    /// Peers that are kept; the server may close others.
    private static let mostPeers = 64

    init(_ world: World, answers: Int) {
      self.world = world
      self.answers = answers
    }

    // MARK: records

    func run(_ input: inout Input) throws {
      switch input.byte() % 8 {
      case let kind where kind < 2:
        let peer = peer(input.byte())
        let descriptors = try input.descriptors().compactMap(thing)
        let command = Command(rawValue: UInt16(input.short()))
        peer?.send(command, input.block(), flags: kind == 1 ? .noReply : [], descriptors)
        try serve()
      case let kind where kind < 4:
        let peer = peer(input.byte())
        let descriptors = try input.descriptors().compactMap(thing)
        peer?.send(input.block(), descriptors)
        if kind == 2 { try serve() }
      case 4:
        let what = input.byte()
        guard peers.count < Self.mostPeers else { return }
        let socket =
          what == 0
          ? try world.connectToRoot()
          : try world.connect(toDevice: (what - 1) & 15, process: what & 0x80 == 0 ? 100 : 101)
        peers.append(Peer(socket))
      case 5:
        let index = input.byte()
        guard !peers.isEmpty else { return }
        peers[index % peers.count] = nil
      case 6:
        peer(input.byte())?.waitForInput()
        try serve()
      default:
        let descriptor = try thing(input.byte())
        let what = input.byte()
        guard let descriptor else { return }
        switch what % 3 {
        case 0: (try? EventFD(checking: descriptor))?.signal()
        case let size: ftruncate(descriptor.rawValue, size == 1 ? 0 : 1 << 20)
        }
      }
    }

    private func peer(_ index: Int) -> Peer? {
      peers.isEmpty ? nil : peers[index % peers.count]
    }

    /// A thing that can be sent, made when it is first asked for.
    private func thing(_ choice: Int) throws -> Descriptor? {
      let (kind, index) = (choice & 15, choice >> 4)
      switch kind {
      case 7: return peer(index)?.socket.descriptor
      case 8: return received.isEmpty ? nil : received[index % received.count]
      default: break
      }
      if let made = things[kind] { return made }
      let made: Descriptor
      switch kind {
      case 0: made = try makeMemoryFile("fuzz", size: 1 << 20)
      case 1: made = try makeMemoryFile("fuzz", size: 4096)
      case 2:
        guard let memory = try thing(0) else { return nil }
        let path = FilePath("/proc/self/fd/\(memory.rawValue)")
        made = Descriptor(owning: try FileDescriptor.open(path, .readOnly).rawValue)
      case 3: made = try makeMemoryFile("fuzz", size: 1 << 28)
      case 4, 5: made = try EventFD().descriptor
      case 6: made = try Descriptor.null()
      case 9: made = try Socket.pair().0.descriptor
      case 10:
        made = Descriptor(
          owning: try FileDescriptor.open(FilePath("/proc/self/maps"), .readOnly).rawValue)
      case 11:
        made = Descriptor(owning: try FileDescriptor.open(FilePath("/proc"), .readOnly).rawValue)
      default: made = try makeMemoryFile("fuzz", size: 4096 + 17)
      }
      things[kind] = made
      return made
    }

    // MARK: the server's turns

    /// Lets the server answer until it has nothing to do.
    func serve() throws {
      for turn in 0..<15_000 {
        if turn >= 10_000 { usleep(1000) }  // it may be another thread that has something to do
        var isIdle = try !world.takeTurn()
        for index in peers.indices {
          guard let peer = peers[index] else { continue }
          for (header, body, descriptors) in try peer.receive() {
            isIdle = false
            keep(descriptors)
            if header.flags.intersection(.type) != .reply { answer(header, body, peer) }
          }
        }
        if isIdle { return }
      }
      throw Failure("the server finds no rest")
    }

    private func keep(_ descriptors: [Descriptor]) {
      for descriptor in descriptors {
        if descriptor.socketCookie == nil {
          received.append(descriptor)
        } else if peers.count < Self.mostPeers {
          peers.append(Peer(Socket(descriptor)))
        }
      }
    }

    /// Answers a DMA_READ or DMA_WRITE.
    private func answer(_ header: Header, _ body: [UInt8], _ peer: Peer) {
      guard header.command != .traceRecord, body.count >= 16 else { return }
      let count = Int(clamping: body.span.uint64(at: 8))
      let data =
        header.command == .dmaRead ? [UInt8](repeating: 0x5A, count: min(count, 1 << 20)) : []
      var answer = Header(
        id: header.id, command: header.command, messageSize: UInt32(Header.size), flags: .reply)
      var rest = Array(body[..<16]) + data
      switch answers % 7 {
      case 1: return
      case 2:
        answer.flags.insert(.error)
        answer.error = 14
        rest = []
      case 3: rest = Array(rest.dropLast())
      case 4: rest = Array(rest.prefix(12))
      case 5: rest = []
      case 6: rest += [0, 0]
      default: break
      }
      answer.messageSize += UInt32(rest.count)
      var bytes = [UInt8](repeating: 0, count: Header.size)
      var span = bytes.mutableSpan
      answer.write(to: &span, at: 0)
      peer.send(bytes + rest)
    }

    func checkAnswered() throws {
      for peer in peers { try peer?.checkAnswered() }
    }
  }

  extension Peer {
    /// Returns when there is something to read, or after 1 ms.
    func waitForInput() {
      var state = pollfd(fd: socket.descriptor.rawValue, events: Int16(POLLIN), revents: 0)
      // Sound: one entry is given and one is said.
      _ = unsafe poll(&state, 1, 1)
    }
  }

  // MARK: situations

  extension Clients {
    /// Brings about a situation: nothing, a root socket, and for each device in turn its whole way, its
    /// own socket, and that with all capabilities.
    func begin(_ situation: Int) throws {
      switch situation % (2 + 3 * world.devices.count) {
      case 0: return
      case 1: try connectToRoot()
      default:
        let index = (situation - 2) / 3 % world.devices.count
        switch (situation - 2) % 3 {
        case 0: try goTheWay(to: world.devices[index].name, group: world.devices[index].group)
        case 1: try connect(toDevice: index, "{}")
        default:
          try connect(
            toDevice: index,
            #"{"capabilities":{"max_msg_fds":8,"twin_socket":{"supported":true},"write_multiple":true,"migration":{"pgsize":4096}}}"#
          )
        }
        try useMemory()
      }
    }

    private func connectToRoot() throws {
      peers.append(Peer(try world.connectToRoot()))
      try call(0, .version, [0, 0, 1, 0])
    }

    /// Peers: root, group, container, device.
    private func goTheWay(to name: String, group: UInt32) throws {
      try connectToRoot()
      try call(0, .openGroup, integers([group]))
      try call(0, .openContainer, [])
      guard let container = peer(2) else { return }
      try call(1, .groupSetContainer, [], [container.socket.descriptor])
      try call(2, .setIOMMU, integers([3, 0]))
      try call(1, .groupGetDeviceFD, Array(name.utf8) + [0])
      try call(3, .version, [0, 0, 1, 0])
    }

    private func connect(toDevice index: Int, _ capabilities: String) throws {
      peers.append(Peer(try world.connect(toDevice: index, process: 100)))
      try call(0, .version, [0, 0, 1, 0] + Array(capabilities.utf8) + [0])
      try call(0, .deviceReset, [])
    }

    /// Memory at 1 MiB by descriptor and at 4 MiB by message, and bus mastering.
    private func useMemory() throws {
      let device = peers.count > 2 ? 3 : 0
      guard let memory = try thing(0) else { return }
      try call(device, .dmaMap, integers([32, 3, 0, 0, 1 << 20, 0, 1 << 20, 0]), [memory])
      try call(device, .dmaMap, integers([32, 3, 0, 0, 1 << 22, 0, 1 << 20, 0]))
      try call(device, .regionWrite, integers([4, 0, 7, 2]) + [6, 0])
    }

    private func call(
      _ index: Int, _ command: Command, _ body: [UInt8], _ descriptors: [Descriptor] = []
    ) throws {
      peer(index)?.send(command, body, descriptors)
      try serve()
    }
  }

  private func integers(_ values: [UInt32]) -> [UInt8] {
    values.flatMap { value in (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
  }
#endif
