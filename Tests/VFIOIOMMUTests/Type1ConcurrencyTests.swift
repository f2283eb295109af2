import Dispatch
import Locks
import Synchronization
import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

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

  private func check() {
    if isUnmapped.load(ordering: .sequentiallyConsistent) {
      lateAccesses.add(1, ordering: .relaxed)
    }
  }
}

@Suite struct Type1ConcurrencyTests {
  @Test(arguments: Version.allCases)
  func `several threads map, unmap and transfer, and no transfer uses what is unmapped`(
    version: Version
  ) throws {
    let iommu = try version.open()
    let pagesOfThread: UInt64 = 8
    let late = Atomic(0)
    let failures = Atomic(0)
    let transferred = Atomic(0)

    DispatchQueue.concurrentPerform(iterations: 6) { thread in
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
          late.add(memory.lateAccesses.load(ordering: .relaxed), ordering: .relaxed)
        }
      } else {
        for _ in 0..<15_000 {
          let iova = UInt64.random(in: 0..<3 * pagesOfThread * page, using: &random)
          if let bytes = try? iommu.dmaRead(iova, count: 16) {
            transferred.add(1, ordering: .relaxed)
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
    #expect(late.load(ordering: .relaxed) == 0)
    #expect(try iommu.availableMappings == 65535)
  }
}
