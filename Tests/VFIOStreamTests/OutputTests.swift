import LinuxIO
import SystemPackage
import Testing
import VFIOStream
import VFIOWire

private let request = Header(
  id: 0x1234, command: .regionRead, messageSize: 99, flags: .noReply, error: 7)

extension Output {
  /// What the next send would take.
  fileprivate func pending() throws -> (bytes: [UInt8], descriptors: [Descriptor]) {
    let (range, descriptors) = next
    let bytes = try withBytes(range) { span throws(Errno) in
      (0..<span.count).map { span[$0] }
    }
    return (bytes, descriptors)
  }

  /// Sends all, and returns it send by send.
  fileprivate mutating func drain() throws -> [(bytes: [UInt8], descriptors: [Descriptor])] {
    var all: [(bytes: [UInt8], descriptors: [Descriptor])] = []
    while count > 0 {
      all.append(try pending())
      sent(next.range.count)
    }
    return all
  }

  fileprivate mutating func message(_ body: [UInt8], _ descriptors: [Descriptor] = []) {
    begin(replyTo: request)
    append(body)
    for descriptor in descriptors { attach(descriptor) }
    finish()
  }
}

@Suite struct OutputTests {
  private var output = Output()

  private func header(_ bytes: [UInt8]) -> Header { Header(bytes.span) }

  // MARK: writing

