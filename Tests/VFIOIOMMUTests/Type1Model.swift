import SystemPackage
import VFIOCore
import VFIOIOMMU

/// type1, as a dictionary of pages.
struct Type1Model: IOMMUModel {
  private struct Mapping {
    var pages: ClosedRange<UInt64>
    var memory: Int
    var offset: UInt64
    var access: DMAAccess
    var owner: UInt64
  }

  private let version: Version
  private let limits: IOMMULimits
  /// The first of the addresses that steps are about, and how many pages those are.
  private let base: UInt64
  private let window: UInt64 = 80
  /// Who maps and unmaps; 0 is the container.
  private let owners: [UInt64]
  /// Others may work on the same IOMMU, elsewhere in it.
  private let isAlone: Bool

  private var pages: [UInt64: Int] = [:]
  private var mappings: [Int: Mapping] = [:]
  private var nextMapping = 0
  private var dirty: Set<UInt64>?
  private var attached: Set<Int> = []
  private var device: DMA?
  private let memories = (0..<2).map { _ in TestMemory(size: 16 * Int(page)) }
  private var contents = [[UInt8]](
    repeating: [UInt8](repeating: 0, count: 16 * Int(page)), count: 2)
  private let groups = (0..<3).map { IOMMUGroup(id: $0) }

  init(
    version: Version, limits: IOMMULimits, base: UInt64, owners: [UInt64], isAlone: Bool = true
  ) {
    self.version = version
    self.limits = limits
    self.base = base
    self.owners = owners
    self.isAlone = isAlone
    if !isAlone, version == .v2 { dirty = [] }
  }

  /// What an operation answers, as text that tells the difference.
  private func answer<Value>(_ operation: () throws(Errno) -> Value) -> String {
    do throws(Errno) { return "\(try operation())" } catch { return "errno \(error.rawValue)" }
  }

  mutating func step(on iommu: any IOMMU, _ random: inout SeededGenerator) -> String? {
    // Now and then beyond the window, and beyond 2^64.
    let iova = base &+ UInt64.random(in: 0..<window, using: &random) &* page
    let size = UInt64.random(in: 1...8, using: &random) * page
    let owner = owners.randomElement(using: &random) ?? 0
    let (name, expected, found): (String, String, String)
    switch Int.random(in: 0..<(isAlone ? 23 : 20), using: &random) {
    case 0..<6: (name, expected, found) = map(iova, size, owner, on: iommu, &random)
    case 6..<9:
      name = "unmap \(iova), \(size)"
      expected = answer { () throws(Errno) in try unmapped(iova, size) }
      found = answer { () throws(Errno) in try iommu.unmapDMA(iova, size: size) }
    case 9..<11:
      let mapping = mappings.values.first { $0.owner == owner }
      let exact = mapping.map { $0.pages.lowerBound * page } ?? iova
      let length = mapping.map { UInt64($0.pages.count) * page } ?? size
      name = "unmap \(exact), \(length) of \(owner)"
      expected = answer { () throws(Errno) in try unmappedExactly(exact, length, owner) }
      found = answer { () throws(Errno) in
        try iommu.unmap(iova: exact, size: length, owner: DMAOwner(number: owner))
      }
    case 11..<17: (name, expected, found) = transfer(iova, on: iommu, &random)
    case 17..<20: (name, expected, found) = reportDirtyPages(iova, size, on: iommu, &random)
    case 20: (name, expected, found) = unmapEverything(owner, on: iommu, &random)
    case 21: (name, expected, found) = track(on: iommu, &random)
    default: (name, expected, found) = attachOrDetach(on: iommu, &random)
    }
    return expected == found ? nil : "\(name): \(found) instead of \(expected)"
  }

  // MARK: map and unmap

