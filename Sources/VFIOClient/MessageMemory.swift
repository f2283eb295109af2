import SystemPackage
import VFIOStream
import VFIOWire

/// Memory that the server reaches by `VFIO_USER_DMA_READ` and `VFIO_USER_DMA_WRITE`.
struct MessageMemory: Sendable {
  var iova: UInt64
  var memory: Memory
  var access: DMAAccess

  /// Where in `memory` the bytes at an IOVA are; nil when they aren't all here.
  fileprivate func place(of address: UInt64, _ count: UInt64) -> UInt64? {
    guard address >= iova else { return nil }
    let place = address - iova
    return place <= memory.size && count <= memory.size - place ? place : nil
  }
}

extension Connection {
  /// Answers a command of the server's: from the memory that was mapped for that, else with `EFAULT`;
  /// `ENOTSUP` for any other command. The stream goes on in any case.
  func answer(_ request: Reply) {
    let memories = messageMemory.withLock { $0 }
    try? transmit { outgoing in
      outgoing.reply(to: request.header) { output throws(Errno) in
        switch request.header.command {
        case .dmaRead: try Self.read(request, from: memories, into: &output)
        case .dmaWrite: try Self.write(request, to: memories, &output)
        default: throw .notSupported
        }
      }
    }
  }

  /// `u64 address, u64 count`; in the reply the bytes follow.
  private static func read(
    _ request: Reply, from memories: [MessageMemory], into output: inout Output
  ) throws(Errno) {
    let (memory, place, count) = try find(request, .read, in: memories)
    output.append(request.bytes.span.extracting(first: 16))
    try output.append(count: count) { bytes throws(Errno) in
      try memory.mapping.read(at: place, into: &bytes)
    }
  }

  /// `u64 address, u64 count` and the bytes; the reply is without them.
  private static func write(
    _ request: Reply, to memories: [MessageMemory], _ output: inout Output
  ) throws(Errno) {
    let (memory, place, count) = try find(request, .write, in: memories)
    guard request.bytes.count - 16 == count else { throw .invalidArgument }
    try memory.mapping.write(request.bytes.span.extracting(16..<16 + count), at: place)
    output.append(request.bytes.span.extracting(first: 16))
  }

  private static func find(
    _ request: Reply, _ access: DMAAccess, in memories: [MessageMemory]
  ) throws(Errno) -> (Memory, place: UInt64, count: Int) {
    let (address, count) = (try request.uint64(at: 0), try request.uint64(at: 8))
    guard count <= Version.maxDataTransferSize else { throw .invalidArgument }
    for memory in memories where memory.access.contains(access) {
      if let place = memory.place(of: address, count) {
        return (memory.memory, place, Int(count))
      }
    }
    throw .badAddress
  }
}
