import Locks
import SystemPackage
import VFIOCore

extension SPAPR.State {
  /// Sets entries, and returns memory that nothing refers to any more.
  mutating func set(
    _ runs: [TCERun], _ access: DMAAccess, window: Int, pageSize: UInt64
  ) -> [any DMAMemory] {
    var displaced: [UInt32: Int] = [:]
    for run in runs {
      memories.use(run.memory, UInt64(run.pages.count))
      tables[window].set(
        run.pages, TCE(offset: run.offset, memory: run.memory, access: access),
        pageSize: pageSize, displaced: &displaced)
    }
    return memories.release(displaced)
  }

  /// Removes entries, and returns memory that nothing refers to any more.
  mutating func clear(_ pages: Range<UInt64>, window: Int) -> [any DMAMemory] {
    var displaced: [UInt32: Int] = [:]
    tables[window].clear(pages, displaced: &displaced)
    return memories.release(displaced)
  }

  /// The memory behind an address and what follows it, as far as one leaf of the table tells.
  func translate(_ iova: UInt64) -> Translation? {
    guard let number = window(containing: iova), let window = windows[number] else { return nil }
    let page = (iova - window.start) >> window.pageShift
    guard let (entry, pages) = tables[number].run(from: page, pageSize: window.pageSize),
      let memory = memories.memory(entry.memory)
    else { return nil }
    let first = window.start + page << window.pageShift
    return Translation(
      range: first...first + (pages << window.pageShift - 1), memory: memory, offset: entry.offset,
      access: entry.access)
  }
}

extension SPAPR {
  func translate(_ iova: UInt64) -> Translation? { state.withLock { $0.translate(iova) } }
}
