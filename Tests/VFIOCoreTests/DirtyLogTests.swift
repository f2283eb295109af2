import SystemPackage
import Testing

@testable import VFIOCore

@Suite struct DirtyLogTests {
  private let log = DirtyLog()

  /// The numbers of the set bits.
  private func report(
    _ iova: UInt64, _ length: UInt64, page pageSize: UInt64 = 4096
  ) throws -> [Int] {
    let bitmap = try log.report(iova: iova, length: length, pageSize: pageSize)
    return (0..<bitmap.count * 8).filter { bitmap[$0 / 8] & 1 << ($0 % 8) != 0 }
  }

  @Test func `a page is reported when it was written, and once`() throws {
    try log.start(pageSize: 4096)
    log.mark(0x3FFF...0x3FFF + (2 - 1))
    #expect(try report(0, 0x10000) == [3, 4])
    #expect(try report(0, 0x10000) == [])
  }

  @Test func `nothing is logged before the start and after the stop`() throws {
    log.mark(0...0 + (1 - 1))
    try log.start(pageSize: 4096)
    #expect(try report(0, 4096) == [])
    log.mark(0...0 + (1 - 1))
    log.stop()
    #expect(throws: Errno.invalidArgument) { try report(0, 4096) }
    log.mark(0...0 + (1 - 1))
    try log.start(pageSize: 4096)
    #expect(try report(0, 4096) == [])
  }

  @Test func `bits are counted from the first address asked for`() throws {
    try log.start(pageSize: 4096)
    log.mark(0x5000...0x5000 + (1 - 1))
    #expect(try report(0x4000, 0x4000) == [1])
  }

  @Test(arguments: [(1, 0), (64, 0), (65, 1), (128, 1), (129, 2)] as [(UInt64, Int)])
  func `the bitmap has whole words of 64 bits`(_ pages: UInt64, _ words: Int) throws {
    try log.start(pageSize: 4096)
    #expect(try log.report(iova: 0, length: pages * 4096, pageSize: 4096).count == 8 * (words + 1))
  }

  @Test func `a page that is reported in part stays dirty`() throws {
    try log.start(pageSize: 8192)
    log.mark(0...0 + (1 - 1))
    #expect(try report(0, 4096) == [0])
    #expect(try report(4096, 4096) == [0])
    #expect(try report(0, 8192, page: 8192) == [0])
    #expect(try report(0, 8192, page: 8192) == [])
  }

  @Test func `a smaller page is reported as often as it fits`() throws {
    try log.start(pageSize: 4096)
    log.mark(4096...4096 + (1 - 1))
    #expect(try report(0, 16384, page: 2048) == [2, 3])
  }

  @Test func `a larger page is reported if any of it was written`() throws {
    try log.start(pageSize: 4096)
    log.mark(0x6000...0x6000 + (1 - 1))
    log.mark(0xB000...0xB000 + (1 - 1))
    #expect(try report(0, 0x10000, page: 0x4000) == [1, 2])
    #expect(try report(0, 0x10000) == [])
  }

  @Test func `only the ranges given are logged`() throws {
    try log.start(pageSize: 4096, ranges: [(0x2000, 0x1000), (0x4000, 0x1000)])
    log.mark(0...0 + (0x10000 - 1))
    #expect(try report(0, 0x10000) == [2, 4])
  }

  @Test func `the last page of the address space is logged`() throws {
    try log.start(pageSize: 4096, ranges: [(0xFFFF_FFFF_FFFF_F000, 0x1000)])
    log.mark(0xFFFF_FFFF_FFFF_FFFF...0xFFFF_FFFF_FFFF_FFFF + (1 - 1))
    #expect(try report(0xFFFF_FFFF_FFFF_E000, 0x2000) == [1])
  }

  @Test(arguments: [(4096, 4096), (8192, 8192), (2048, 4096), (5000, 4096)] as [(UInt64, UInt64)])
  func `the page size is the one asked for if it can be`(
    _ asked: UInt64, _ chosen: UInt64
  ) throws {
    #expect(try log.start(pageSize: asked) == chosen)
  }

