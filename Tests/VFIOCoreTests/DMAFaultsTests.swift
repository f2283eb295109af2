import Locks
import Testing

@testable import VFIOCore

@Suite struct DMAFaultsTests {
  @Test func `a burst of faults is reported once, with its first`() {
    let reports = Reports()
    let faults = DMAFaults { reports.add($0) }
    let start = ContinuousClock.now
    for (iova, milliseconds) in [(1, 0), (2, 10), (3, 900), (4, 1800), (5, 2800), (6, 2801)] {
      faults.record(
        DMAFault(iova: UInt64(iova), completed: 0), .read,
        at: start + .milliseconds(milliseconds))
    }
    #expect(reports.all.map(\.iova) == [1, 5])
    #expect(reports.all.map(\.count) == [1, 5])
    #expect(faults.summary == DMAFaults.Summary(count: 6, iova: 6, access: .read))
  }

  @Test func `what a device wanted where is told`() {
    let faults = DMAFaults()
    #expect(faults.summary == DMAFaults.Summary())
    faults.record(DMAFault(iova: 7, completed: 3), [.read, .write])
    #expect(faults.summary == DMAFaults.Summary(count: 1, iova: 7, access: [.read, .write]))
  }
}

private final class Reports: Sendable {
  private let state = Mutex<[DMAFaults.Summary]>([])
  var all: [DMAFaults.Summary] { state.withLock { $0 } }
  func add(_ summary: DMAFaults.Summary) { state.withLock { $0.append(summary) } }
}
