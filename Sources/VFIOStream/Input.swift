import LinuxIO
import SystemPackage
import VFIOWire

/// What has arrived on a connection and is not yet handled: bytes, and the descriptors that came
/// with them, each given to its message.
public struct Input: Sendable {
  /// Received bytes are `bytes[start..<end]`; the rest is room.
  public private(set) var bytes: [UInt8]
  private var start = 0
  private var end = 0
  /// Offset of `start` in the whole stream, by which descriptors know their message.
  private var position: UInt64 = 0
  private var attachments: [(position: UInt64, descriptors: [Descriptor], damaged: Bool)] = []
  /// The largest message that is taken, header included.
  public var limit: Int
  /// The most descriptors that a message may bring.
  private let descriptorLimit: Int

  public init(limit: Int, descriptorLimit: Int) {
    bytes = [UInt8](repeating: 0, count: 4096)
    self.limit = limit
    self.descriptorLimit = descriptorLimit
  }

  /// Makes room for a read, and returns where it may go. Room grows as bytes arrive, never by what a
  /// header promises.
  private mutating func room() -> Range<Int> {
    if start == end {
      (start, end) = (0, 0)
    } else if end == bytes.count {
      if start > 0 {
        bytes.replaceSubrange(0..<end - start, with: bytes[start..<end])
        (start, end) = (0, end - start)
      } else {
        bytes.append(contentsOf: repeatElement(0, count: min(bytes.count, max(limit, 4096))))
      }
    }
    return end..<bytes.count
  }

  /// Lets a read fill the room.
  public mutating func withRoom<Result>(
    _ body: (inout MutableSpan<UInt8>) throws(Errno) -> Result
  ) throws(Errno) -> Result {
    let range = room()
    var all = bytes.mutableSpan
    var free = all._mutatingExtracting(range)
    return try body(&free)
  }

  /// Takes note of a read of `count` bytes and of what came with it.
  ///
  /// Descriptors belong to the last message that begins in the read, since a read ends after the data
  /// that brought them, and what was sent before may be glued in front. A read in which none begins
  /// continues a message, which then gets them. `truncated` says that the kernel dropped some.
  public mutating func received(_ count: Int, descriptors: [Descriptor], truncated: Bool) {
    end += count
    guard !descriptors.isEmpty || truncated else { return }
    var last = start
    while let size = sizeOfMessage(at: last), size >= Header.size, size < end - last {
      last += size
    }
    let owner = position + UInt64(last - start)
    if attachments.last?.position != owner {
      attachments.append((owner, [], false))
    }
    let index = attachments.count - 1
    let fits = descriptorLimit - attachments[index].descriptors.count
    attachments[index].descriptors += descriptors.prefix(fits)
    if truncated || descriptors.count > fits { attachments[index].damaged = true }
  }

  /// A whole message, or why there is none.
  public enum Next {
    case incomplete
    /// Its size is below a header's or above the limit: nothing after it can be trusted.
    case impossible(Header)
    /// Its bytes, without the header, are `bytes[body]` until the next call. `damaged`: it brought more
    /// descriptors than it may, or some were lost; those kept are in `descriptors`.
    case message(Header, body: Range<Int>, descriptors: [Descriptor], damaged: Bool)
  }

  public mutating func next() -> Next {
    guard end - start >= Header.size else { return .incomplete }
    let header = Header(bytes.span, at: start)
    guard let size = Int(exactly: header.messageSize), size >= Header.size, size <= limit else {
      return .impossible(header)
    }
    guard end - start >= size else { return .incomplete }
    let body = start + Header.size..<start + size
    var descriptors: [Descriptor] = []
    var damaged = false
    if let first = attachments.first, first.position == position {
      (descriptors, damaged) = (first.descriptors, first.damaged)
      attachments.removeFirst()
    }
    start += size
    position += UInt64(size)
    return .message(header, body: body, descriptors: descriptors, damaged: damaged)
  }

  /// nil while the field that says it hasn't arrived.
  private func sizeOfMessage(at offset: Int) -> Int? {
    guard end - offset >= 8 else { return nil }
    return Int(exactly: bytes.span.uint32(at: offset + 4))
  }
}
