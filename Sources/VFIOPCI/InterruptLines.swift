import SystemPackage
import VFIOCore

/// A function's interrupts and what they signal: vfio-pci's rules for `VFIO_DEVICE_SET_IRQS`, and masks
/// for each message, which vfio-user has besides.
///
/// Of INTx, MSI and MSI-X one at a time is in use: the one whose triggers a client set last, until
/// it disables it. A trigger is signalled only by the holder of the device's lock, so it can be
/// replaced at any time.
struct InterruptLines {
  enum Kind: Int, CaseIterable {
    case intx, msi, msix, error, request

    init(_ index: UInt32) throws(Errno) {
      guard let kind = Kind(rawValue: Int(index)) else { throw .invalidArgument }
      self = kind
    }
  }

  private var triggers: [[(any InterruptTrigger)?]]
  private var inUse: Kind?
  /// How many MSI vectors were taken into use: a set, which doesn't grow.
  private var messages = 0
  /// The level of INTx, as the device drives it.
  private(set) var isAsserted = false
  /// INTx was masked by a client, or by its own signal.
  private var isMasked = false
  /// The device is stopped: what its state says is signalled when it runs again.
  var isStopped = false {
    didSet {
      guard !isStopped else { return }
      deliverINTx()
      deliverMessages()
    }
  }
  /// COMMAND's INTx disable bit, which masks; clearing it unmasks, as in the kernel.
  private var isDisabled = false
  /// Unmasks INTx when the client signals it.
  private var unmaskEvent: (any InterruptTrigger)?
  /// MSI's mask and pending bits, which configuration space shows.
  private(set) var messageMask: UInt32 = 0
  private(set) var pendingMessages: UInt32 = 0
  /// The BAR with the MSI-X table and the pending bits.
  ///
  /// A vector's first trigger clears its mask bit, and the last that goes sets it, as the kernel writes the
  /// table when it requests an interrupt: many clients never do, because emulators keep a table of their own.
  private(set) var vectors: VectorTable
  /// MSI-X's function mask.
  private var isFunctionMasked = false

  init(_ interrupts: Interrupts) {
    triggers = [interrupts.intx ? 1 : 0, interrupts.msi, interrupts.msix?.vectors ?? 0, 1, 1]
      .map { Array(repeating: nil, count: $0) }
    vectors = VectorTable(interrupts.msix)
  }

  func information(_ index: UInt32) throws(Errno) -> InterruptInformation {
    let kind = try Kind(index)
    let flags: UInt32 =
      switch kind {  // EVENTFD 1, MASKABLE 2, AUTOMASKED 4, NORESIZE 8
      case .intx: 1 | 2 | 4
      case .msi: 1 | 2 | 8
      case .msix: 1 | 2
      case .error, .request: 1 | 8
      }
    return InterruptInformation(flags: flags, count: UInt32(triggers[kind.rawValue].count))
  }

  // MARK: The device's side

  /// Signals a message's vector if messages are in use, and asserts INTx otherwise. One that is masked, or
  /// an MSI-X vector without a trigger, becomes pending; an MSI without a trigger is lost.
  mutating func raise(_ vector: Int) {
    guard let inUse, inUse != .intx else {
      isAsserted = !triggers[Kind.intx.rawValue].isEmpty
      return deliverINTx()
    }
    guard triggers[inUse.rawValue].indices.contains(vector) else { return }
    let trigger = triggers[inUse.rawValue][vector]
    if inUse == .msi {
      if messageMask & 1 << UInt32(vector) != 0 {
        pendingMessages |= 1 << UInt32(vector)
      } else {
        trigger?.signal()
      }
    } else if let trigger, !isFunctionMasked, !vectors.isMasked(vector) {
      trigger.signal()
    } else {
      vectors.setPending(vector, true)
    }
  }

  mutating func lower() { isAsserted = false }

  /// The device was reset; triggers and what is in use stay.
  mutating func reset() {
    isAsserted = false
    (messageMask, pendingMessages) = (0, 0)
    isFunctionMasked = false
    vectors.reset()
    for (vector, trigger) in triggers[Kind.msix.rawValue].enumerated() where trigger != nil {
      vectors.setMasked(vector, false)
    }
  }

