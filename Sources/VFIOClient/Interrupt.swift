import LinuxIO
import Locks
import SystemPackage
import VFIOStream
import VFIOWire

/// An interrupt that is enabled: the device signals its eventfd. It keeps the device open, and is disabled
/// when it goes.
public final class Interrupt: Sendable {
  public let kind: InterruptKind
  /// Which of its kind, from 0.
  public let index: UInt32
  let event: EventFD
  private let owners: InterruptOwners
  var connection: Connection { owners.connection }

  init(_ kind: InterruptKind, _ index: UInt32, _ event: EventFD, _ owners: InterruptOwners) {
    self.kind = kind
    self.index = index
    self.event = event
    self.owners = owners
  }

  deinit { owners.disable(kind, index, event) }

  /// The eventfd, for `poll` and the like. It belongs to this object.
  public var descriptor: FileDescriptor { event.descriptor.borrowed }

  /// How often it was signalled since the last look; doesn't wait.
  public func count() -> UInt64 { event.take() }

  /// Waits until it is signalled; returns how often since the last look, 0 when `timeout` has passed.
  public func wait(timeout: Duration? = nil) throws(VFIOError) -> UInt64 {
    let deadline = timeout.map { ContinuousClock.now + $0 }
    while true {
      let count = event.take()
      if count > 0 { return count }
      let left = deadline.map { $0 - .now }
      if let left, left <= .zero { return 0 }
      try naming(sentence("wait for")) { () throws(Errno) in
        try event.wait(milliseconds: left?.milliseconds)
      }
    }
  }

  /// `VFIO_IRQ_SET_ACTION_MASK`: it isn't signalled until it is unmasked. Not for errors and requests.
  public func mask() throws(VFIOError) { try set(.mask, "mask") }

  /// `VFIO_IRQ_SET_ACTION_UNMASK`: it may come again. INTx masks itself whenever it is signalled.
  public func unmask() throws(VFIOError) { try set(.unmask, "unmask") }

  /// `VFIO_IRQ_SET_ACTION_TRIGGER`: signals it as if the device had.
  public func trigger() throws(VFIOError) { try set(.trigger, "trigger") }

  /// Lets the device signal it no more. A second time does nothing.
  public func disable() { owners.disable(kind, index, event) }

  private func set(_ action: InterruptSet.Action, _ verb: String) throws(VFIOError) {
    let request = InterruptSet(kind, index, count: 1, .none, action)
    try owners.connection.call(.deviceSetIRQs, sentence(verb)) { $0.append(request) }
  }

  func sentence(_ verb: String) -> String { "\(verb) \(kind) \(index)" }
}

extension Device {
  /// `VFIO_DEVICE_SET_IRQS` with a new eventfd: from now on the device signals it.
  ///
  /// `EINVAL` when the device hasn't got the interrupt, or another of INTx, MSI and MSI-X is enabled.
  public func enableInterrupt(
    _ kind: InterruptKind, _ index: UInt32 = 0
  ) throws(VFIOError) -> Interrupt {
    let event = try interrupts.enable(kind, index, count: 1, name)
    return Interrupt(kind, index, event[0], interrupts)
  }

  /// `enableInterrupt` for interrupts 0 to `count` − 1 of a kind.
  public func enableInterrupts(
    _ kind: InterruptKind, count: UInt32
  ) throws(VFIOError) -> [Interrupt] {
    var enabled: [Interrupt] = []
    while enabled.count < count {
      let first = UInt32(enabled.count)
      let piece = min(count - first, UInt32(version.maxDescriptors))
      let events = try interrupts.enable(kind, first, count: piece, name)
      for (index, event) in events.enumerated() {
        enabled.append(Interrupt(kind, first + UInt32(index), event, interrupts))
      }
    }
    return enabled
  }
}

/// Whose eventfd each interrupt of a device signals, so that one that was enabled anew isn't disabled with
/// the old, and so that the last of its kind frees the device for another kind.
final class InterruptOwners: Sendable {
  private struct Key: Hashable {
    var kind: InterruptKind
    var index: UInt32
  }

  let connection: Connection
  /// Held while the device is told, so that both agree. The connection's locks come after it.
  private let owners = Mutex<[Key: EventFD]>([:])

  init(_ connection: Connection) { self.connection = connection }

  func enable(
    _ kind: InterruptKind, _ first: UInt32, count: UInt32, _ device: String
  ) throws(VFIOError) -> [EventFD] {
    let sentence = "enable \(kind) \(first) of \(device)"
    return try owners.withLock { owners throws(VFIOError) in
      let events = try naming(sentence) { () throws(Errno) in
        var events: [EventFD] = []
        for _ in 0..<count { events.append(try EventFD()) }
        return events
      }
      let request = InterruptSet(kind, first, count: count, .eventfd, .trigger)
      try connection.call(.deviceSetIRQs, sentence, with: events.map(\.descriptor)) {
        $0.append(request)
      }
      for (index, event) in events.enumerated() {
        owners[Key(kind: kind, index: first &+ UInt32(index))] = event
      }
      return events
    }
  }

  /// Doesn't wait for the server; a closed connection has disabled everything.
  func disable(_ kind: InterruptKind, _ index: UInt32, _ event: EventFD) {
    owners.withLock { owners in
      let key = Key(kind: kind, index: index)
      guard owners[key] === event else { return }
      owners[key] = nil
      let isLast = !owners.keys.contains { $0.kind == kind }
      let request =
        isLast
        ? InterruptSet(kind, 0, count: 0, .none, .trigger)
        : InterruptSet(kind, index, count: 1, .eventfd, .trigger)  // no descriptor: none to signal
      try? connection.post(.deviceSetIRQs) { $0.append(request) }
    }
  }
}

/// `struct vfio_irq_set`: `u32 argsz, u32 flags, u32 index, u32 start, u32 count`.
struct InterruptSet {
  enum Data: UInt32 {
    case none = 1
    case eventfd = 4
  }
  enum Action: UInt32 {
    case mask = 8
    case unmask = 16
    case trigger = 32
  }

  var fields: [UInt32]

  init(_ kind: InterruptKind, _ start: UInt32, count: UInt32, _ data: Data, _ action: Action) {
    fields = [20, data.rawValue | action.rawValue, kind.rawValue, start, count]
  }
}

extension Output {
  mutating func append(_ request: InterruptSet) {
    for field in request.fields { append(field) }
  }
}

extension Duration {
  /// Rounded up, so that a wait is never too short.
  var milliseconds: Int {
    let (seconds, attoseconds) = components
    let (product, overflow) = seconds.multipliedReportingOverflow(by: 1000)
    let rest = Int64(attoseconds / 1_000_000_000_000_000) + 1
    return overflow ? Int.max : Int(clamping: product.addingReportingOverflow(rest).partialValue)
  }
}
