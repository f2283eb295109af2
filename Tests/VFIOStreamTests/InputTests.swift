import LinuxIO
import SystemPackage
import Testing
import VFIOStream
import VFIOWire

/// A whole message: `size` bytes, all of its body being the number.
func message(_ id: UInt16, size: Int = Header.size) -> [UInt8] {
  var bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: id), count: max(size, Header.size))
  var span = bytes.mutableSpan
  Header(id: id, command: .dmaMap, messageSize: UInt32(truncatingIfNeeded: size))
    .write(to: &span, at: 0)
  return bytes
}

/// A descriptor that a test can recognise: every object is one.
func descriptor() throws -> Descriptor { try Descriptor.null() }

/// What `next` gave, as values that can be compared.
struct Taken: Equatable {
  var id: UInt16
  var body: [UInt8]
  var descriptors: [ObjectIdentifier]
  var damaged: Bool
}

func taken(
  _ id: UInt16, _ bodySize: Int = 0, _ descriptors: [Descriptor] = [], damaged: Bool = false
) -> Taken {
  Taken(
    id: id, body: [UInt8](repeating: UInt8(truncatingIfNeeded: id), count: bodySize),
    descriptors: descriptors.map { ObjectIdentifier($0) }, damaged: damaged)
}

extension Input {
  /// One read that brings `bytes`. Fails where they don't fit, as no read would.
  mutating func arrive(
    _ arrived: [UInt8], _ descriptors: [Descriptor] = [], truncated: Bool = false
  ) throws {
    let room = try withRoom { room throws(Errno) in
      guard arrived.count <= room.count else { throw .noBufferSpace }
      for index in 0..<arrived.count { room[index] = arrived[index] }
      return room.count
    }
    #expect(room > 0)
    received(arrived.count, descriptors: descriptors, truncated: truncated)
  }

  /// All whole messages; fails at an impossible one.
  mutating func takeAll() throws -> [Taken] {
    var all: [Taken] = []
    while true {
      switch next() {
      case .incomplete: return all
      case .impossible: throw Errno.invalidArgument
      case .message(let header, let body, let descriptors, let damaged):
        all.append(
          Taken(
            id: header.id, body: Array(bytes[body]),
            descriptors: descriptors.map { ObjectIdentifier($0) }, damaged: damaged))
      }
    }
  }
}

@Suite struct InputTests {
  private var input = Input(limit: 65_536, descriptorLimit: 3)

  // MARK: framing

  @Test mutating func `a message is whole when its last byte has arrived`() throws {
    let bytes = message(7, size: 20)
    for byte in bytes.dropLast() {
      try input.arrive([byte])
      #expect(try input.takeAll() == [])
    }
    try input.arrive([bytes[19]])
    #expect(try input.takeAll() == [taken(7, 4)])
    #expect(try input.takeAll() == [])
  }

  @Test mutating func `many messages in one piece are told apart`() throws {
    try input.arrive(message(1) + message(2, size: 30) + message(3))
    #expect(try input.takeAll() == [taken(1), taken(2, 14), taken(3)])
  }

  @Test mutating func `a message may end in the read that brings the next ones`() throws {
    let bytes = message(1, size: 40) + message(2) + message(3, size: 17)
    try input.arrive(Array(bytes[..<10]))
    #expect(try input.takeAll() == [])
    try input.arrive(Array(bytes[10..<45]))
    #expect(try input.takeAll() == [taken(1, 24)])
    try input.arrive(Array(bytes[45...]))
    #expect(try input.takeAll() == [taken(2), taken(3, 1)])
  }

  @Test(arguments: [0, 1, 15]) mutating func `a size below the header's is impossible`(
    size: Int
  ) throws {
    try input.arrive(message(5, size: size))
    guard case .impossible(let header) = input.next() else {
      Issue.record("taken")
      return
    }
    #expect(header.id == 5)
    #expect(header.messageSize == UInt32(size))
  }

  @Test(arguments: [65_537, 1 << 31, Int(UInt32.max)])
  mutating func `a size above the limit is impossible as soon as the header is there`(
    size: Int
  ) throws {
    let header = Array(message(5, size: 16)[..<4] + message(5, size: 65_537)[4..<16])
    var bytes = header
    for index in 0..<4 { bytes[4 + index] = UInt8(truncatingIfNeeded: size >> (8 * index)) }
    try input.arrive(Array(bytes.dropLast()))
    #expect(try input.takeAll() == [])
    try input.arrive([bytes[15]])
    #expect(throws: Errno.invalidArgument) { try input.takeAll() }
  }