  /// Whether these may be the vectors' table and pending bits.
  func couldBe(_ other: [UInt8]) -> Bool { vectors.couldBe(other) }

  /// Takes another server's masks, and messages that wait.
  mutating func restoreMessages(mask: UInt32, pending: UInt32, isFunctionMasked: Bool) {
    (messageMask, pendingMessages) = (mask, pending)
    self.isFunctionMasked = isFunctionMasked
    deliverMessages()
  }

  /// Takes the device's side of another server's interrupts: the level of INTx, the table and the
  /// pending bits.
  mutating func restore(isAsserted: Bool, vectors other: [UInt8]) {
    self.isAsserted = isAsserted
    vectors.restore(other)
  }

  /// The last client has gone.
  mutating func removeTriggers() {
    for kind in Kind.allCases { disable(kind) }
  }

  /// The administrator wants the device back.
  func request() { triggers[Kind.request.rawValue][0]?.signal() }

  /// INTx is a level: it signals once and masks itself, and again when unmasked while still asserted.
  private mutating func deliverINTx() {
    guard inUse == .intx, isAsserted, !isMasked, !isDisabled, !isStopped,
      let trigger = triggers[Kind.intx.rawValue][0]
    else { return }
    isMasked = true
    trigger.signal()
  }

  private mutating func unmaskINTx() {
    isMasked = false
    deliverINTx()
  }

  /// Signals messages that wait and aren't masked any more.
  private mutating func deliverMessages() {
    guard !isStopped else { return }
    if inUse == .msi {
      let ready = pendingMessages & ~messageMask
      pendingMessages &= messageMask
      for (vector, trigger) in triggers[Kind.msi.rawValue].enumerated()
      where ready & 1 << UInt32(vector) != 0 {
        trigger?.signal()
      }
    } else if inUse == .msix, !isFunctionMasked {
      for (vector, trigger) in triggers[Kind.msix.rawValue].enumerated()
      where vectors.isPending(vector) && !vectors.isMasked(vector) {
        guard let trigger else { continue }
        vectors.setPending(vector, false)
        trigger.signal()
      }
    }
  }

  // MARK: The client's side: registers

  mutating func disableINTx(_ disable: Bool) {
    guard disable != isDisabled else { return }
    isDisabled = disable
    if !disable { unmaskINTx() }
  }

  /// MSI's mask bits, and MSI-X's function mask, as configuration space has them.
  mutating func maskMessages(_ mask: UInt32, function: Bool) {
    guard mask != messageMask || function != isFunctionMasked else { return }
    (messageMask, isFunctionMasked) = (mask, function)
    deliverMessages()
  }

  mutating func write(_ bytes: Span<UInt8>, toVectorsAt offset: Int) {
    vectors.write(bytes, at: offset)
    deliverMessages()
  }

  // MARK: The client's side: requests

  /// `VFIO_DEVICE_SET_IRQS`.
  mutating func set(_ request: InterruptRequest) throws(Errno) {
    let kind = try Kind(request.index)
    let (end, overflow) = request.start.addingReportingOverflow(request.count)
    let available = UInt32(triggers[kind.rawValue].count)
    guard !overflow, end <= available, request.start < available else { throw .invalidArgument }
    let range = Int(request.start)..<Int(end)
    switch request.data {
    case .none: break
    case .bools(let bools): guard bools.count == range.count else { throw .invalidArgument }
    case .triggers(let new): guard new.count == range.count else { throw .invalidArgument }
    }
    switch (kind, request.action) {
    case (.intx, .trigger), (.msi, .trigger), (.msix, .trigger):
      try trigger(kind, range, request.data)
    case (.error, .trigger), (.request, .trigger): try triggerSingle(kind, range, request.data)
    case (.error, _), (.request, _): throw .inappropriateIOCTLForDevice
    default: try mask(kind, range, request)
    }
  }

