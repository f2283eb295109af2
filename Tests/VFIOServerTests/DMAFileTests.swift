import Glibc
import LinuxIO
import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU
import VFIOWire

@testable import VFIOServer

/// A peer that answers at once, with pieces of another memory.
private final class Peer: RemoteMemory {
  private let memory: SharedMapping
  let limit: Int
  init(_ memory: SharedMapping, limit: Int) { (self.memory, self.limit) = (memory, limit) }

  var remote: (any RemoteMemory)? { self }
  func begin() -> any RemoteTransfer { Transfer(memory) }
  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    throw .badAddress
  }
  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) { throw .badAddress }

  private final class Transfer: RemoteTransfer {
    private let memory: SharedMapping
    init(_ memory: SharedMapping) { self.memory = memory }
    func cancel() {}
    func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
      try memory.read(at: offset % 65536, into: &bytes)
    }
    func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {
      try memory.write(bytes, at: offset % 65536)
    }
    func read(
      _ file: FileDescriptor, at position: Int, into ranges: [ClosedRange<UInt64>]
    ) throws(Errno) -> Int { try copy(file, at: position, into: ranges) }
    func write(
      _ ranges: [ClosedRange<UInt64>], to file: FileDescriptor, at position: Int
    ) throws(Errno) -> Int { try copy(ranges, to: file, at: position) }
  }
}

private struct Source: MemorySource {
  let memory: any DMAMemory
  func memory(at address: UInt64, size: UInt64, writable: Bool) throws(Errno) -> any DMAMemory {
    memory
  }
  func origin() -> MemoryOrigin? { .object(ObjectIdentifier(memory)) }
}

/// A client's shared memory of 16 pages.
private struct Shared {
  static let size: UInt64 = 65536
  let file: Descriptor
  let mapping: SharedMapping

  init(_ path: String) throws {
    file = try open(path)
    try file.borrowed.resize(to: Int64(Self.size))
    mapping = try SharedMapping(file, size: Self.size, writable: true)
  }

  func bytes(_ offset: UInt64, _ count: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0xEE, count: count)
    var span = bytes.mutableSpan
    try mapping.read(at: offset, into: &span)
    return bytes
  }
}

private func open(_ path: String) throws -> Descriptor {
  Descriptor(
    owning: try FileDescriptor.open(
      FilePath(path), .readWrite, options: [.create], permissions: .ownerReadWrite
    ).rawValue)
}

@Suite struct `A scatter list` {
  private let directory: TemporaryDirectory
  private let iommu: any IOMMU
  private let dma: DMA
  private let memories: [Shared]
  private let disk: Descriptor
  private let content = pattern(40_000)

  /// Two files of 16 pages side by side at 0, a hole behind them.
  init() throws {
    directory = try TemporaryDirectory()
    iommu = try Type1Driver().open(3, IOMMULimits(apertures: [0...UInt64.max], mappings: 100))
    dma = DMA(iommu: iommu, group: IOMMUGroup(id: 1))
    memories = [try Shared("\(directory.path)/a"), try Shared("\(directory.path)/b")]
    disk = try open("\(directory.path)/disk")
    try disk.borrowed.writeAll(content)
    for (index, memory) in memories.enumerated() {
      try map(memory.mapping, UInt64(index) * Shared.size)
    }
  }

  private func map(
    _ memory: any DMAMemory, _ iova: UInt64, size: UInt64 = Shared.size, offset: UInt64 = 0,
    access: DMAAccess = [.read, .write]
  ) throws {
    try iommu.map(
      DMAMapping(iova: iova, size: size, offset: offset, access: access, owner: .container),
      from: Source(memory: memory))
  }

  private func piece(_ iova: UInt64, _ count: Int) -> DMAPiece {
    DMAPiece(iova: iova, count: count)
  }

