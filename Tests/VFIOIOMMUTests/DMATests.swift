import Dispatch
import Glibc
import Locks
import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

import struct Synchronization.Atomic

/// Memory of which an integer may be changed in one step, and that counts its copies.
private final class Integers: DMAMemory {
  let copies = Mutex<[Int]>([])
  let changes = Mutex<[UInt64]>([])

  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    for index in 0..<bytes.count { bytes[index] = UInt8(truncatingIfNeeded: index + 1) }
    let count = bytes.count
    copies.withLock { $0.append(count) }
  }
  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {}

  func update(at offset: UInt64, _ operation: AtomicOperation) throws(Errno) -> UInt64 {
    changes.withLock { $0.append(offset) }
    return 42
  }
}

@Suite struct DMATests {
  private func map(
    _ memory: any DMAMemory, _ iommu: any IOMMU, _ iova: UInt64 = 0, pages: UInt64 = 1,
    owner: UInt64 = 1, access: DMAAccess = [.read, .write]
  ) throws {
    try iommu.map(
      DMAMapping(
        iova: iova, size: pages * page, offset: 0, access: access, owner: DMAOwner(number: owner)),
      from: TestSource(memory: memory))
  }

  private func marked(_ mark: UInt8, pages: UInt64 = 1) -> TestMemory {
    TestMemory([UInt8](repeating: mark, count: Int(pages * page)))
  }

  // MARK: the last translation

  @Test(arguments: Version.allCases)
  func `a device never finds what was unmapped, however it was`(version: Version) throws {
    let iommu = try version.open()
    let device = iommu.device
    let owner = DMAOwner(number: 1)
    let removals: [() throws -> Void] = [
      { try iommu.unmap(iova: 0, size: page, owner: owner) },
      { iommu.unmapAll(owner: owner) },
      { try iommu.unmapDMA(0, size: page) },
      { try iommu.unmapDMA(0, size: 0, flags: 2) },
      { iommu.release() },
    ]
    for (mark, remove) in removals.enumerated() {
      try map(marked(UInt8(mark)), iommu)
      #expect(try device.read(4, 2) == [UInt8(mark), UInt8(mark)])
      try remove()
      #expect(throws: DMAFault(iova: 4, completed: 0)) { try device.read(4, 2) }
    }
  }

  @Test(arguments: Version.allCases)
  func `every device behind an IOMMU forgets what is unmapped`(version: Version) throws {
    let iommu = try version.open()
    let devices = [iommu.device, iommu.device, iommu.device]
    try map(marked(1), iommu)
    for device in devices { _ = try device.read(0, 1) }
    try iommu.unmapDMA(0, size: page)
    try map(marked(2), iommu)
    for device in devices { #expect(try device.read(0, 1) == [2]) }
  }

  @Test(arguments: Version.allCases)
  func `a translation that is kept has the mapping's bounds and permission`(version: Version) throws
  {
    let iommu = try version.open()
    let device = iommu.device
    try map(marked(1), iommu, access: .read)
    try map(marked(2), iommu, page, access: .write)
    _ = try device.read(0, 1)
    #expect(throws: DMAFault(iova: 0, completed: 0)) { try device.write([1].span, to: 0) }
    try device.write([1].span, to: page)
    #expect(throws: DMAFault(iova: page, completed: 0)) { try device.read(page, 1) }
    #expect(throws: DMAFault(iova: 2 * page, completed: 1)) {
      try device.write([1, 2].span, to: 2 * page - 1)
    }
  }

  // MARK: faults

  @Test(arguments: Version.allCases)
  func `each fault is counted once, with its address and access`(version: Version) throws {
    let iommu = try version.open()
    let faults = DMAFaults()
    let device = DMA(iommu: iommu, group: IOMMUGroup(id: 1), faults: faults)
    try map(marked(1), iommu, access: .read)
    _ = try device.read(0, 1)
    #expect(faults.summary.count == 0)
    #expect(throws: DMAFault.self) { try device.read(page - 2, 8) }
    #expect(faults.summary.count == 1)
    #expect((faults.summary.iova, faults.summary.access) == (page, .read))
    #expect(throws: DMAFault.self) { try device.write([1].span, to: 5) }
    #expect(faults.summary.count == 2)
    #expect((faults.summary.iova, faults.summary.access) == (5, .write))
  }

  // MARK: integers

