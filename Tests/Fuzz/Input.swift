// What an input says. A byte for the situation to begin with (`Clients.begin`), and one for how clients
// answer the server's DMA requests; then records, each beginning with a byte for its kind (modulo their
// number). Integers are little-endian, and what is missing at the end is zeros.
//
//     0 message        peer, descriptors, u16 command, u16 size, that many bytes of body
//     1 the same, wanting no reply
//     2 bytes          peer, descriptors, u16 size, that many bytes, headers included
//     3 the same, but the server doesn't look before the next record
//     4 connect        u8: 0 to the root socket, else to a device's (low four bits), as another process
//                      than the others with 0x80
//     5 close          peer
//     6 wait           peer: until it has something to read, 1 ms at most
//     7 act            u8 thing, u8 what: 0 signal it, 1 cut it to nothing, 2 grow it again
//
// A peer is a u8, modulo how many there have been; they count in the order in which they came to be,
// those that the server hands out included. `descriptors` is a u8 with their number (modulo 32), and a
// u8 for each: the low four bits say the kind of thing, the high four which peer's socket where that is
// asked for.

struct Input {
  private let bytes: [UInt8]
  private var next = 0

  init(_ bytes: [UInt8]) { self.bytes = bytes }

  var isAtEnd: Bool { next >= bytes.count }

  mutating func byte() -> Int {
    guard next < bytes.count else { return 0 }
    defer { next += 1 }
    return Int(bytes[next])
  }

  mutating func short() -> Int {
    let low = byte()
    return low | byte() << 8
  }

  /// A u16, and as many bytes; fewer at the end.
  mutating func block() -> [UInt8] {
    let size = min(short(), bytes.count - next)
    guard size > 0 else { return [] }
    defer { next += size }
    return Array(bytes[next..<next + size])
  }

  mutating func descriptors() -> [Int] { (0..<byte() % 32).map { _ in byte() } }

  /// Whether these bytes are anywhere in the input.
  func contains(_ wanted: [UInt8]) -> Bool {
    guard wanted.count <= bytes.count else { return false }
    return (0...bytes.count - wanted.count).contains { bytes[$0...].starts(with: wanted) }
  }
}

/// The server did what it must not do.
struct Failure: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}
