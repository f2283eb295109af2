import Locks
import SystemPackage
import VFIOCore

typealias MigrationCompletion = @Sendable (Result<Void, Errno>) -> Void

extension PCIFunction: MigratableDevice {
  struct Migration {
    var state = MigrationState.running
    /// Nothing begins any more, though the device may still finish what it had begun.
    var isStopped = false
    var outgoing: OutgoingState?
    var incoming: IncomingState?
    /// Where the device is going.
    var target: (state: MigrationState, completion: MigrationCompletion)?
  }

  public var migrationState: MigrationState { state.withLock { $0.migration.state } }

  public func setMigrationState(
    _ target: MigrationState, completion: @escaping @Sendable (Result<Void, Errno>) -> Void
  ) {
    let arrived = state.withLock { state -> (@Sendable () -> Void)? in
      guard state.migration.target == nil else { return { completion(.failure(.resourceBusy)) } }
      state.migration.target = (target, completion)
      return goOn(&state)
    }
    arrived?()
  }

  public func readMigrationData(_ count: Int) throws(Errno) -> [UInt8] {
    try state.withLock { (state) throws(Errno) in
      let memories = state.memories
      guard
        let bytes = try state.migration.outgoing?.read(
          count,
          memory: { (region, range) throws(Errno) in
            var bytes = [UInt8](repeating: 0, count: range.count)
            var span = bytes.mutableSpan
            try memories[region]?.memory.read(at: range.lowerBound, into: &span)
            return bytes
          })
      else { throw .invalidArgument }
      return bytes
    }
  }

  public func writeMigrationData(_ bytes: Span<UInt8>) throws(Errno) {
    try state.withLock { (state) throws(Errno) in
      guard state.migration.incoming != nil else { throw .invalidArgument }
      try state.migration.incoming?.write(bytes)
    }
  }

  /// A reset ends whatever was under way. Returns what waited for it.
  func endMigration(_ state: inout State) -> MigrationCompletion? {
    let completion = state.migration.target?.completion
    state.migration = Migration()
    if state.bus.interrupts.isStopped { state.bus.interrupts.isStopped = false }
    return completion
  }

  /// Goes on towards the target as far as the device is ready. Returns what is to be called, without the
  /// lock, when it has arrived or can't get there.
  func goOn(_ state: inout State) -> (@Sendable () -> Void)? {
    guard let (target, completion) = state.migration.target else { return nil }
    do throws(Errno) {
      while state.migration.state != target || target == .error {
        guard let next = state.migration.state.next(to: target) else { throw .invalidArgument }
        if next.isStopped, !state.migration.isStopped {
          state.migration.isStopped = true
        }
        if state.migration.isStopped, state.busy > 0 { return nil }
        try enter(next, &state)
      }
      state.migration.target = nil
      return { completion(.success(())) }
    } catch {
      state.migration.target = nil
      return { completion(.failure(error)) }
    }
  }

  /// Takes one arc; nothing is under way if either end is a state in which the device is stopped.
  private func enter(_ next: MigrationState, _ state: inout State) throws(Errno) {
    let previous = state.migration.state
    switch (previous, next) {
    case (.running, .preCopy):
      state.migration.outgoing = outgoing(state)
    case (.stop, .stopCopy), (.preCopy, .stopCopy):
      var outgoing = state.migration.outgoing ?? outgoing(state)
      // What clients store into memory that they have mapped isn't seen.
      let mapped = state.memories.indices.filter { state.memories[$0]?.isExposed == true }
      outgoing.stop(rest: restOfState(state), whole: mapped)
      state.migration.outgoing = outgoing
    case (.stop, .resuming):
      var memories: [Int: any MappableMemory] = [:]
      for (region, memory) in state.memories.enumerated() {
        memories[region] = try memory?.memory.copy()
      }
      state.migration.incoming = IncomingState(
        beginOfState, expected: smallParts(state).map(\.record), memories: memories)
    case (.resuming, .stop):
      let incoming = state.migration.incoming
      state.migration.incoming = nil
      do throws(Errno) {
        if let incoming, !incoming.isEmpty { try load(incoming, &state) }
      } catch {
        state.migration.state = .error
        throw error
      }
    default:
      // The data's end.
      state.migration.outgoing = nil
    }
    state.migration.state = next
    state.migration.isStopped = next.isStopped
    if previous.isStopped != next.isStopped { next.isStopped ? stop(&state) : start(&state) }
  }

  private func stop(_ state: inout State) {
    state.timer.due = nil
    state.bus.interrupts.isStopped = true
  }

  private func start(_ state: inout State) {
    state.bus.interrupts.isStopped = false
    started(state.cell, &state.bus)
    queueWork(&state)
  }

  // MARK: What is saved

  private func outgoing(_ state: borrowing State) -> OutgoingState {
    var sizes: [Int: UInt64] = [:]
    for (region, memory) in state.memories.enumerated() { sizes[region] = memory?.memory.size }
    return OutgoingState(beginOfState, memories: sizes)
  }

  /// All but memory.
  private func smallParts(
    _ state: borrowing State
  ) -> [(record: StateRecord, content: [UInt8])] {
    var parts: [(StateRecord, [UInt8])] = []
    func add(_ kind: StateRecord.Kind, _ region: Int, _ offset: UInt64, _ content: [UInt8]) {
      let record = StateRecord(kind: kind, region: region, length: content.count, offset: offset)
      parts.append((record, content))
    }
    add(.config, 0, 0, state.config.saved(state.bus.interrupts))
    add(.vectors, 0, 0, state.bus.interrupts.vectors.bytes.all)
    add(.intx, 0, 0, [state.bus.interrupts.isAsserted ? 1 : 0])
    for part in savedParts { add(part.kind, part.region, part.offset, part.load(state.cell)) }
    return parts
  }

  private func restOfState(_ state: borrowing State) -> [UInt8] {
    smallParts(state).flatMap { $0.record.header + $0.content }
      + StateRecord(kind: .end, length: 0).header
  }

  /// Makes a state the device's own, which is checked first and then put in place at once.
  private func load(_ incoming: IncomingState, _ state: inout State) throws(Errno) {
    guard incoming.isComplete, incoming.contents.count == 3 + savedParts.count else {
      throw .invalidArgument
    }
    let (config, vectors, level) = (
      incoming.contents[0], incoming.contents[1], incoming.contents[2]
    )
    guard state.config.couldBe(config), state.bus.interrupts.couldBe(vectors),
      level == [0] || level == [1]
    else { throw .invalidArgument }
    for (region, memory) in incoming.memories {
      guard let own = state.memories[region]?.memory else { throw .invalidArgument }
      try memory.bytes.copy(to: own)
    }
    state.cell.reset()
    for (part, content) in zip(savedParts, incoming.contents.dropFirst(3)) {
      part.store(state.cell, content)
    }
    state.config.restore(config, &state.bus.interrupts)
    state.bus.interrupts.restore(isAsserted: level == [1], vectors: vectors)
  }
}
