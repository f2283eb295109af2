import Dispatch
import Foundation
import Locks
import SystemPackage
import Testing
import VFIOCore
import VFIOIOMMU

/// A second, simple implementation of an IOMMU driver, which random steps compare with the first.
protocol IOMMUModel {
  /// Does one random step on both. Returns what they don't agree on.
  mutating func step(on iommu: any IOMMU, _ random: inout SeededGenerator) -> String?
}

extension IOMMUModel {
  /// Returns the first difference, and where it is.
  mutating func run(on iommu: any IOMMU, steps: Int, seed: UInt64) -> String? {
    var random = SeededGenerator(seed: seed)
    for number in 0..<steps {
      if let difference = step(on: iommu, &random) {
        return "seed \(seed), step \(number): \(difference)"
      }
    }
    return nil
  }
}

/// The same steps each time; `SEED=$RANDOM swift test` takes others.
let seed = ProcessInfo.processInfo.environment["SEED"].flatMap { UInt64($0) } ?? 1

#if DEBUG
  private let steps = 50_000
#else
  private let steps = 1_000_000
#endif

/// In a release build a million steps: `swift test -c release -Xswiftc -enable-testing`.
@Suite struct ModelTests {
  @Test(arguments: Version.allCases)
  func `type1 does in random steps what a dictionary of pages does`(version: Version) throws {
    let limits = IOMMULimits(
      apertures: [0...0x4_FFFF, lastPage - 79 * page...lastPage - page - 1], mappings: 20,
      lockedMemory: 90 * page)
    let iommu = try version.open(limits)
    var model = Type1Model(
      version: version, limits: limits, base: lastPage - 79 * page, owners: [0, 1, 2])
    #expect(model.run(on: iommu, steps: steps, seed: seed) == nil)
  }

  @Test(arguments: Version.allCases)
  func `each of several threads finds its own mappings as if it were alone`(
    version: Version
  ) throws {
    let limits = IOMMULimits(apertures: [0...UInt64.max], mappings: 65535)
    let iommu = try version.open(limits)
    if version == .v2 { try iommu.dirtyPages(flags: 1) }
    let differences = Mutex<[String]>([])
    let threads = DispatchGroup()
    for thread in 1...4 as ClosedRange<UInt64> {
      DispatchQueue(label: "thread \(thread)").async(group: threads) {
        var model = Type1Model(
          version: version, limits: limits, base: thread * 128 * page, owners: [thread],
          isAlone: false)
        let difference = model.run(on: iommu, steps: steps / 20, seed: seed &+ thread)
        if let difference { differences.withLock { $0.append(difference) } }
      }
    }
    threads.wait()
    #expect(differences.withLock { $0 } == [])
  }
}
