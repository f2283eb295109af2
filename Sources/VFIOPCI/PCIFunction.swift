import Dispatch
import Locks
import SystemPackage
import VFIOCore

/// Serves a `PCIDevice` as vfio-pci serves a function: nine regions, five kinds of interrupts.
///
/// Its type doesn't show the model's: the model's registers and effects are reached through a cell.
/// Work on the queue holds a reference to the function, so the last reference goes only when the
/// queue is empty, and no work ever outlives its device.
public final class PCIFunction: DeviceOperations {
  struct State {
    let cell: Cell
    var bus: Bus
    var config: ConfigSpace
    /// By region.
    var memories: [BARMemory?]
    /// Open descriptors.
    var users = 0
    var dma: DMA?
    /// Counts resets: work begun before the last one is void.
    var generation: UInt64 = 0
    /// Work and writes to memory that have begun and aren't done.
    var busy = 0
    var timer = Timer()
    var migration = Migration()
  }

  struct BARMemory {
    var memory: any MappableMemory
    /// A client was given the descriptor, and may have it mapped long after it has closed the device.
    var isExposed = false
  }

  private enum Content: Sendable {
    case registers(RegisterFile)
    case memory(mappable: [Range<UInt64>])
    case vectors
    case config
  }
  private struct Region: Sendable {
    let size: UInt64
    let content: Content
  }

  /// vfio-pci's numbers: BARs 0–5, ROM 6, configuration space 7, VGA 8; nil where there is nothing.
  private let regions: [Region?]
  private static let configRegion = 7
  private static let regionCount = 9
  let ignoresBusMastering: Bool
  /// The model's registers and properties, as they are saved.
  let savedParts: [SavedPart]
  let beginOfState: [UInt8]
  let started: @Sendable (Cell, inout Bus) -> Void
  let timerFired: @Sendable (Cell, inout Bus) -> Void
  let state: Mutex<State>
  let queue = DispatchQueue(label: "vfio device")

  /// Throws `TableError` if the model's tables are wrong, and what `memory` throws.
  public init<Device: PCIDevice>(_ device: Device, memory: MemoryFactory) throws {
    var tables = Device.bars.map(\.table)
    if let msix = Device.interrupts.msix {
      tables.append(
        BARTable(index: msix.bar, size: msix.size, is64Bit: false, content: .vectors))
    }
    try TableCheck.check(tables, Device.interrupts)

    var regions = [Region?](repeating: nil, count: Self.regionCount)
    var memories = [BARMemory?](repeating: nil, count: Self.regionCount)
    var saved: [SavedPart] = []
    for table in tables {
      let content: Content
      switch table.content {
      case .registers(let rows, let access):
        let file = try RegisterFile(rows, access, bar: table.index, size: table.size)
        saved += file.saved(region: table.index)
        content = .registers(file)
      case .memory(let mappable):
        content = .memory(mappable: mappable)
        memories[table.index] = BARMemory(memory: try memory(table.size))
      case .vectors:
        content = .vectors
      }
      regions[table.index] = Region(size: table.size, content: content)
    }
    regions[Self.configRegion] = Region(size: UInt64(ConfigSpace.size), content: .config)
    self.regions = regions
    ignoresBusMastering = Device.ignoresBusMastering
    for (number, property) in Device.saved.enumerated() {
      var part = property.part
      part.offset = UInt64(number)
      saved.append(part)
    }
    savedParts = saved
    beginOfState = StateRecord.begin(Device.identity)
    started = { cell, bus in cell.update(Device.self) { $0.started(&bus) } }
    timerFired = { cell, bus in cell.update(Device.self) { $0.timerFired(&bus) } }
    state = Mutex(
      State(
        cell: Cell(device), bus: Bus(InterruptLines(Device.interrupts)),
        config: ConfigSpace(Device.identity, Device.interrupts, tables), memories: memories))
  }

  // MARK: What the function has

  public var information: DeviceInformation {
    DeviceInformation(
      flags: 1 | 2, regions: UInt32(Self.regionCount),
      interrupts: UInt32(InterruptLines.Kind.allCases.count))
  }

  public func region(_ index: UInt32) throws(Errno) -> RegionInformation {
    guard index < regions.count else { throw .invalidArgument }
    guard let region = regions[Int(index)] else {
      return RegionInformation(readable: false, writable: false, size: 0)
    }
    guard case .memory(let mappable) = region.content, !mappable.isEmpty else {
      return RegionInformation(readable: true, writable: true, size: region.size)
    }
    let memory = state.withLock { state in
      state.memories[Int(index)]?.isExposed = true
      return state.memories[Int(index)]?.memory
    }
    return RegionInformation(
      readable: true, writable: true, size: region.size, mappable: mappable, memory: memory)
  }

  public func interrupt(_ index: UInt32) throws(Errno) -> InterruptInformation {
    try state.withLock { (state) throws(Errno) in try state.bus.interrupts.information(index) }
  }

  // MARK: Clients

  public func open(_ dma: DMA, keepingState: Bool) throws(Errno) {
    try state.withLock { (state) throws(Errno) in
      if state.users == 0 {
        state.memories = try Self.withoutExposed(state.memories)
        if !keepingState {
          reset(&state)
          state.config.command = .decoding
          state.bus.interrupts.disableINTx(false)
        }
        state.dma = dma
      }
      state.users += 1
    }
  }

