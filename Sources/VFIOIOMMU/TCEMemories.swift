import SystemPackage
import VFIOCore

/// The memory that the entries of a container's tables refer to, by number, and how many do.
///
/// In version 1 memory comes with `VFIO_IOMMU_MAP_DMA` and goes with its last entry. In version 2 it is
/// registered before, and can't be unregistered while entries refer to it.
struct TCEMemories {
  private struct Slot {
    let memory: any DMAMemory
    var entries = 0
    /// Stays without entries.
    let isRegistered: Bool
  }

  /// Registered memory: what its source calls `range`.
  struct Region {
    let range: ClosedRange<UInt64>
    let number: UInt32
  }

  private var slots: [Slot?] = []
  private var free: [UInt32] = []
  private var numbers: [ObjectIdentifier: UInt32] = [:]
  /// Disjoint and ascending.
  private var regions: [MemoryOrigin: [Region]] = [:]
  private(set) var regionCount = 0

  /// All memory, for whoever lets go of it.
  var all: [any DMAMemory] { slots.compactMap { $0?.memory } }

  func memory(_ number: UInt32) -> (any DMAMemory)? { slots[Int(number)]?.memory }

  // MARK: Version 1

  /// The number of memory that entries are about to refer to.
  mutating func number(of memory: any DMAMemory) -> UInt32 {
    if let number = numbers[ObjectIdentifier(memory)] { return number }
    let number = add(Slot(memory: memory, isRegistered: false))
    numbers[ObjectIdentifier(memory)] = number
    return number
  }

  // MARK: Entries

  /// More entries refer to a memory.
  mutating func use(_ number: UInt32, _ entries: UInt64) {
    slots[Int(number)]?.entries += Int(clamping: entries)
  }

  /// Entries have gone. Returns the memory that went with the last, for the caller to let go of after
  /// unlocking.
  mutating func release(_ counts: [UInt32: Int]) -> [any DMAMemory] {
    var ended: [any DMAMemory] = []
    for (number, count) in counts {
      slots[Int(number)]?.entries -= count
      guard let slot = slots[Int(number)], slot.entries == 0, !slot.isRegistered else { continue }
      numbers[ObjectIdentifier(slot.memory)] = nil
      remove(number)
      ended.append(slot.memory)
    }
    return ended
  }

  // MARK: Version 2

  /// Whether exactly this range is registered.
  func isRegistered(_ range: ClosedRange<UInt64>, of origin: MemoryOrigin) -> Bool {
    region(containing: range.lowerBound, of: origin)?.range == range
  }

  /// `EINVAL` if a part is registered.
  mutating func register(
    _ range: ClosedRange<UInt64>, of origin: MemoryOrigin, _ memory: any DMAMemory
  ) throws(Errno) {
    let place = place(of: range.lowerBound, in: origin)
    let known = regions[origin] ?? []
    guard place == 0 || known[place - 1].range.upperBound < range.lowerBound,
      place == known.count || range.upperBound < known[place].range.lowerBound
    else { throw .invalidArgument }
    let number = add(Slot(memory: memory, isRegistered: true))
    regions[origin, default: []].insert(Region(range: range, number: number), at: place)
    regionCount += 1
  }

  /// `ENOENT` unless exactly this range is registered, `EBUSY` while entries refer to it. Returns the
  /// memory, for the caller to let go of after unlocking.
  mutating func unregister(
    _ range: ClosedRange<UInt64>, of origin: MemoryOrigin
  ) throws(Errno) -> (any DMAMemory)? {
    let place = place(of: range.lowerBound, in: origin) - 1
    guard place >= 0, let region = regions[origin]?[place], region.range == range else {
      throw .noSuchFileOrDirectory
    }
    guard let slot = slots[Int(region.number)], slot.entries == 0 else { throw .resourceBusy }
    regions[origin]?.remove(at: place)
    if regions[origin]?.isEmpty == true { regions[origin] = nil }
    regionCount -= 1
    remove(region.number)
    return slot.memory
  }

  /// The registered memory that contains an address.
  func region(containing address: UInt64, of origin: MemoryOrigin) -> Region? {
    let place = place(of: address, in: origin) - 1
    guard place >= 0, let region = regions[origin]?[place], region.range.contains(address) else {
      return nil
    }
    return region
  }

  /// How many regions begin at or before an address, where it belongs among them.
  private func place(of address: UInt64, in origin: MemoryOrigin) -> Int {
    guard let known = regions[origin] else { return 0 }
    var low = 0
    var high = known.count
    while low < high {
      let middle = (low + high) / 2
      if known[middle].range.lowerBound <= address { low = middle + 1 } else { high = middle }
    }
    return low
  }

  private mutating func add(_ slot: Slot) -> UInt32 {
    if let number = free.popLast() {
      slots[Int(number)] = slot
      return number
    }
    slots.append(slot)
    return UInt32(slots.count - 1)
  }

  private mutating func remove(_ number: UInt32) {
    slots[Int(number)] = nil
    free.append(number)
  }
}