  private mutating func map(
    _ iova: UInt64, _ size: UInt64, _ owner: UInt64, on iommu: any IOMMU,
    _ random: inout SeededGenerator
  ) -> (String, String, String) {
    let access = DMAAccess(rawValue: UInt32.random(in: 1...3, using: &random))
    let memory = Int.random(in: 0..<2, using: &random)
    let offset = UInt64.random(in: 0...8, using: &random) * page
    let request = DMAMapping(
      iova: iova, size: size, offset: offset, access: access, owner: DMAOwner(number: owner))
    let source = TestSource(memory: memories[memory])
    let expected = answer { () throws(Errno) in
      try mapped(request, memory)
    }
    let found = answer { () throws(Errno) in try iommu.map(request, from: source) }
    return ("map \(request)", expected, found)
  }

  private mutating func mapped(_ request: DMAMapping, _ memory: Int) throws(Errno) {
    let (last, wraps) = request.iova.addingReportingOverflow(request.size - 1)
    guard !wraps else { throw .overflow }
    let range = request.iova / page...last / page
    guard !range.contains(where: { pages[$0] != nil }) else { throw .fileExists }
    guard mappings.count < limits.mappings else { throw .noSpace }
    guard limits.apertures.contains(where: { $0.contains(request.iova) && $0.contains(last) })
    else { throw .invalidArgument }
    if let limit = limits.lockedMemory, UInt64(pages.count + range.count) > limit / page {
      throw .noMemory
    }
    for page in range { pages[page] = nextMapping }
    mappings[nextMapping] = Mapping(
      pages: range, memory: memory, offset: request.offset, access: request.access,
      owner: request.owner.number)
    nextMapping += 1
  }

  private mutating func remove(_ number: Int) -> UInt64 {
    guard let mapping = mappings.removeValue(forKey: number) else { return 0 }
    for page in mapping.pages {
      pages[page] = nil
      dirty?.remove(page)
    }
    return UInt64(mapping.pages.count) * page
  }

  private func checkNotSplit(_ range: ClosedRange<UInt64>) throws(Errno) {
    if let first = pages[range.lowerBound], let mapping = mappings[first],
      mapping.pages.lowerBound != range.lowerBound
    {
      throw .invalidArgument
    }
    if let last = pages[range.upperBound], let mapping = mappings[last],
      mapping.pages.upperBound != range.upperBound
    {
      throw .invalidArgument
    }
  }

  private mutating func unmapped(_ iova: UInt64, _ size: UInt64) throws(Errno) -> UInt64 {
    let (last, wraps) = iova.addingReportingOverflow(size - 1)
    guard !wraps else { throw .overflow }
    let range = iova / page...last / page
    if version == .v2 {
      try checkNotSplit(range)
    } else if let first = pages[range.lowerBound], let mapping = mappings[first],
      mapping.pages.lowerBound < range.lowerBound
    {
      return 0
    }
    var total: UInt64 = 0
    for page in range {
      if let number = pages[page] { total += remove(number) }
    }
    return total
  }

  private mutating func unmappedExactly(
    _ iova: UInt64, _ size: UInt64, _ owner: UInt64
  ) throws(Errno) {
    guard let number = pages[iova / page], let mapping = mappings[number],
      mapping.pages.lowerBound == iova / page, UInt64(mapping.pages.count) * page == size,
      mapping.owner == owner
    else { throw .noSuchFileOrDirectory }
    _ = remove(number)
  }

  /// All that one owner mapped, or all there is.
  private mutating func unmapEverything(
    _ owner: UInt64, on iommu: any IOMMU, _ random: inout SeededGenerator
  ) -> (String, String, String) {
    // Seldom, so that there is something.
    guard Int.random(in: 0..<20, using: &random) == 0 else { return available(on: iommu) }
    var total: UInt64 = 0
    if Bool.random(using: &random) {
      for number in mappings.keys { total += remove(number) }
      let found = answer { () throws(Errno) in try iommu.unmapDMA(0, size: 0, flags: 2) }
      return ("unmap all", "\(total)", found)
    }
    for (number, mapping) in mappings where mapping.owner == owner { total += remove(number) }
    let found = iommu.unmapAll(owner: DMAOwner(number: owner))
    return ("unmap all of \(owner)", "\(total)", "\(found)")
  }

  private func available(on iommu: any IOMMU) -> (String, String, String) {
    let found = (try? iommu.availableMappings) ?? 0
    return ("available mappings", "\(limits.mappings - mappings.count)", "\(found)")
  }