  /// What earlier clients may still have mapped becomes a copy that they can't see.
  private static func withoutExposed(_ memories: [BARMemory?]) throws(Errno) -> [BARMemory?] {
    var fresh = memories
    for index in fresh.indices {
      if let old = fresh[index], old.isExposed {
        fresh[index] = BARMemory(memory: try old.memory.copy())
      }
    }
    return fresh
  }

  public func release() {
    state.withLock { state in
      state.users = max(0, state.users - 1)
      guard state.users == 0 else { return }
      state.bus.interrupts.removeTriggers()
      state.dma?.log.stop()
      state.dma = nil
    }
  }

  public func reset() throws(Errno) {
    let interrupted = state.withLock { reset(&$0) }
    interrupted?(.failure(.canceled))
  }

  /// Returns what waited for a change of the migration's state.
  @discardableResult private func reset(_ state: inout State) -> MigrationCompletion? {
    state.cell.reset()
    state.generation += 1
    state.timer.due = nil
    state.config.reset()
    state.bus.interrupts.reset()
    return endMigration(&state)
  }

  public func ioEvents(_ index: UInt32) throws(Errno) -> [IOEvent] {
    guard index < regions.count, let region = regions[Int(index)] else { throw .invalidArgument }
    guard case .registers(let file) = region.content else { return [] }
    return file.ioEvents
  }

  public func setInterrupts(_ request: InterruptRequest) throws(Errno) {
    try state.withLock { (state) throws(Errno) in
      // Under the lock, which the action takes: it can't come before the event is known.
      if request.action == .unmask, case .triggers(let events) = request.data,
        let event = events.first ?? nil
      {
        try event.listen { [weak self, weak event] in
          guard let self, let event else { return }
          self.state.withLock { $0.bus.interrupts.unmask(by: event) }
        }
      }
      try state.bus.interrupts.set(request)
    }
  }

  public func request() {
    state.withLock { $0.bus.interrupts.request() }
  }

  // MARK: Accesses

  public func read(
    _ region: UInt32, at offset: UInt64, into bytes: inout MutableSpan<UInt8>
  ) throws(Errno) {
    switch try content(of: region, offset, bytes.count) {
    case .memory:
      try enabledMemory(region).read(at: offset, into: &bytes)
    case .config:
      state.withLock { state in
        state.config.read(at: Int(offset), into: &bytes, state.bus.interrupts)
      }
    case .registers(let file):
      try state.withLock { (state) throws(Errno) in
        try Self.checkDecoding(state)
        file.read(at: offset, into: &bytes, state.cell)
      }
    case .vectors:
      try state.withLock { (state) throws(Errno) in
        try Self.checkDecoding(state)
        state.bus.interrupts.vectors.bytes.read(at: Int(offset), into: &bytes)
      }
    }
  }

  public func write(
    _ bytes: Span<UInt8>, to region: UInt32, at offset: UInt64
  ) throws(Errno) {
    switch try content(of: region, offset, bytes.count) {
    case .memory:
      try writeMemory(region, bytes, at: offset)
    case .config:
      state.withLock { state in
        state.config.write(bytes, at: Int(offset), &state.bus.interrupts)
      }
    case .registers(let file):
      try state.withLock { (state) throws(Errno) in
        try Self.checkRunning(state)
        file.write(bytes, at: offset, state.cell, &state.bus)
        queueWork(&state)
      }
    case .vectors:
      try state.withLock { (state) throws(Errno) in
        try Self.checkDecoding(state)
        state.bus.interrupts.write(bytes, toVectorsAt: Int(offset))
      }
    }
  }

  private func content(
    of index: UInt32, _ offset: UInt64, _ count: Int
  ) throws(Errno) -> Content {
    guard index < regions.count, let region = regions[Int(index)], offset <= region.size,
      UInt64(count) <= region.size - offset
    else { throw .invalidArgument }
    return region.content
  }

  private static func checkDecoding(_ state: borrowing State) throws(Errno) {
    guard state.config.command.contains(.memory) else { throw .ioError }
  }

  /// What has stopped changes nothing any more: a client learns that its write must be done elsewhere.
  private static func checkRunning(_ state: borrowing State) throws(Errno) {
    try checkDecoding(state)
    guard !state.migration.isStopped else { throw .invalidArgument }
  }

  private func writeMemory(
    _ region: UInt32, _ bytes: Span<UInt8>, at offset: UInt64
  ) throws(Errno) {
    let memory = try state.withLock { (state) throws(Errno) -> (any MappableMemory)? in
      try Self.checkRunning(state)
      state.busy += 1
      return state.memories[Int(region)]?.memory
    }
    defer {
      endBusy { $0.migration.outgoing?.mark(Int(region), at: offset, count: bytes.count) }
    }
    try memory?.write(bytes, at: offset)
  }

  /// The copy itself needs no lock: the reference keeps the memory, also when a later client's takes
  /// its place meanwhile, and memory may be reached from several threads.
  private func enabledMemory(_ region: UInt32) throws(Errno) -> any MappableMemory {
    try state.withLock { (state) throws(Errno) in
      try Self.checkDecoding(state)
      guard let memory = state.memories[Int(region)]?.memory else { throw .invalidArgument }
      return memory
    }
  }
}
