import LinuxIO
import SystemPackage
import VFIOStream
import VFIOWire

/// Messages on their way to the server.
struct Outgoing: Sendable {
  private var output = Output()
  private var lastID: UInt16 = 0
  private var tickets: [Connection.Ticket] = []
  /// A send failed after a part of the messages had gone.
  private(set) var isTorn = false

  mutating func request(
    _ command: Command, with descriptors: [Descriptor] = [], _ body: (inout Output) -> Void
  ) -> Connection.Ticket {
    let ticket = Connection.Ticket(id: write(command, [], descriptors, body), command: command)
    tickets.append(ticket)
    return ticket
  }

  mutating func post(_ command: Command, _ body: (inout Output) -> Void) {
    _ = write(command, .noReply, [], body)
  }

  /// Does a command of the server's, and answers it unless it wants no answer.
  mutating func reply(to request: Header, _ body: (inout Output) throws(Errno) -> Void) {
    output.begin(replyTo: request)
    var failure: Errno?
    do throws(Errno) {
      try body(&output)
    } catch {
      failure = error
    }
    if request.flags.contains(.noReply) {
      output.discard()
    } else if let failure {
      output.fail(UInt32(bitPattern: failure.rawValue))
    } else {
      output.finish()
    }
  }

  private mutating func write(
    _ command: Command, _ flags: Header.Flags, _ descriptors: [Descriptor],
    _ body: (inout Output) -> Void
  ) -> UInt16 {
    lastID &+= 1
    output.begin(Header(id: lastID, command: command, messageSize: 0, flags: flags))
    body(&output)
    for descriptor in descriptors { output.attach(descriptor) }
    output.finish()
    return lastID
  }

  /// The requests written since the last time.
  mutating func takeTickets() -> [Connection.Ticket] {
    defer { tickets = [] }
    return tickets
  }

  /// Sends all that is written. A message with descriptors goes alone.
  mutating func send(on socket: Socket) throws(Errno) {
    let size = output.count
    do throws(Errno) {
      while output.count > 0 {
        let (range, descriptors) = output.next
        let sent = try output.withBytes(range) { bytes throws(Errno) in
          try socket.send(bytes, with: descriptors, wait: true)
        }
        output.sent(sent ?? 0)
      }
    } catch {
      isTorn = output.count < size
      output = Output()
      throw error
    }
  }
}
