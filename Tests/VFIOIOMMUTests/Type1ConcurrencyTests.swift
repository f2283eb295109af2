import Dispatch
import Glibc
import Locks
import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

import struct Synchronization.Atomic

/// Memory that knows when its mapping is gone, and counts the accesses that come later.
private final class RevocableMemory: DMAMemory {
  let isUnmapped = Atomic(false)
  let lateAccesses: Atomic<Int>

  init() { lateAccesses = Atomic(0) }

  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    for index in 0..<bytes.count { bytes[index] = 0x5A }
    check()
  }

  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) { check() }

  /// Looks for as long as a copy may take, and not just once.
  private func check() {
    for _ in 0..<100 where isUnmapped.load(ordering: .sequentiallyConsistent) {
      lateAccesses.add(1, ordering: .relaxed)
    }
  }
}

/// Runs the body in several threads of their own at a time.
private func concurrently(_ threads: Int, _ body: @escaping @Sendable (Int) -> Void) {
  let group = DispatchGroup()
  for thread in 0..<threads {
    DispatchQueue(label: "thread \(thread)").async(group: group) { body(thread) }
  }
  group.wait()
}

@Suite struct Type1ConcurrencyTests {
  @Test(arguments: Version.allCases, [false, true])
  func `an unmap returns only when no transfer uses the range`(
    version: Version, isSocket: Bool
  ) throws {
    let iommu = try version.open()
    let memory = SlowMemory()
    let owner = DMAOwner(number: isSocket ? 1 : 0)
    try iommu.map(
      DMAMapping(iova: 0, size: page, offset: 0, access: .read, owner: owner),
      from: TestSource(memory: memory))
    let failures = Atomic(0)
    concurrently(2) { thread in
      do {
        if thread == 0 {
          _ = try iommu.dmaRead(0, count: 4)
        } else {
          memory.isBeingRead.wait()
          if isSocket {
            try iommu.unmap(iova: 0, size: page, owner: owner)
          } else {
            try iommu.unmapDMA(0, size: page)
          }
          memory.isUnmapped.store(true, ordering: .sequentiallyConsistent)
        }
      } catch {
        failures.add(1, ordering: .relaxed)
      }
    }
    #expect(failures.load(ordering: .relaxed) == 0)
    let wasUnmappedWhileRead = memory.wasUnmappedWhileRead.load(ordering: .relaxed)
    #expect(!wasUnmappedWhileRead)
  }

  @Test(arguments: Version.allCases)
  func `several threads map, unmap and transfer, and no transfer uses what is unmapped`(
    version: Version
  ) throws {
    let iommu = try version.open()
    let pagesOfThread: UInt64 = 8
    let memories = Mutex<[RevocableMemory]>([])
    let failures = Atomic(0)

    concurrently(6) { thread in
      var random = SeededGenerator(seed: UInt64(thread))
      if thread < 3 {
        let base = UInt64(thread) * pagesOfThread * page
        for round in 0..<1_500 {
          let memory = RevocableMemory()
          let owner = DMAOwner(number: UInt64(thread + 1))
          do {
            if round % 2 == 0 {
              try iommu.mapDMA(
                base, size: pagesOfThread * page, from: TestSource(memory: memory))
              guard try iommu.unmapDMA(base, size: pagesOfThread * page) == pagesOfThread * page
              else { throw Errno.ioError }
            } else {
              for index in 0..<pagesOfThread {
                try iommu.map(
                  DMAMapping(
                    iova: base + index * page, size: page, offset: index * page,
                    access: [.read, .write], owner: owner), from: TestSource(memory: memory))
              }
              _ = try? iommu.dmaWrite([1, 2, 3, 4], to: base + 2 * page - 2)
              guard iommu.unmapAll(owner: owner) == pagesOfThread * page else {
                throw Errno.ioError
              }
            }
          } catch {
            failures.add(1, ordering: .relaxed)
          }
          memory.isUnmapped.store(true, ordering: .sequentiallyConsistent)
          memories.withLock { $0.append(memory) }
        }
      } else {
        for _ in 0..<15_000 {
          let iova = UInt64.random(in: 0..<3 * pagesOfThread * page, using: &random)
          if let bytes = try? iommu.dmaRead(iova, count: 16) {
            if bytes != [UInt8](repeating: 0x5A, count: 16) {
              failures.add(1, ordering: .relaxed)
            }
          }
          if version == .v2, iova % 64 == 0 {
            _ = try? iommu.dirtyPages(flags: iova % 128 == 0 ? 1 : 2)
          }
        }
      }
    }
    #expect(failures.load(ordering: .relaxed) == 0)
    let late = memories.withLock { $0.reduce(0) { $0 + $1.lateAccesses.load(ordering: .relaxed) } }
    #expect(late == 0)
    #expect(try iommu.availableMappings == 65535)
  }
}