  private mutating func mask(
    _ kind: Kind, _ range: Range<Int>, _ request: InterruptRequest
  ) throws(Errno) {
    guard inUse == kind, !range.isEmpty else { throw .invalidArgument }
    if case .triggers(let new) = request.data {
      // An event that unmasks INTx, as the kernel has it. It has none that masks.
      guard kind == .intx, request.action == .unmask else { throw .inappropriateIOCTLForDevice }
      guard new[0] == nil || unmaskEvent == nil else { throw .resourceBusy }
      unmaskEvent = new[0]
      return
    }
    for (number, vector) in range.enumerated() {
      if case .bools(let bools) = request.data, !bools[number] { continue }
      let isMasking = request.action == .mask
      switch kind {
      case .intx: if isMasking { isMasked = true } else { unmaskINTx() }
      case .msi:
        let bit = 1 << UInt32(vector) as UInt32
        messageMask = isMasking ? messageMask | bit : messageMask & ~bit
      default: vectors.setMasked(vector, isMasking)
      }
    }
    deliverMessages()
  }

  /// The client signalled `event`: INTx is unmasked, if this is still what unmasks it.
  mutating func unmask(by event: any InterruptTrigger) {
    if unmaskEvent === event { unmaskINTx() }
  }

  private mutating func trigger(
    _ kind: Kind, _ range: Range<Int>, _ data: InterruptRequest.Data
  ) throws(Errno) {
    if case .triggers(let new) = data {
      guard inUse == kind || (inUse == nil && !range.isEmpty), kind != .intx || !range.isEmpty,
        kind != .msi || inUse == nil || range.upperBound <= messages
      else { throw .invalidArgument }
      if inUse == nil { messages = range.upperBound }
      inUse = kind
      for (vector, trigger) in zip(range, new) { replace(kind, vector, trigger) }
      return
    }
    guard inUse == kind else { throw .invalidArgument }
    switch data {
    case .none where range.isEmpty:
      guard range.lowerBound == 0 else { throw .invalidArgument }
      disable(kind)
    case .none:
      for vector in range { loopBack(kind, vector) }
    case .bools(let bools):
      guard kind != .intx || !range.isEmpty else { throw .invalidArgument }
      for (vector, isSet) in zip(range, bools) where isSet { loopBack(kind, vector) }
    case .triggers: break
    }
  }

  private mutating func replace(
    _ kind: Kind, _ vector: Int, _ trigger: (any InterruptTrigger)?
  ) {
    let isFirst = triggers[kind.rawValue][vector] == nil
    triggers[kind.rawValue][vector] = trigger
    if kind == .intx { return deliverINTx() }
    guard kind == .msix else { return }
    if isFirst || trigger == nil { vectors.setMasked(vector, trigger == nil) }
    if trigger != nil { deliverMessages() }
  }

  /// Leaves nothing masked that the next client would have to unmask.
  private mutating func disable(_ kind: Kind) {
    for vector in triggers[kind.rawValue].indices {
      triggers[kind.rawValue][vector] = nil
      if kind == .msix { vectors.setMasked(vector, true) }
    }
    if kind == .msi { (messageMask, pendingMessages) = (0, 0) }
    inUse = nil
    isMasked = false
    unmaskEvent = nil
  }

  /// Signals as if the device had, for tests of the way to the client.
  private func loopBack(_ kind: Kind, _ vector: Int) {
    if kind == .intx, isDisabled { return }
    triggers[kind.rawValue][vector]?.signal()
  }

  /// ERR and REQ, which are there beside the others.
  private mutating func triggerSingle(
    _ kind: Kind, _ range: Range<Int>, _ data: InterruptRequest.Data
  ) throws(Errno) {
    let trigger = triggers[kind.rawValue][0]
    switch data {
    case .none:
      guard let trigger else { throw .invalidArgument }
      if range.isEmpty { triggers[kind.rawValue][0] = nil } else { trigger.signal() }
    case .bools(let bools):
      guard let isSet = bools.first else { throw .invalidArgument }
      if isSet { trigger?.signal() }
    case .triggers(let new):
      guard let replacement = new.first else { throw .invalidArgument }
      triggers[kind.rawValue][0] = replacement
    }
  }
}
