import Dispatch
import Glibc
import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

import struct Synchronization.Atomic

/// Memory that says where it is read: its own number, and the number of the page.
private final class TellingMemory: DMAMemory {
  let number: UInt8
  init(_ number: UInt8) { self.number = number }

  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {
    for index in 0..<bytes.count {
      bytes[index] = UInt8(truncatingIfNeeded: (offset + UInt64(index)) / page) ^ number
    }
  }
  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {}
}

@Suite struct SPAPRModelTests {
  @Test(arguments: SPAPRVersion.allCases, ["unmap", "map over it", "remove the window"])
  func `an entry is gone only when no transfer uses it`(
    version: SPAPRVersion, way: String
  ) throws {
    guard version == .v2 || way != "remove the window" else { return }
    let memory = SlowMemory()
    let source = TestSource(memory: memory)
    let iommu = try version.ready(source)
    try iommu.mapDMA(0, size: page, from: source)
    let group = DispatchGroup()
    DispatchQueue(label: "device").async(group: group) { _ = try? iommu.dmaRead(0, count: 4) }
    memory.isBeingRead.wait()
    switch way {
    case "unmap": try iommu.unmapDMA(0, size: page)
    case "map over it": try iommu.mapDMA(0, size: page, at: page, from: source)
    default: try iommu.removeWindow(0)
    }
    memory.isUnmapped.store(true, ordering: .sequentiallyConsistent)
    group.wait()
    let wasUnmappedWhileRead = memory.wasUnmappedWhileRead.load(ordering: .relaxed)
    #expect(!wasUnmappedWhileRead)
  }

  /// What a page of IOVA refers to.
  private struct Entry: Equatable {
    var memory: UInt8
    var page: UInt64
    var flags: UInt32
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `200,000 random steps give what a dictionary of pages gives`(version: SPAPRVersion) throws {
    let sources = (0..<3).map { TestSource(memory: TellingMemory(UInt8($0) << 6)) }
    let iommu = try version.open()
    if version == .v1 { try iommu.enable() }
    if version == .v2 {
      for source in sources { try iommu.register(0, size: 64 * page, from: source) }
    }
    var model: [UInt64: Entry] = [:]
    var random = SeededGenerator(seed: version.rawValue)
    // Two places, so that there are leaves in between and none.
    func randomPage() -> UInt64 {
      UInt64.random(in: 0..<150, using: &random) + (Bool.random(using: &random) ? 0 : 400_000)
    }
    for step in 0..<200_000 {
      let iova = randomPage()
      let count = UInt64.random(in: 1...20, using: &random)
      switch UInt8.random(in: 0..<10, using: &random) {
      case 0..<2:
        let memory = UInt8.random(in: 0..<3, using: &random)
        let first = UInt64.random(in: 0..<44, using: &random)
        let flags = UInt32.random(in: 1...3, using: &random)
        try iommu.mapDMA(
          iova * page, size: count * page, at: first * page, flags: flags,
          from: sources[Int(memory)])
        for index in 0..<count {
          model[iova + index] = Entry(memory: memory, page: first + index, flags: flags)
        }
      case 2..<4:
        let wide = step.isMultiple(of: 500) ? 300_000 : count
        let size = min(wide, 1 << 19 - iova)
        try iommu.unmapDMA(iova * page, size: size * page)
        if wide == count {
          for index in 0..<size { model[iova + index] = nil }
        } else {
          model = model.filter { !(iova..<iova + size).contains($0.key) }
        }
      case 4 where version == .v2:
        let memory = UInt8.random(in: 0..<3, using: &random)
        let isUsed = model.values.contains { $0.memory == memory }
        let source = sources[Int(memory)]
        do throws(Errno) {
          try iommu.unregister(0, size: 64 * page, from: source)
          #expect(!isUsed)
          try iommu.register(0, size: 64 * page, from: source)
        } catch {
          #expect(isUsed && error == .resourceBusy)
        }
      default:
        let expected = model[iova].flatMap { entry in
          entry.flags & 1 == 0 ? nil : UInt8(truncatingIfNeeded: entry.page) ^ entry.memory << 6
        }
        let read = try? iommu.dmaRead(iova * page + 9, count: 1).first
        let canWrite = (try? iommu.dmaWrite([1], to: iova * page + 9)) != nil
        guard read == expected, canWrite == ((model[iova]?.flags ?? 0) & 2 != 0) else {
          Issue.record("step \(step), page \(iova)")
          return
        }
      }
    }
  }

  @Test(arguments: SPAPRVersion.allCases)
  func `several threads map, unmap and transfer, and read what one of them has mapped`(
    version: SPAPRVersion
  ) throws {
    let source = TestSource(memory: TellingMemory(0))
    let iommu = try version.ready(source)
    let wrong = Atomic(0)
    let group = DispatchGroup()
    for thread in 0..<4 {
      DispatchQueue(label: "thread \(thread)").async(group: group) {
        var random = SeededGenerator(seed: UInt64(thread))
        let source = TestSource(memory: source.memory)
        for _ in 0..<5_000 {
          let place = UInt64.random(in: 0..<100, using: &random)
          if thread < 2 {
            // Every page always shows the same memory, if any.
            let count = UInt64.random(in: 1...20, using: &random)
            _ = try? iommu.mapDMA(place * page, size: count * page, at: place * page, from: source)
            _ = try? iommu.unmapDMA(place * page, size: count * page)
          } else if let byte = try? iommu.dmaRead(place * page, count: 1).first,
            byte != UInt8(truncatingIfNeeded: place)
          {
            wrong.add(1, ordering: .relaxed)
          }
        }
      }
    }
    group.wait()
    #expect(wrong.load(ordering: .relaxed) == 0)
    if version == .v2 { try iommu.unregister(0, size: 1 << 30, from: source) }
  }
}