  @Test(arguments: Version.allCases)
  func `an integer is loaded and stored in little-endian order`(version: Version) throws {
    let iommu = try version.open()
    let memory = TestMemory(size: Int(page))
    try map(memory, iommu)
    let device = iommu.device
    try device.store(UInt64(0x0102_0304_0506_0708), at: 8)
    #expect(memory.bytes[8..<16] == [8, 7, 6, 5, 4, 3, 2, 1])
    #expect(try device.load(8) as UInt8 == 8)
    #expect(try device.load(8) as UInt16 == 0x0708)
    #expect(try device.load(9) as UInt32 == 0x0405_0607)
    #expect(try device.load(8) as UInt64 == 0x0102_0304_0506_0708)
    try device.store(Int32(-2), at: 0)
    #expect(try device.load(0) as Int32 == -2)
  }

  @Test(arguments: Version.allCases)
  func `an integer is one copy of its size, unless its mapping ends in it`(version: Version) throws
  {
    let iommu = try version.open()
    let memory = Integers()
    try map(memory, iommu)
    try map(memory, iommu, page)
    _ = try iommu.device.load(8) as UInt64
    _ = try iommu.device.load(16) as UInt16
    _ = try iommu.device.load(page - 2) as UInt32
    #expect(memory.copies.withLock { $0 } == [8, 2, 2, 2])
    #expect(throws: DMAFault(iova: 2 * page, completed: 4)) {
      try iommu.device.load(2 * page - 4) as UInt64
    }
  }

  @Test(arguments: Version.allCases)
  func `an integer is changed in one step where it is aligned, readable and writable`(
    version: Version
  ) throws {
    let iommu = try version.open()
    let memory = Integers()
    let device = iommu.device
    try map(memory, iommu)
    try map(Integers(), iommu, page, access: .read)
    try map(Integers(), iommu, 2 * page, access: .write)
    try map(marked(0), iommu, 3 * page)
    #expect(try device.update(16, .add32(1)) == 42)
    #expect(try device.update(20, .swap32(1)) == 42)
    #expect(try device.update(24, .compareAndSwap64(expected: 1, new: 2)) == 42)
    #expect(memory.changes.withLock { $0 } == [16, 20, 24])
    for iova in [18, page, 2 * page, 3 * page, 4 * page] {
      #expect(throws: DMAFault(iova: iova, completed: 0)) { try device.update(iova, .add32(1)) }
    }
    #expect(throws: DMAFault(iova: 20, completed: 0)) { try device.update(20, .add64(1)) }
    #expect(device.faults.summary.count == 6)
  }

  @Test func `a changed integer's page is dirty`() throws {
    let iommu = try Version.v2.open()
    try map(Integers(), iommu, pages: 2)
    try iommu.dirtyPages(flags: 1)
    _ = try iommu.device.update(page + 8, .add64(1))
    #expect(try iommu.dirtyBitmap(0, size: 2 * page)[0] == 2)
  }

  // MARK: memory of a peer

  /// A read or a write of the first 16 bytes in a thread of its own.
  private final class Running: Sendable {
    private let outcome = Mutex<Result<[UInt8], DMAFault>?>(nil)
    private let ended = DispatchGroup()

    init(_ device: DMA, isWrite: Bool = false) {
      DispatchQueue(label: "device").async(group: ended) { [self] in
        var bytes = [UInt8](repeating: 9, count: 16)
        let result: Result<[UInt8], DMAFault>
        do throws(DMAFault) {
          if isWrite {
            try device.write(bytes.span, to: 0)
          } else {
            var span = bytes.mutableSpan
            try device.read(0, into: &span)
          }
          result = .success(bytes)
        } catch {
          result = .failure(error)
        }
        outcome.withLock { $0 = result }
      }
    }

    var bytes: [UInt8] {
      get throws {
        ended.wait()
        return try #require(outcome.withLock { $0 }).get()
      }
    }
  }

  /// Returns the transfer once so many were begun and it is asked for.
  private func asked(_ peer: Peer, _ count: Int = 1) -> Peer.Transfer {
    while peer.transfers.count < count { sched_yield() }
    peer.transfers[count - 1].waitUntilAsked()
    return peer.transfers[count - 1]
  }

  @Test(arguments: Version.allCases)
  func `a peer is asked for at most its limit and 64 KiB at a time`(version: Version) throws {
    for (limit, counts) in [(1000, [1000, 1000, 500]), (1 << 20, [2500]), (1, [])] {
      let iommu = try version.open()
      let peer = Peer(
        TestMemory((0..<81920).map { UInt8(truncatingIfNeeded: $0 * 7) }), limit: limit)
      try map(peer, iommu, pages: 20)
      if counts.isEmpty {
        #expect(try iommu.device.read(5, 3) == [35, 42, 49])
        #expect(peer.transfers.map(\.counts) == [[1], [1], [1]])
      } else {
        #expect(try iommu.device.read(5, 2500) == Array(peer.memory.bytes[5..<2505]))
        #expect(peer.transfers.flatMap(\.counts) == counts)
      }
    }
    let iommu = try version.open()
    let peer = Peer(TestMemory(size: 81920))
    try map(peer, iommu, pages: 20)
    try iommu.device.write([UInt8](repeating: 1, count: 70000).span, to: 1)
    #expect(peer.transfers.flatMap(\.counts) == [65536, 70000 - 65536])
  }

  @Test(arguments: Version.allCases)
  func `a peer is asked for the last page of the address space`(version: Version) throws {
    let iommu = try version.open(.all)
    let peer = Peer(TestMemory(size: Int(page)))
    try map(peer, iommu, lastPage)
    _ = try? iommu.device.read(lastPage + 8, 16)
    #expect(peer.transfers.flatMap(\.counts) == [16])
    #expect(throws: DMAFault(iova: 0, completed: 4)) { try iommu.device.read(.max - 3, 8) }
  }

  @Test(arguments: Version.allCases)
  func `nobody waits for a peer but the transfer itself`(version: Version) throws {
    let iommu = try version.open()
    let peer = Peer(marked(3))
    try map(peer, iommu)
    try map(marked(5), iommu, page)
    peer.setAnswering(false)
    let device = iommu.device
    let running = Running(device)
    let transfer = asked(peer)
    #expect(try device.read(page, 1) == [5])
    try map(marked(6), iommu, 2 * page)
    try iommu.unmapDMA(2 * page, size: page)
    transfer.answer()
    #expect(try running.bytes == [UInt8](repeating: 3, count: 16))
  }

  @Test(arguments: Version.allCases)
  func `an unmap cancels the transfer that waits for a peer, which faults`(version: Version) throws
  {
    let iommu = try version.open()
    let peer = Peer(marked(3))
    try map(peer, iommu)
    peer.setAnswering(false)
    let running = Running(iommu.device)
    let transfer = asked(peer)
    try iommu.unmapDMA(0, size: page)
    #expect(transfer.isCancelled)
    #expect(throws: DMAFault(iova: 0, completed: 0)) { try running.bytes }
    #expect(peer.transfers.count == 1)
  }

  @Test(arguments: Version.allCases)
  func `a transfer goes on when another owner unmaps all that it has`(version: Version) throws {
    let iommu = try version.open()
    let peer = Peer(marked(3))
    try map(peer, iommu)
    try map(marked(1), iommu, page, owner: 2)
    peer.setAnswering(false)
    let running = Running(iommu.device)
    let transfer = asked(peer)
    iommu.unmapAll(owner: DMAOwner(number: 2))
    #expect(!transfer.isCancelled)
    transfer.answer()
    #expect(try running.bytes == [UInt8](repeating: 3, count: 16))
  }

  @Test func `a write by a peer is dirty when it is over, whatever came of it`() throws {
    let iommu = try Version.v2.open()
    let peer = Peer(marked(3))
    try map(peer, iommu)
    peer.setAnswering(false)
    let running = Running(iommu.device, isWrite: true)
    _ = asked(peer)
    peer.setAnswering(true)
    try iommu.dirtyPages(flags: 1)
    peer.transfers[0].answer()
    _ = try running.bytes
    #expect(try iommu.dirtyBitmap(0, size: page)[0] == 1)

    peer.memory.truncate(to: 0)
    #expect(throws: DMAFault.self) { try iommu.dmaWrite([1], to: 0) }
    #expect(try iommu.dirtyBitmap(0, size: page)[0] == 1)
  }

  @Test func `a write that an unmap cancels is in its dirty bitmap, and not in a later one`() throws
  {
    let iommu = try Version.v2.open()
    let peer = Peer(marked(3))
    try map(peer, iommu)
    try iommu.dirtyPages(flags: 1)
    peer.setAnswering(false)
    let running = Running(iommu.device, isWrite: true)
    _ = asked(peer)
    let result = try iommu.unmapWithBitmap(0, size: page)
    #expect(Array(result.structure.dropFirst(48)).first == 1)
    #expect(throws: DMAFault.self) { try running.bytes }
    try map(peer, iommu)
    #expect(try iommu.dirtyBitmap(0, size: page)[0] == 0)
  }

  @Test(arguments: Version.allCases)
  func `a peer's memory is not changed in one step`(version: Version) throws {
    let iommu = try version.open()
    let peer = Peer(marked(3))
    try map(peer, iommu)
    #expect(throws: DMAFault(iova: 8, completed: 0)) { try iommu.device.update(8, .add64(1)) }
    #expect(peer.transfers.flatMap(\.counts).isEmpty)
  }
}
