import Testing
import VFIOCore

@Suite struct MigrationStateTests {
  private static let states: [MigrationState] = [
    .error, .stop, .running, .stopCopy, .resuming, .preCopy,
  ]
  /// The transitions that the specification names.
  private static let arcs: [MigrationState: Set<MigrationState>] = [
    .running: [.stop, .preCopy], .stop: [.running, .stopCopy, .resuming],
    .stopCopy: [.stop], .resuming: [.stop], .preCopy: [.running, .stopCopy],
  ]

  private func path(_ from: MigrationState, _ to: MigrationState) -> [MigrationState]? {
    var path = [from]
    while let last = path.last, last != to {
      guard let next = last.next(to: to), path.count < 10 else { return nil }
      path.append(next)
    }
    return path
  }

  /// Breadth first, never on from a state in which data is read.
  private func shortest(_ from: MigrationState, _ to: MigrationState) -> Int? {
    var distance = [from: 0]
    var queue = [from]
    while !queue.isEmpty {
      let state = queue.removeFirst()
      if state == to { return distance[state] }
      if state != from, state == .preCopy || state == .stopCopy { continue }
      for next in Self.arcs[state] ?? [] where distance[next] == nil {
        distance[next] = (distance[state] ?? 0) + 1
        queue.append(next)
      }
    }
    return nil
  }

  @Test(arguments: states, states)
  func `a state is reached by the shortest path of allowed arcs, or not at all`(
    _ from: MigrationState, _ to: MigrationState
  ) {
    guard from != .error, to != .error, (from, to) != (.stopCopy, .preCopy) else { return }
    let path = path(from, to)
    #expect(path.map { $0.count - 1 } == shortest(from, to))
    for (one, next) in zip(path ?? [], (path ?? []).dropFirst()) {
      #expect(Self.arcs[one]?.contains(next) == true)
    }
    for inner in (path ?? []).dropFirst().dropLast() {
      #expect(inner != .preCopy && inner != .stopCopy)
    }
  }

  @Test(arguments: states) func `no way leads into ERROR or out of it`(_ state: MigrationState) {
    #expect(MigrationState.error.next(to: state) == nil)
    #expect(state.next(to: .error) == nil)
  }

  @Test func `STOP_COPY to PRE_COPY is forbidden`() {
    #expect(MigrationState.stopCopy.next(to: .preCopy) == nil)
  }

  @Test(arguments: [5, 7, 8, 0xABCD] as [UInt32])
  func `the states for peer-to-peer transfers are unknown, as is any further one`(_ raw: UInt32) {
    #expect(MigrationState(rawValue: raw) == nil)
  }
}
