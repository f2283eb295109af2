import LinuxIO
import SystemPackage
import VFIOStream
import VFIOWire

/// One socket's side of the protocol: a function of the messages that arrive on it. It knows nothing of
/// reading, writing, waiting or threads: one thread at a time uses it, its connection's.
protocol Session: AnyObject {
  /// Answers a message: writes the body of the reply, or throws the errno that is the reply.
  func handle(
    _ request: Request, _ body: Span<UInt8>, _ reply: inout Output
  ) throws(Errno)

  /// After `handle`: the reply, if it will only come later. What the session wrote is dropped then.
  func takeLater() -> Later?

  /// The largest message that it takes, header included.
  var messageLimit: Int { get }

  /// Whether what a command does stays when its client has gone. A client that hangs up without waiting for
  /// its replies gets this much done, and nothing else.
  func outlivesClient(_ command: Command) -> Bool

  /// The connection is to be closed once the replies so far are sent.
  var isFinished: Bool { get }

  /// The connection is there: what this server may ask its client goes through `requests`.
  func connected(_ requests: ClientRequests)

  /// Whether DMA_READ and DMA_WRITE replies are answers to this server.
  var takesReplies: Bool { get }

  /// The session has found its device, and goes on on a loop of its own.
  var wantsOwnLoop: Bool { get }

  /// Where its messages can be seen; nil for what isn't traced.
  var tracepoint: Tracepoint? { get }

  /// The peer has gone, or the server stops: does what the kernel's `release` does. Called once.
  func close()
}

extension Session {
  func takeLater() -> Later? { nil }
  func outlivesClient(_ command: Command) -> Bool { false }
  var isFinished: Bool { false }
  func connected(_ requests: ClientRequests) {}
  var takesReplies: Bool { false }
  var wantsOwnLoop: Bool { false }
  var tracepoint: Tracepoint? { nil }
}

/// A message, without its body.
struct Request {
  var header: Header
  /// What came with it. Whatever isn't kept closes before the reply is sent.
  var descriptors: [Descriptor] = []
  /// Who sent it, where the socket asks for that.
  var sender: Credentials?
  /// Whether the reply may carry descriptors: the client must collect those it was sent first, because
  /// Linux bounds how many are on their way, for all of the server's clients together.
  var mayHandOut = true
}

extension Span where Element == UInt8 {
  /// `EINVAL` unless the body holds the structure that the operation reads.
  func require(_ size: Int) throws(Errno) {
    guard count >= size else { throw .invalidArgument }
  }

  /// A string up to its NUL, which must be the body's last byte; at most a page, as the kernel takes.
  func string() throws(Errno) -> String {
    guard count > 0, count <= 4096, self[count - 1] == 0 else { throw .invalidArgument }
    var bytes: [UInt8] = []
    for index in 0..<count where self[index] != 0 { bytes.append(self[index]) }
    guard bytes.count == count - 1, let string = String(validating: bytes, as: UTF8.self) else {
      throw .invalidArgument
    }
    return string
  }
}