  @Test mutating func `messages before an impossible one are still taken`() throws {
    try input.arrive(message(1) + message(2, size: 3))
    guard case .message(let header, _, _, _) = input.next() else {
      Issue.record("not taken")
      return
    }
    #expect(header.id == 1)
    #expect(throws: Errno.invalidArgument) { try input.takeAll() }
  }

  @Test mutating func `a message as large as the limit is taken, and the limit can be changed`()
    throws
  {
    input.limit = 100
    try input.arrive(message(1, size: 100))
    #expect(try input.takeAll() == [taken(1, 84)])
    try input.arrive(message(2, size: 101))
    #expect(throws: Errno.invalidArgument) { try input.takeAll() }
    input.limit = 101
    #expect(try input.takeAll() == [taken(2, 85)])
  }

  @Test mutating func `the room doesn't grow by what a header promises`() throws {
    input.limit = 1 << 30
    let promise = message(1, size: 1 << 16)
    try input.arrive(Array(promise[..<16]))
    #expect(try input.takeAll() == [])
    #expect(try input.withRoom { room throws(Errno) in room.count } < 8192)
    #expect(input.bytes.count < 8192)
    // It doubles as bytes arrive.
    var sent = 16
    while sent < promise.count {
      let room = try input.withRoom { room throws(Errno) in room.count }
      #expect(input.bytes.count <= max(8192, 2 * sent))
      let end = min(sent + room, promise.count)
      try input.arrive(Array(promise[sent..<end]))
      sent = end
    }
    #expect(try input.takeAll() == [taken(1, (1 << 16) - 16)])
  }

  @Test mutating func `the room stays as it is, however many messages come`() throws {
    let before = input.bytes.count
    let stream = (0..<UInt16(50)).flatMap { message($0, size: 1000) }
    var (sent, taken) = (0, 0)
    while sent < stream.count {
      // Never quite empty, so that what is left has to be moved.
      let room = try input.withRoom { room throws(Errno) in room.count }
      let end = min(sent + min(room, 700), stream.count)
      try input.arrive(Array(stream[sent..<end]))
      sent = end
      taken += try input.takeAll().count
    }
    #expect(taken == 50)
    #expect(input.bytes.count == before)
  }

  // MARK: descriptors

  @Test mutating func `a message gets the descriptors of the read that brought it`() throws {
    let files = [try descriptor(), try descriptor()]
    try input.arrive(message(1), files)
    try input.arrive(message(2))
    #expect(try input.takeAll() == [taken(1, 0, files), taken(2)])
  }

  @Test mutating func `descriptors go to the last message that begins in their read`() throws {
    // A map without a descriptor, then one with, glued in one read.
    let file = try descriptor()
    try input.arrive(message(1, size: 48) + message(2, size: 48), [file])
    #expect(try input.takeAll() == [taken(1, 32), taken(2, 32, [file])])
  }

  @Test(arguments: [1, 7, 8, 16, 40])
  mutating func `a message whose beginning alone has arrived gets them as well`(split: Int) throws {
    let file = try descriptor()
    let last = message(2, size: 48)
    try input.arrive(message(1) + last[..<split], [file])
    try input.arrive(Array(last[split...]) + message(3))
    #expect(try input.takeAll() == [taken(1), taken(2, 32, [file]), taken(3)])
  }

  @Test mutating func `a read that only continues a message brings its descriptors`() throws {
    let files = [try descriptor(), try descriptor()]
    let bytes = message(1, size: 48)
    try input.arrive(Array(bytes[..<20]), [files[0]])
    try input.arrive(Array(bytes[20..<30]))
    try input.arrive(Array(bytes[30...]), [files[1]])
    #expect(try input.takeAll() == [taken(1, 32, files)])
  }

  @Test mutating func `a read that ends one message and begins another gives them to the other`()
    throws
  {
    let file = try descriptor()
    let bytes = message(1, size: 48)
    try input.arrive(Array(bytes[..<20]))
    try input.arrive(Array(bytes[20...]) + message(2), [file])
    #expect(try input.takeAll() == [taken(1, 32), taken(2, 0, [file])])
  }