  @Test mutating func `a reply has its request's number and command, and its own size`() throws {
    output.begin(replyTo: request)
    output.append(UInt16(0x0201))
    output.append(UInt32(0x0605_0403))
    output.append(UInt64(0x0E0D_0C0B_0A09_0807))
    output.append(Int64(-2))
    output.append([15, 16])
    output.finish()
    let bytes = try output.pending().bytes
    #expect(
      header(bytes)
        == Header(id: 0x1234, command: .regionRead, messageSize: 40, flags: .reply, error: 0))
    #expect(
      Array(bytes[16...]) == Array(1...14) + [0xFE] + Array(repeating: 0xFF, count: 7) + [15, 16])
  }

  @Test mutating func `a message of one's own has the header given`() throws {
    let given = Header(id: 9, command: .dmaUnmap, messageSize: 16, flags: [.noReply])
    output.begin(given)
    output.finish()
    #expect(header(try output.pending().bytes) == given)
  }

  @Test mutating func `an error reply is the header alone`() throws {
    output.begin(replyTo: request)
    output.append([1, 2, 3])
    output.attach(try descriptor())
    output.fail(22)
    let (bytes, descriptors) = try output.pending()
    #expect(bytes.count == Header.size)
    #expect(
      header(bytes)
        == Header(
          id: 0x1234, command: .regionRead, messageSize: 16, flags: [.reply, .error], error: 22))
    #expect(descriptors.isEmpty)
  }

  @Test mutating func `an error takes back nothing of the messages before`() throws {
    let file = try descriptor()
    output.message([1])
    output.message([2], [file])
    output.begin(replyTo: request)
    output.append([3])
    output.fail(5)
    let sends = try output.drain()
    #expect(sends.map(\.bytes.count) == [17, 17, 16])
    #expect(sends.map(\.descriptors.count) == [0, 1, 0])
  }

  @Test mutating func `a discarded message leaves nothing, and its descriptors are let go`() throws
  {
    weak var file: Descriptor?
    do {
      let object = try descriptor()
      file = object
      output.begin(replyTo: request)
      output.append([1, 2, 3])
      output.attach(object)
    }
    #expect(file != nil)
    output.discard()
    #expect(file == nil)
    #expect(output.count == 0)
    output.message([4])
    #expect(try output.pending().bytes.count == 17)
  }

  @Test mutating func `bytes written in place are the message's, and count when it is finished`()
    throws
  {
    output.begin(replyTo: request)
    try output.append(count: 5000) { space throws(Errno) in
      for index in 0..<space.count { space[index] = 3 }
    }
    output.finish()
    let bytes = try output.pending().bytes
    #expect(bytes.count == 5016)
    #expect(bytes[16...].allSatisfy { $0 == 3 })
  }

  @Test mutating func `a body that fails half-way can still become an error`() throws {
    output.message([1])
    output.begin(replyTo: request)
    #expect(throws: Errno.ioError) {
      try output.append(count: 5000) { _ throws(Errno) in throw .ioError }
    }
    output.fail(5)
    #expect(output.count == 17 + 16)
  }

  @Test mutating func `finishing says how many descriptors a message carries`() throws {
    output.begin(replyTo: request)
    #expect(output.finish() == 0)
    output.begin(replyTo: request)
    output.attach(try descriptor())
    output.attach(try descriptor())
    #expect(output.finish() == 2)
  }

  // MARK: sending

  @Test mutating func `messages without descriptors are sent in one piece`() throws {
    for byte in UInt8(0)..<5 { output.message([byte]) }
    #expect(output.count == 5 * 17)
    #expect(try output.drain().map(\.bytes.count) == [5 * 17])
    #expect(output.count == 0)
  }

  @Test mutating func `a message with descriptors is sent alone`() throws {
    let files = try (0..<3).map { _ in try descriptor() }
    output.message([1])
    output.message([2, 2])
    output.message([3, 3, 3], [files[0]])
    output.message([4], [files[1], files[2]])
    output.message([5])
    output.message([6])
    let sends = try output.drain()
    #expect(sends.map(\.bytes.count) == [35, 19, 17, 34])
    #expect(
      sends.map { $0.descriptors.map { ObjectIdentifier($0) } }
        == [[], [files[0]], [files[1], files[2]], []].map { $0.map { ObjectIdentifier($0) } })
  }

  @Test mutating func `what was sent in part goes on where it was, without its descriptors again`()
    throws
  {
    output.message([1])
    output.message([2, 2, 2], [try descriptor()])
    output.message([3])
    let whole = try { (copy: Output) in
      var copy = copy
      return try copy.drain().flatMap(\.bytes)
    }(output)
    var bytes: [UInt8] = []
    var descriptors: [Int] = []
    while output.count > 0 {
      let next = try output.pending()
      bytes.append(next.bytes[0])
      descriptors.append(next.descriptors.count)
      output.sent(1)
    }
    #expect(bytes == whole)
    // They go with the first byte of their message and no other.
    #expect(descriptors.indices.filter { descriptors[$0] > 0 } == [17])
  }

  @Test mutating func `descriptors are let go once they are sent`() throws {
    weak var file: Descriptor?
    do {
      let object = try descriptor()
      file = object
      output.message([1], [object])
    }
    #expect(file != nil)
    output.sent(1)
    #expect(file == nil)
    #expect(output.count == 16)
  }

  @Test mutating func `messages may be written while others are sent in part`() throws {
    let file = try descriptor()
    output.message([1])
    output.sent(10)
    output.message([2], [file])
    #expect(try output.drain().map(\.bytes.count) == [7, 17])
  }

  // MARK: storage

  /// The end of the next send in the storage, which is no larger than four times that.
  private var end: Int { output.next.range.upperBound }

  @Test mutating func `the storage is used again from its beginning when all is sent`() throws {
    for _ in 0..<20 {
      output.message([UInt8](repeating: 1, count: 1000))
      #expect(output.next.range == 0..<1016)
      output.sent(1016)
    }
  }

  @Test mutating func `the storage doesn't grow for a client that never reads quite all`() throws {
    let body = [UInt8](repeating: 1, count: 1000)
    output.message(body)
    for _ in 0..<200 {
      output.message(body)
      output.sent(1016)
      #expect(output.count == 1016)
      #expect(end <= 8192)
    }
  }

  @Test mutating func `a message that is being written when the storage is used again stays whole`()
    throws
  {
    let files = try (0..<2).map { _ in try descriptor() }
    output.message([UInt8](repeating: 1, count: 2000))
    output.message([2, 2], [files[0]])
    output.sent(2016)
    output.begin(replyTo: request)
    output.attach(files[1])
    for byte in UInt8(3)..<6 { output.append([UInt8](repeating: byte, count: 900)) }
    output.finish()
    let sends = try output.drain()
    #expect(sends.map(\.bytes.count) == [18, 2716])
    #expect(sends.map(\.descriptors.count) == [1, 1])
    #expect(Array(sends[0].bytes[16...]) == [2, 2])
    #expect(header(sends[1].bytes).messageSize == 2716)
    #expect(
      Array(sends[1].bytes[16...])
        == (UInt8(3)..<6).flatMap { [UInt8](repeating: $0, count: 900) })
  }

  @Test(arguments: UInt64(0)..<20)
  func `however it is sent, what is written comes out in order`(seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    var output = Output()
    var expected: [UInt8] = []
    // Where in the stream descriptors must go out, and which.
    var attached: [(position: Int, descriptors: [Descriptor])] = []
    var bytes: [UInt8] = []
    var sent: [(position: Int, descriptors: [Descriptor])] = []
    for round in 0..<100 {
      let body = [UInt8](
        repeating: UInt8(truncatingIfNeeded: round), count: Int.random(in: 0..<700, using: &random))
      let files = Int.random(in: 0..<4, using: &random) == 0 ? [try descriptor()] : []
      if !files.isEmpty { attached.append((expected.count, files)) }
      var whole = [UInt8](repeating: 0, count: Header.size) + body
      var span = whole.mutableSpan
      Header(
        id: request.id, command: request.command, messageSize: UInt32(span.count), flags: .reply
      ).write(to: &span, at: 0)
      expected += whole
      output.message(body, files)
      // Three messages are sent for three written, on average.
      while output.count > 0, round == 99 || Bool.random(using: &random) {
        let next = try output.pending()
        if !next.descriptors.isEmpty { sent.append((bytes.count, next.descriptors)) }
        let count = Int.random(in: 1...next.bytes.count, using: &random)
        bytes += next.bytes[..<count]
        output.sent(count)
      }
    }
    #expect(bytes == expected)
    #expect(sent.map(\.position) == attached.map(\.position))
    #expect(
      sent.map { $0.descriptors.map { ObjectIdentifier($0) } }
        == attached.map { $0.descriptors.map { ObjectIdentifier($0) } })
  }
}

@Suite struct HeaderTests {
  @Test func `a header is 16 bytes, little-endian here, read as it is written`() {
    let header = Header(
      id: 0x0201, command: Command(rawValue: 0x0403), messageSize: 0x0807_0605,
      flags: Header.Flags(rawValue: 0x0C0B_0A09), error: 0x100F_0E0D)
    var bytes = [UInt8](repeating: 0, count: 20)
    var span = bytes.mutableSpan
    header.write(to: &span, at: 3)
    #expect(bytes == [0, 0, 0] + Array(1...16) + [0])
    #expect(Header(bytes.span, at: 3) == header)
  }

  @Test func `integers are read at any offset as they are written`() {
    var bytes = [UInt8](repeating: 0, count: 20)
    for offset in 0...9 {
      var span = bytes.mutableSpan
      span.set(UInt64(0x8877_6655_4433_2211), at: offset)
      #expect(bytes.span.uint64(at: offset) == 0x8877_6655_4433_2211)
      #expect(bytes.span.uint32(at: offset + 4) == 0x8877_6655)
      #expect(bytes.span.uint16(at: offset + 6) == 0x8877)
    }
  }
}