  // MARK: transfers

  /// A few bytes, often across the end of a page.
  private mutating func transfer(
    _ start: UInt64, on iommu: any IOMMU, _ random: inout SeededGenerator
  ) -> (String, String, String) {
    let iova = start &+ (page - 8) &+ UInt64.random(in: 0..<16, using: &random)
    let count = Int.random(in: 1...12, using: &random)
    let isWrite = Bool.random(using: &random)
    let bytes = isWrite ? (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) } : []
    // One device all the time, which keeps what the IOMMU told it.
    let device = self.device ?? iommu.device
    self.device = device
    var expected: [UInt8] = []
    var fault: UInt64?
    for index in 0..<count {
      let (address, wraps) = iova.addingReportingOverflow(UInt64(index))
      guard !wraps, let number = pages[address / page], let mapping = mappings[number],
        mapping.access.contains(isWrite ? .write : .read)
      else {
        fault = address
        break
      }
      let place = Int(mapping.offset + (address - mapping.pages.lowerBound * page))
      if isWrite {
        contents[mapping.memory][place] = bytes[index]
        dirty?.insert(address / page)
      }
      expected.append(contents[mapping.memory][place])
    }
    let (found, foundFault) =
      isWrite ? device.writes(bytes, to: iova) : device.reads(iova, count: count)
    return (
      "\(isWrite ? "write" : "read") \(iova), \(count)", "\(expected), fault \(fault ?? 0)",
      "\(found), fault \(foundFault ?? 0)"
    )
  }

  // MARK: dirty pages

  private mutating func reportDirtyPages(
    _ iova: UInt64, _ size: UInt64, on iommu: any IOMMU, _ random: inout SeededGenerator
  ) -> (String, String, String) {
    let unmaps = Bool.random(using: &random)
    let expected = answer { () throws(Errno) in
      guard version == .v2 || unmaps else { throw .permissionDenied }
      let (last, wraps) = iova.addingReportingOverflow(size - 1)
      guard !wraps else { throw .overflow }
      guard dirty != nil else { throw .invalidArgument }
      let range = iova / page...last / page
      try checkNotSplit(range)
      var bitmap = [UInt8](repeating: 0, count: 8)
      for (bit, page) in range.enumerated() where dirty?.remove(page) != nil {
        bitmap[bit / 8] |= 1 << UInt8(bit % 8)
      }
      if unmaps { _ = try unmapped(iova, size) }
      return bitmap
    }
    let found = answer { () throws(Errno) in
      unmaps
        ? Array(try iommu.unmapWithBitmap(iova, size: size).structure.dropFirst(48))
        : try iommu.dirtyBitmap(iova, size: size)
    }
    return ("dirty pages of \(iova), \(size)\(unmaps ? ", unmapping" : "")", expected, found)
  }

  private mutating func track(
    on iommu: any IOMMU, _ random: inout SeededGenerator
  ) -> (String, String, String) {
    let starts = Int.random(in: 0..<4, using: &random) > 0
    if version == .v2 {
      if starts { dirty = dirty ?? [] } else { dirty = nil }
    }
    let expected =
      version == .v2 ? "\(OperationResult())" : "errno \(Errno.permissionDenied.rawValue)"
    let found = answer { () throws(Errno) in try iommu.dirtyPages(flags: starts ? 1 : 2) }
    return ("dirty tracking \(starts)", expected, found)
  }

  // MARK: groups

  private mutating func attachOrDetach(
    on iommu: any IOMMU, _ random: inout SeededGenerator
  ) -> (String, String, String) {
    let group = Int.random(in: 0..<groups.count, using: &random)
    if Bool.random(using: &random) {
      attached.remove(group)
      iommu.detach(groups[group])
      return ("detach \(group)", "", "")
    }
    let expected =
      attached.insert(group).inserted ? "()" : "errno \(Errno.invalidArgument.rawValue)"
    let found = answer { () throws(Errno) in try iommu.attach(groups[group]) }
    return ("attach \(group)", expected, found)
  }
}
