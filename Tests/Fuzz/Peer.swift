#if DEBUG || FUZZ
  import LinuxIO
  import SystemPackage
  import VFIOStream
  import VFIOWire

  /// A client's end of a connection: sends bytes, and checks that what comes back answers them.
  final class Peer {
    let socket: Socket
    /// The server has closed, or this end has.
    private(set) var isClosed = false
    private var input = VFIOStream.Input(limit: 1 << 26, descriptorLimit: 253)
    /// Bytes sent of a header that isn't complete, and bytes missing of a body.
    private var header: [UInt8] = []
    private var missing = 0
    /// Requests whose replies are to come, in order.
    private var asked: [Header] = []
    /// An impossible size was sent: nothing is read after that.
    private var isLost = false
    /// One that wants no reply may keep the others waiting.
    private var mayWait = false

    init(_ socket: Socket) { self.socket = socket }

    func close() {
      socket.shutdown()
      isClosed = true
    }

    // MARK: sending

    /// Sends what the server takes at once; one that takes less than all is left alone from then on.
    func send(_ bytes: [UInt8], _ descriptors: [Descriptor] = []) {
      guard !isClosed, !bytes.isEmpty else { return }
      note(bytes)
      let sent = try? socket.send(bytes.span, with: descriptors, wait: false)
      if sent != bytes.count { isLost = true }
    }

    func send(
      _ command: Command, _ body: [UInt8], flags: Header.Flags = [],
      _ descriptors: [Descriptor] = []
    ) {
      let header = Header(
        id: UInt16(truncatingIfNeeded: asked.count), command: command,
        messageSize: UInt32(Header.size + body.count), flags: flags)
      var bytes = [UInt8](repeating: 0, count: Header.size)
      var span = bytes.mutableSpan
      header.write(to: &span, at: 0)
      send(bytes + body, descriptors)
    }

    /// Finds the requests in the stream, as the server must.
    private func note(_ bytes: [UInt8]) {
      for byte in bytes where !isLost {
        if missing > 0 {
          missing -= 1
          continue
        }
        header.append(byte)
        guard header.count == Header.size else { continue }
        let request = Header(header.span)
        header = []
        if !request.flags.contains(.noReply) {
          asked.append(request)
        } else if request.mayTakeTime {
          mayWait = true
        }
        guard request.messageSize >= Header.size else {
          isLost = true
          return
        }
        missing = Int(request.messageSize) - Header.size
      }
    }

    // MARK: receiving

    /// Reads all that has come, and returns each message's header, body and descriptors.
    func receive() throws -> [(header: Header, body: [UInt8], descriptors: [Descriptor])] {
      var messages: [(Header, [UInt8], [Descriptor])] = []
      while !isClosed {
        switch input.next() {
        case .message(let header, let body, let descriptors, _):
          try check(header, descriptors.count)
          messages.append((header, Array(input.bytes[body]), descriptors))
        case .impossible(let header):
          throw Failure("a message of \(header.messageSize) bytes")
        case .incomplete:
          let received: Received?
          do throws(Errno) {
            received = try input.withRoom { room throws(Errno) in
              try socket.receive(into: &room, wait: false)
            }
          } catch {
            isClosed = true  // the server has closed without reading all
            return messages
          }
          guard let received else { return messages }
          if received.count == 0 { isClosed = true }
          input.received(
            received.count, descriptors: received.descriptors, truncated: received.truncated)
        }
      }
      return messages
    }

    private func check(_ header: Header, _ descriptors: Int) throws {
      let isReply = header.flags.intersection(.type) == .reply
      guard isReply else {
        // A request of the server's.
        switch header.command {
        case .dmaRead, .dmaWrite:
          guard header.flags.isEmpty else { break }
          return
        case .traceRecord:
          guard header.flags == .noReply else { break }
          return
        default: break
        }
        throw Failure("\(header) is no request")
      }
      let isError = header.flags.contains(.error)
      guard header.flags.subtracting(.error) == .reply, isError == (header.error != 0),
        header.error < 134
      else { throw Failure("\(header) is no reply") }
      if isError, header.messageSize != Header.size || descriptors > 0 {
        throw Failure("\(header) is an error with more than a header")
      }
      // A reply to DMA is for the server, which answers only one that it can't have asked for.
      while let request = asked.first {
        asked.removeFirst()
        if request.id == header.id, request.command == header.command { return }
        guard request.isAnswer else { throw Failure("\(header) answers \(request)") }
      }
      throw Failure("\(header) answers nothing")
    }

    /// Throws unless everything is answered that must be by now.
    func checkAnswered() throws {
      guard !isClosed, !isLost, !mayWait else { return }
      // The last may not be complete.
      let whole = missing > 0 ? asked.dropLast() : asked[...]
      guard let first = whole.first(where: { !$0.isAnswer }), !first.mayTakeTime else { return }
      throw Failure("\(first) isn't answered")
    }
  }

  extension Header {
    /// What a client answers to a request of the server's.
    fileprivate var isAnswer: Bool {
      flags.intersection(.type) == .reply && (command == .dmaRead || command == .dmaWrite)
    }

    fileprivate var mayTakeTime: Bool {
      switch command {
      case .addDevice, .removeDevice, .bindDriver, .unbindDriver, .deviceFeature: true
      default: false
      }
    }
  }
#endif