  @Test mutating func `several messages may wait with descriptors of their own`() throws {
    let files = try (0..<4).map { _ in try descriptor() }
    for (id, file) in zip(UInt16(0)..., files) { try input.arrive(message(id), [file]) }
    #expect(try input.takeAll() == zip(UInt16(0)..., files).map { taken($0, 0, [$1]) })
  }

  @Test mutating func `too many descriptors damage the message, and those beyond are closed`()
    throws
  {
    let files = try (0..<3).map { _ in try descriptor() }
    weak var extra: Descriptor?
    do {
      let fourth = try descriptor()
      extra = fourth
      try input.arrive(message(1) + message(2), files + [fourth])
      try input.arrive(message(3))
    }
    #expect(extra == nil)
    #expect(try input.takeAll() == [taken(1), taken(2, 0, files, damaged: true), taken(3)])
  }

  @Test mutating func `too many descriptors in several reads damage the message as well`() throws {
    let files = try (0..<5).map { _ in try descriptor() }
    let bytes = message(1, size: 21)
    for (index, file) in files.enumerated() { try input.arrive([bytes[index]], [file]) }
    try input.arrive(Array(bytes[5...]))
    #expect(try input.takeAll() == [taken(1, 5, Array(files[..<3]), damaged: true)])
  }

  @Test mutating func `descriptors that the kernel dropped damage the message`() throws {
    let file = try descriptor()
    try input.arrive(message(1) + message(2), [file], truncated: true)
    try input.arrive(message(3), truncated: true)
    try input.arrive(message(4))
    #expect(
      try input.takeAll() == [
        taken(1), taken(2, 0, [file], damaged: true), taken(3, 0, damaged: true), taken(4),
      ])
  }

  @Test mutating func `taken descriptors are the taker's alone`() throws {
    weak var file: Descriptor?
    do {
      let object = try descriptor()
      file = object
      try input.arrive(message(1), [object])
    }
    #expect(file != nil)
    _ = try input.takeAll()
    #expect(file == nil)
  }

  // MARK: any order

  @Test(arguments: UInt64(0)..<30)
  func `however a stream is cut, its messages and their descriptors are the same`(
    seed: UInt64
  ) throws {
    var random = SeededGenerator(seed: seed)
    var input = Input(limit: 9000, descriptorLimit: 2)
    // The stream, and for each of its bytes the message it is of.
    var stream: [UInt8] = []
    var owners: [Int] = []
    var expected: [Taken] = []
    for id in 0..<40 {
      let sizes = [16, 17, 16 + Int.random(in: 0..<200, using: &random), 9000]
      let size = sizes[id % 13 == 12 ? 3 : Int.random(in: 0..<3, using: &random)]
      stream += message(UInt16(id), size: size)
      owners += Array(repeating: id, count: size)
      expected.append(taken(UInt16(id), size - Header.size))
    }

    var result: [Taken] = []
    var kept: [Descriptor] = []
    var start = 0
    while start < stream.count {
      let room = try input.withRoom { room throws(Errno) in room.count }
      let most = min([1, 8, 100, 5000].randomElement(using: &random) ?? 1, room)
      let end = min(start + Int.random(in: 1...most, using: &random), stream.count)
      var files: [Descriptor] = []
      if Int.random(in: 0..<4, using: &random) == 0 {
        files = try (0..<Int.random(in: 1...2, using: &random)).map { _ in try descriptor() }
        kept += files
        // The naive rule: whoever owns the read's last byte began last.
        let owner = owners[end - 1]
        for file in files {
          if expected[owner].descriptors.count < 2 {
            expected[owner].descriptors.append(ObjectIdentifier(file))
          } else {
            expected[owner].damaged = true
          }
        }
      }
      try input.arrive(Array(stream[start..<end]), files)
      start = end
      // Sometimes they wait.
      if Bool.random(using: &random) || input.bytes.count > 30_000 { result += try input.takeAll() }
    }
    result += try input.takeAll()
    #expect(result == expected)
    _ = kept
  }
}

/// The same numbers for the same seed (splitmix64).
struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }
}
