// What a type1 container's operations cost, in this process, against the number of its mappings:
//
//     swift run -c release benchmark
//
// Mappings of a page with holes between them are made in random order. Then random ones are unmapped
// and mapped again, and read from; and one is, again and again. Each figure is the best of some rounds.

import SystemPackage
import VFIOCore
import VFIOIOMMU

/// Memory whose copies cost nothing.
private final class NoMemory: DMAMemory, MemorySource {
  func read(at offset: UInt64, into bytes: inout MutableSpan<UInt8>) throws(Errno) {}
  func write(_ bytes: Span<UInt8>, at offset: UInt64) throws(Errno) {}
  func memory(at: UInt64, size: UInt64, writable: Bool) throws(Errno) -> any DMAMemory { self }
  func origin() -> MemoryOrigin? { .object(ObjectIdentifier(self)) }
}

private struct Container {
  private let iommu: any IOMMU
  private let device: DMA
  private let memory = NoMemory()
  private let page: UInt64 = 4096

  init() throws {
    let limits = IOMMULimits(apertures: [0...UInt64.max], mappings: 1 << 24)
    iommu = try Type1Driver().open(3, limits)
    device = DMA(iommu: iommu, group: IOMMUGroup(id: 0))
  }

  func map(_ number: UInt64) throws {
    try iommu.map(
      DMAMapping(
        iova: number * 2 * page, size: page, offset: 0, access: [.read, .write],
        owner: .container), from: memory)
  }

  func unmap(_ number: UInt64) throws {
    try iommu.unmap(iova: number * 2 * page, size: page, owner: .container)
  }

  func read(_ number: UInt64) throws {
    var bytes: [UInt8] = [0, 0, 0, 0]
    var span = bytes.mutableSpan
    try device.read(number * 2 * page, into: &span)
  }
}

/// Nanoseconds that each of the numbers takes, at best.
private func measure(_ numbers: [UInt64], _ body: (UInt64) throws -> Void) throws -> Int {
  var best = Duration.seconds(1000)
  for _ in 0..<9 {
    best = min(best, try ContinuousClock().measure { for number in numbers { try body(number) } })
  }
  return Int(best / .nanoseconds(numbers.count))
}

private func column(_ text: String) -> String {
  String(repeating: " ", count: max(0, 15 - text.count)) + text
}

@main struct Benchmark {
  static func main() throws {
    print("nanoseconds; each of random mappings, and one again and again")
    print(
      ["mappings", "unmap and map", "read", "the same one", "read"].map(column).joined())
    for count in [1, 10, 100, 1000, 10_000, 60_000, 100_000, 1_000_000] as [UInt64] {
      let container = try Container()
      for number in (0..<count).shuffled() { try container.map(number) }
      let random = (0..<100_000).map { _ in UInt64.random(in: 0..<count) }
      let same = Array(repeating: count / 2, count: 100_000)
      var row = ["\(count)"]
      for numbers in [random, same] {
        let remapping = try measure(numbers) { number in
          try container.unmap(number)
          try container.map(number)
        }
        row += ["\(remapping)", "\(try measure(numbers, container.read))"]
      }
      print(row.map(column).joined())
    }
  }
}