  @Test func `a second start keeps what was logged, or fails for another page size`() throws {
    #expect(throws: Errno.invalidArgument) { try log.start(pageSize: 0) }
    try log.start(pageSize: 4096)
    log.mark(0...0 + (1 - 1))
    try log.start(pageSize: 4096)
    #expect(throws: Errno.invalidArgument) { try log.start(pageSize: 8192) }
    #expect(throws: Errno.invalidArgument) { try log.start(pageSize: 2048) }
    #expect(try report(0, 4096) == [0])
  }

  @Test(
    arguments: [
      ([(0, 0)], .invalidArgument), ([(1, 4096)], .invalidArgument),
      ([(0, 4095)], .invalidArgument),
      ([(0, 8192), (4096, 4096)], .invalidArgument),
      ([(0xFFFF_FFFF_FFFF_F000, 0x2000)], .overflow),
      (Array(repeating: (0, 4096), count: 257), .argListTooLong),
    ] as [([(UInt64, UInt64)], Errno)])
  func `a bad range starts nothing`(_ ranges: [(UInt64, UInt64)], _ errno: Errno) {
    #expect(throws: errno) {
      try log.start(pageSize: 4096, ranges: ranges.map { (iova: $0.0, length: $0.1) })
    }
    #expect(throws: Errno.invalidArgument) { try report(0, 4096) }
  }

  @Test(
    arguments: [
      (0, 0, 4096, .invalidArgument), (0, 4096, 0, .invalidArgument),
      (0, 8192, 4097, .invalidArgument), (0, 4096, 8192, .invalidArgument),
      (.max, 4096, 4096, .overflow), (0, .max, 1, .argListTooLong),
    ] as [(UInt64, UInt64, UInt64, Errno)])
  func `a bad report fails`(
    _ iova: UInt64, _ length: UInt64, _ pageSize: UInt64, _ errno: Errno
  ) throws {
    try log.start(pageSize: 4096)
    #expect(throws: errno) { try report(iova, length, page: pageSize) }
  }

  @Test func `a transfer that faults has logged what it wrote`() throws {
    try log.start(pageSize: 4096)
    let dma = DMA(iommu: MappedIOMMU(0...0x2FFF), group: IOMMUGroup(id: 1), log: log)
    let bytes = [UInt8](repeating: 1, count: 0x4000)
    try dma.write(bytes.span.extracting(0..<0x1000), to: 0)
    do {
      try dma.write(bytes.span, to: 0x2000)
      Issue.record("written beyond the mapping")
    } catch {
      #expect(error == DMAFault(iova: 0x3000, completed: 0x1000))
    }
    #expect(try report(0, 0x10000) == [0, 2])
  }

  @Test func `what a device reads isn't logged`() throws {
    try log.start(pageSize: 4096)
    let dma = DMA(iommu: MappedIOMMU(0...0x2FFF), group: IOMMUGroup(id: 1), log: log)
    var bytes = [UInt8](repeating: 0, count: 16)
    var span = bytes.mutableSpan
    try dma.read(0, into: &span)
    #expect(try report(0, 0x10000) == [])
  }
}

/// Memory behind some addresses, of which nothing is kept.
private final class MappedIOMMU: IOMMU {
  private let range: ClosedRange<UInt64>
  let iotlb = IOTLB()
  init(_ range: ClosedRange<UInt64>) { self.range = range }

  private final class Nothing: DMAMemory {
    func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {}
    func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {}
  }

  func translate(_ iova: UInt64) -> Translation? {
    guard range.contains(iova) else { return nil }
    return Translation(range: range, memory: Nothing(), offset: 0, access: [.read, .write])
  }
  func wrote(_ range: ClosedRange<UInt64>) {}
  func checkExtension(_ number: UInt64) -> Int64 { 0 }
  func attach(_ group: IOMMUGroup) throws(Errno) {}
  func detach(_ group: IOMMUGroup) {}
  func operation(
    _ command: UInt32, _ argument: Span<UInt8>, _ source: any MemorySource
  ) throws(Errno) -> OperationResult { throw .inappropriateIOCTLForDevice }
  func release() {}
}
