import LinuxIO
import SystemPackage
import VFIOWire

/// Messages on their way out. The storage is kept between messages, so that writing one allocates
/// nothing.
public struct Output: Sendable {
  private var bytes = [UInt8](repeating: 0, count: 4096)
  /// Unsent bytes are `bytes[start..<end]`.
  private var start = 0
  private var end = 0
  /// Messages that carry descriptors, each to be sent alone, in order; positions in `bytes`.
  private var attachments: [(range: Range<Int>, descriptors: [Descriptor])] = []
  private var current: (start: Int, descriptors: [Descriptor]) = (0, [])

  public init() {}

  /// Unsent bytes.
  public var count: Int { end - start }

  // MARK: writing

  /// Begins the reply to `request`; what follows is its body.
  public mutating func begin(replyTo request: Header) {
    begin(Header(id: request.id, command: request.command, messageSize: 0, flags: .reply))
  }

  /// Begins a message; `finish` sets its size.
  public mutating func begin(_ header: Header) {
    let offset = advance(Header.size)
    current = (offset, [])
    var all = bytes.mutableSpan
    header.write(to: &all, at: offset)
  }

  /// The message is complete; returns how many descriptors it carries.
  @discardableResult
  public mutating func finish() -> Int {
    let (start, size) = (current.start, UInt32(truncatingIfNeeded: end - current.start))
    var all = bytes.mutableSpan
    all.set(size, at: start + 4)
    let count = current.descriptors.count
    if count > 0 {
      attachments.append((current.start..<end, current.descriptors))
      current.descriptors = []
    }
    return count
  }

  /// Takes back all of the message but its header, which becomes an error's.
  public mutating func fail(_ error: UInt32) {
    let start = current.start
    end = start + Header.size
    current.descriptors = []
    var all = bytes.mutableSpan
    all.set(Header.Flags.reply.union(.error).rawValue, at: start + 8)
    all.set(error, at: start + 12)
    finish()
  }

  /// Takes back the message.
  public mutating func discard() {
    end = current.start
    current.descriptors = []
  }

  /// The message that `finish` or `fail` has just completed; no bytes after `discard`.
  public func withLatest(_ body: (Span<UInt8>) -> Void) {
    body(bytes.span.extracting(current.start..<end))
  }

  public mutating func append(_ value: UInt16) {
    let offset = advance(2)
    var all = bytes.mutableSpan
    all.set(value, at: offset)
  }

  public mutating func append(_ value: UInt32) {
    let offset = advance(4)
    var all = bytes.mutableSpan
    all.set(value, at: offset)
  }

  public mutating func append(_ value: UInt64) {
    let offset = advance(8)
    var all = bytes.mutableSpan
    all.set(value, at: offset)
  }

  public mutating func append(_ value: Int64) { append(UInt64(bitPattern: value)) }

  public mutating func append(_ more: Span<UInt8>) {
    let offset = advance(more.count)
    var all = bytes.mutableSpan
    for index in 0..<more.count { all[offset + index] = more[index] }
  }

  public mutating func append(_ more: [UInt8]) { append(more.span) }

  /// Appends `count` bytes that `body` writes; whatever it leaves is from earlier messages, so it must
  /// write them all or throw.
  public mutating func append(
    count: Int, _ body: (inout MutableSpan<UInt8>) throws(Errno) -> Void
  ) throws(Errno) {
    let offset = advance(count)
    var all = bytes.mutableSpan
    var space = all._mutatingExtracting(offset..<offset + count)
    try body(&space)
  }

  /// Sends a descriptor with the current message.
  public mutating func attach(_ descriptor: Descriptor) { current.descriptors.append(descriptor) }

  // MARK: sending

  /// What the next send takes: bytes up to the next message with descriptors, or that message.
  public var next: (range: Range<Int>, descriptors: [Descriptor]) {
    guard let first = attachments.first else { return (start..<end, []) }
    if start < first.range.lowerBound { return (start..<first.range.lowerBound, []) }
    return (start..<first.range.upperBound, first.descriptors)
  }

  /// The storage, of which `next` names a range.
  public func withBytes<Result>(
    _ range: Range<Int>, _ body: (Span<UInt8>) throws(Errno) -> Result
  ) throws(Errno) -> Result {
    try body(bytes.span.extracting(range))
  }

  /// `count` bytes of `next` were sent, and its descriptors with the first of them.
  public mutating func sent(_ count: Int) {
    start += count
    if let first = attachments.first, start > first.range.lowerBound { attachments.removeFirst() }
    if start == end {
      (start, end) = (0, 0)
    }
  }

  /// Makes room for `count` bytes at the end, and returns where they begin.
  private mutating func advance(_ count: Int) -> Int {
    // Room that sent bytes left is used again, or a client that never reads the last reply before it
    // asks for the next would make the storage grow for ever. Moving pays when less is moved than freed.
    if bytes.count - end < count, start >= end - start { moveToFront() }
    if bytes.count - end < count {
      let room = max(count - (bytes.count - end), bytes.count)
      bytes.append(contentsOf: repeatElement(0, count: room))
    }
    end += count
    return end - count
  }

  private mutating func moveToFront() {
    let distance = start
    for index in start..<end { bytes[index - distance] = bytes[index] }
    for index in attachments.indices {
      let range = attachments[index].range
      attachments[index].range = range.lowerBound - distance..<range.upperBound - distance
    }
    current.start -= distance
    (start, end) = (0, end - distance)
  }
}