  private func contentOfDisk(_ count: Int, at position: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0xEE, count: count)
    var span = bytes.mutableSpan
    #expect(try LinuxIO.read(disk.borrowed, at: position, into: &span) == count)
    return bytes
  }

  @Test func `is filled from a file in its order, over several mappings`() throws {
    let pieces = [piece(70_000, 3), piece(5, 10), piece(65_530, 12), piece(15, 1)]
    #expect(try dma.read(disk.borrowed, at: 100, into: pieces) == 26)
    #expect(try memories[1].bytes(70_000 - 65536, 3) == Array(content[100..<103]))
    #expect(try memories[0].bytes(5, 11) == content[103..<113] + [content[125]])
    #expect(try memories[0].bytes(65_530, 6) == Array(content[113..<119]))
    #expect(try memories[1].bytes(0, 7) == content[119..<125] + [0])
  }

  @Test func `is written to a file in its order, over several mappings`() throws {
    try memories[0].mapping.write(pattern(65536).span, at: 0)
    try memories[1].mapping.write([1, 2, 3, 4].span, at: 0)
    let pieces = [piece(65_536, 2), piece(65_534, 4)]
    #expect(try dma.write(pieces, to: disk.borrowed, at: 50_000) == 6)
    let expected = [1, 2] + pattern(65536).suffix(2) + [1, 2]
    #expect(try contentOfDisk(6, at: 50_000) == expected)
  }

  @Test func `may have thousands of pieces, and empty ones`() throws {
    let pieces = (0..<3000).flatMap { index in
      [piece(UInt64(index * 20), 7), piece(1 << 40, 0), piece(.max, -1)]
    }
    #expect(try dma.read(disk.borrowed, at: 0, into: pieces) == 21_000)
    for index in [0, 1, 1023, 1024, 2999] {
      #expect(
        try memories[0].bytes(UInt64(index * 20), 8)
          == content[index * 7..<index * 7 + 7] + [0])
    }
    #expect(try dma.read(disk.borrowed, at: 0, into: []) == 0)
  }

  @Test func `is filled as far as the file goes`() throws {
    let pieces = [piece(0, 100), piece(200, 100)]
    #expect(try dma.read(disk.borrowed, at: 39_850, into: pieces) == 150)
    #expect(try memories[0].bytes(249, 2) == [content[39_999], 0])
    #expect(try dma.read(disk.borrowed, at: 40_000, into: pieces) == 0)
  }

  @Test func `faults at its first address that isn't mapped, and tells what was done`() throws {
    let pieces = [piece(0, 100), piece(131_070, 4), piece(200, 1)]
    let fault = DMATransferError.fault(DMAFault(iova: 131_072, completed: 102))
    #expect(throws: fault) { try dma.read(disk.borrowed, at: 0, into: pieces) }
    #expect(try memories[0].bytes(200, 1) == [0])
    #expect(throws: fault) { try dma.write(pieces, to: disk.borrowed, at: 0) }
    #expect(dma.faults.summary.count == 2)
  }

  @Test func `faults where the mapping's permission doesn't allow it`() throws {
    try map(memories[0].mapping, 1 << 20, access: .read)
    try map(memories[0].mapping, 2 << 20, access: .write)
    #expect(throws: DMATransferError.fault(DMAFault(iova: 1 << 20, completed: 0))) {
      try dma.read(disk.borrowed, at: 0, into: [piece(1 << 20, 1)])
    }
    #expect(throws: DMATransferError.fault(DMAFault(iova: 2 << 20, completed: 0))) {
      try dma.write([piece(2 << 20, 1)], to: disk.borrowed, at: 0)
    }
    #expect(try dma.write([piece(1 << 20, 1)], to: disk.borrowed, at: 0) == 1)
  }

  @Test func `faults at the first page that its file lost, and tells what was done`() throws {
    try memories[0].file.borrowed.resize(to: 8192)
    let pieces = [piece(8000, 1000)]
    let fault = DMATransferError.fault(DMAFault(iova: 8192, completed: 192))
    #expect(throws: fault) { try dma.read(disk.borrowed, at: 0, into: pieces) }
    #expect(throws: fault) { try dma.write(pieces, to: disk.borrowed, at: 0) }
    #expect(try dma.read(disk.borrowed, at: 0, into: [piece(8000, 192)]) == 192)
  }

  @Test func `fails with the file's error, which is no fault`() throws {
    let readOnly = Descriptor(
      owning: try FileDescriptor.open(FilePath("\(directory.path)/disk"), .readOnly).rawValue)
    #expect(throws: DMATransferError.file(.badFileDescriptor)) {
      try dma.write([piece(0, 8)], to: readOnly.borrowed, at: 0)
    }
    #expect(throws: DMATransferError.file(.invalidArgument)) {
      try dma.read(disk.borrowed, at: -1, into: [piece(0, 8)])
    }
    #expect(dma.faults.summary.count == 0)
  }

  @Test func `makes what it fills dirty, and nothing else`() throws {
    let start: [UInt8] = bytes(UInt32(8), UInt32(1))
    _ = try iommu.operation(0x3B75, start.span, Source(memory: memories[0].mapping))
    let pieces = [piece(4096, 1), piece(3 * 4096 - 1, 2), piece(9 * 4096, 1000)]
    #expect(try dma.read(disk.borrowed, at: 39_900, into: pieces) == 100)
    #expect(try dma.write([piece(5 * 4096, 10)], to: disk.borrowed, at: 0) == 10)
    let get: [UInt8] = bytes(
      UInt32(48), UInt32(4), UInt64(0), UInt64(65536), UInt64(4096), UInt64(8), UInt64(0))
    let result = try iommu.operation(0x3B75, get.span, Source(memory: memories[0].mapping))
    #expect(Array(result.structure.suffix(8)) == [0b1110, 0b10, 0, 0, 0, 0, 0, 0])
  }

  // MARK: memory that the kernel can't reach

  @Test(arguments: [1000, 1 << 20])
  func `reaches a peer's memory in pieces`(limit: Int) throws {
    try map(Peer(memories[0].mapping, limit: limit), 1 << 20)
    let pieces = [piece(1 << 20, 2500), piece(1 << 20 + 4000, 30), piece(65536, 5)]
    #expect(try dma.read(disk.borrowed, at: 0, into: pieces) == 2535)
    #expect(try memories[0].bytes(0, 2501) == content[..<2500] + [0])
    #expect(try memories[0].bytes(4000, 30) == Array(content[2500..<2530]))
    #expect(try dma.write([piece(1 << 20 + 10, 2490)], to: disk.borrowed, at: 60_000) == 2490)
    #expect(try contentOfDisk(2490, at: 60_000) == Array(content[10..<2500]))
  }

  @Test func `reaches a peer's last page of the address space`() throws {
    let last = UInt64.max - 4095
    try map(Peer(memories[0].mapping, limit: 1 << 20), last, size: 4096, offset: last)
    #expect(try dma.read(disk.borrowed, at: 0, into: [piece(last, 4096)]) == 4096)
    #expect(try memories[0].bytes(65536 - 4096, 4096) == Array(content[..<4096]))
    #expect(throws: DMATransferError.fault(DMAFault(iova: 0, completed: 1))) {
      let hole = iommu
      try hole.unmap(iova: 0, size: Shared.size, owner: .container)
      return try dma.read(disk.borrowed, at: 0, into: [piece(.max, 1), piece(0, 1)])
    }
  }

  @Test func `reaches a process's memory`() throws {
    let target = Page()
    try map(try ProcessMemory(getpid()), 1 << 20, size: 4096, offset: target.address)
    #expect(try dma.read(disk.borrowed, at: 7, into: [piece(1 << 20 + 5, 100)]) == 100)
    #expect(try dma.write([piece(1 << 20 + 6, 99)], to: disk.borrowed, at: 60_000) == 99)
    #expect(try contentOfDisk(99, at: 60_000) == Array(content[8..<107]))
  }
}

@Suite struct `An integer in a client's file` {
  @Test func `is changed in one step, which tells what it was`() throws {
    let memory = try SharedMapping(
      try makeMemoryFile("test", size: 4096), size: 4096, writable: true)
    let operations: [(AtomicOperation, was: UInt64, is: UInt64)] = [
      (.add32(5), 0, 5), (.add32(.max), 5, 4), (.swap32(9), 4, 9),
      (.compareAndSwap32(expected: 8, new: 1), 9, 9),
      (.compareAndSwap32(expected: 9, new: 1), 9, 1), (.add64(1 << 40), 1, 1 << 40 + 1),
      (.swap64(7), 1 << 40 + 1, 7), (.compareAndSwap64(expected: 6, new: 1), 7, 7),
      (.compareAndSwap64(expected: 7, new: .max), 7, .max), (.add64(2), .max, 1),
    ]
    for (operation, was, new) in operations {
      #expect(try memory.update(at: 8, operation) == was)
      var bytes = [UInt8](repeating: 0, count: 8)
      var span = bytes.mutableSpan
      try memory.read(at: 8, into: &span)
      #expect(bytes.span.uint64(at: 0) == new)
    }
  }
}
