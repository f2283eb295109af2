/// Messages on their way out. The storage is kept between messages, so that writing one allocates
/// nothing.
public struct Output<Descriptor> {
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
    current = (end, [])
    append(request.id)
    append(request.command.rawValue)
    append(UInt32(0))
    append(Header.Flags.reply.rawValue)
    append(UInt32(0))
  }

  /// Begins a command of this side's own.
  public mutating func begin(_ command: Command, id: UInt16, flags: Header.Flags = []) {
    current = (end, [])
    append(id)
    append(command.rawValue)
    append(UInt32(0))
    append(flags.rawValue)
    append(UInt32(0))
  }

  /// The message is complete; returns how many descriptors it carries.
  @discardableResult
  public mutating func finish() -> Int {
    replace(at: current.start + 4, UInt32(truncatingIfNeeded: end - current.start))
    let count = current.descriptors.count
    if count > 0 {
      attachments.append((current.start..<end, current.descriptors))
      current.descriptors = []
    }
    return count
  }

  /// Takes back all of the message but its header, which becomes an error's.
  public mutating func fail(_ error: UInt32) {
    end = current.start + Header.size
    current.descriptors = []
    replace(at: current.start + 8, (Header.Flags.reply.union(.error)).rawValue)
    replace(at: current.start + 12, error)
    finish()
  }

  /// Takes back the message.
  public mutating func discard() {
    end = current.start
    current.descriptors = []
  }

  public mutating func append<Integer: FixedWidthInteger>(_ value: Integer) {
    reserve(Integer.bitWidth / 8)
    end += Integer.bitWidth / 8
    replace(at: end - Integer.bitWidth / 8, value)
  }

  public mutating func append(_ more: Span<UInt8>) {
    reserve(more.count)
    for index in 0..<more.count { bytes[end + index] = more[index] }
    end += more.count
  }

  public mutating func append(_ more: [UInt8]) { append(more.span) }

  /// Appends `count` bytes that `body` writes; whatever it leaves is from earlier messages, so it must
  /// write them all or throw.
  public mutating func append<Failure: Error>(
    count: Int, _ body: (inout MutableSpan<UInt8>) throws(Failure) -> Void
  ) throws(Failure) {
    reserve(count)
    let range = end..<end + count
    var all = bytes.mutableSpan
    var space = all._mutatingExtracting(range)
    try body(&space)
    end += count
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
  public func withBytes<Result, Failure: Error>(
    _ range: Range<Int>, _ body: (Span<UInt8>) throws(Failure) -> Result
  ) throws(Failure) -> Result {
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

  private mutating func reserve(_ count: Int) {
    if bytes.count - end < count {
      let room = max(count - (bytes.count - end), bytes.count)
      bytes.append(contentsOf: repeatElement(0, count: room))
    }
  }

  private mutating func replace<Integer: FixedWidthInteger>(at offset: Int, _ value: Integer) {
    let value = value.littleEndian
    for index in 0..<Integer.bitWidth / 8 {
      bytes[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index))
    }
  }
}

extension Output: Sendable where Descriptor: Sendable {}
