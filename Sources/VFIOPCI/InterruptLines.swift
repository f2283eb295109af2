import SystemPackage
import VFIOCore

/// A function's interrupts and what they signal: vfio-pci's rules for `VFIO_DEVICE_SET_IRQS`.
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
  /// The level of INTx, as the device drives it.
  private(set) var isAsserted = false
  /// INTx was masked by a client, or by its own signal.
  private var isMasked = false
  /// The device is stopped: what its state says is signalled when it runs again.
  var isStopped = false {
    didSet {
      guard !isStopped else { return }
      deliverINTx()
      for vector in triggers[Kind.msix.rawValue].indices { deliverPending(vector) }
    }
  }
  /// COMMAND's INTx disable bit, which masks; clearing it unmasks, as in the kernel.
  private var isDisabled = false
  /// The BAR with the MSI-X table and the pending bits. The table only stores: triggers alone
  /// decide what is signalled, because emulators keep a table of their own and leave this one masked.
  private(set) var vectors: MaskedBytes
  private let pendingOffset: Int

  init(_ interrupts: Interrupts) {
    triggers = [interrupts.intx ? 1 : 0, interrupts.msi, interrupts.msix?.vectors ?? 0, 1, 1]
      .map { Array(repeating: nil, count: $0) }
    vectors = MaskedBytes(count: Int(interrupts.msix?.size ?? 0))
    pendingOffset = Int(interrupts.msix?.pending ?? 0)
    guard let msix = interrupts.msix else { return }
    for entry in 0..<msix.vectors {
      let place = Int(msix.table) + 16 * entry
      vectors.define(place, UInt32(0), writable: ~3)  // address
      vectors.define(place + 4, UInt32(0), writable: ~0)
      vectors.define(place + 8, UInt32(0), writable: ~0)  // data
      vectors.define(place + 12, UInt32(1), writable: 1)  // masked
    }
  }

  func information(_ index: UInt32) throws(Errno) -> InterruptInformation {
    let kind = try Kind(index)
    // EVENTFD, and for INTx MASKABLE and AUTOMASKED, else NORESIZE.
    return InterruptInformation(
      flags: kind == .intx ? 1 | 2 | 4 : 1 | 8, count: UInt32(triggers[kind.rawValue].count))
  }

  // MARK: The device's side

  /// Signals a message's vector if messages are in use, and asserts INTx otherwise. A message that
  /// has no trigger waits in MSI-X's pending bits; MSI has none, and loses it.
  mutating func raise(_ vector: Int) {
    guard let inUse, inUse != .intx else {
      isAsserted = !triggers[Kind.intx.rawValue].isEmpty
      return deliverINTx()
    }
    guard triggers[inUse.rawValue].indices.contains(vector) else { return }
    if let trigger = triggers[inUse.rawValue][vector] {
      trigger.signal()
    } else if inUse == .msix {
      setPending(vector, true)
    }
  }

  mutating func lower() { isAsserted = false }

  mutating func disableINTx(_ disable: Bool) {
    guard disable != isDisabled else { return }
    isDisabled = disable
    if !disable { unmaskINTx() }
  }

  mutating func write(_ bytes: Span<UInt8>, toVectorsAt offset: Int) {
    vectors.write(bytes, at: offset)
  }

  /// The device was reset; triggers and what is in use stay.
  mutating func reset() {
    isAsserted = false
    vectors.reset()
  }

  /// Whether these may be the vectors' table and pending bits.
  func couldBe(_ other: [UInt8]) -> Bool {
    let bits = triggers[Kind.msix.rawValue].count
    let pending = pendingOffset..<pendingOffset + (bits + 7) / 8
    return vectors.couldBe(other, free: bits == 0 ? 0..<0 : pending)
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

  private mutating func setPending(_ vector: Int, _ pending: Bool) {
    let place = pendingOffset + vector / 8
    let bit = UInt8(1) << (vector % 8)
    let byte: UInt8 = vectors[place]
    vectors[place] = pending ? byte | bit : byte & ~bit
  }

  // MARK: The client's side

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
    case (.intx, .mask), (.intx, .unmask): try mask(request)
    case (.intx, .trigger), (.msi, .trigger), (.msix, .trigger):
      try trigger(kind, range, request.data)
    case (.error, .trigger), (.request, .trigger): try triggerSingle(kind, range, request.data)
    default: throw .inappropriateIOCTLForDevice
    }
  }

  private mutating func mask(_ request: InterruptRequest) throws(Errno) {
    guard inUse == .intx, request.count == 1 else { throw .invalidArgument }
    switch request.data {
    case .none: break
    case .bools(let bools): if !bools[0] { return }
    // Taking away an event that unmasks is fine; watching one is not offered, as the kernel offers
    // none that masks.
    case .triggers(let new):
      guard request.action == .unmask, new[0] == nil else { throw .inappropriateIOCTLForDevice }
      return
    }
    if request.action == .mask { isMasked = true } else { unmaskINTx() }
  }

  private mutating func trigger(
    _ kind: Kind, _ range: Range<Int>, _ data: InterruptRequest.Data
  ) throws(Errno) {
    if case .triggers(let new) = data {
      guard inUse == kind || (inUse == nil && !range.isEmpty), kind != .intx || !range.isEmpty
      else { throw .invalidArgument }
      inUse = kind
      for (vector, trigger) in zip(range, new) { replace(kind, vector, trigger) }
      return
    }
    guard inUse == kind else { throw .invalidArgument }
    switch data {
    case .none where range.isEmpty:
      guard range.lowerBound == 0 else { throw .invalidArgument }
      disable(kind)
    case .none: for vector in range { loopBack(kind, vector) }
    case .bools(let bools):
      guard kind != .intx || !range.isEmpty else { throw .invalidArgument }
      for (vector, isSet) in zip(range, bools) where isSet { loopBack(kind, vector) }
    case .triggers: break
    }
  }

  private mutating func replace(
    _ kind: Kind, _ vector: Int, _ trigger: (any InterruptTrigger)?
  ) {
    triggers[kind.rawValue][vector] = trigger
    switch kind {
    case .intx: deliverINTx()
    case .msix: deliverPending(vector)
    default: break
    }
  }

  private mutating func deliverPending(_ vector: Int) {
    guard !isStopped, let trigger = triggers[Kind.msix.rawValue][vector] else { return }
    let pending: UInt8 = vectors[pendingOffset + vector / 8]
    if pending & 1 << (vector % 8) != 0 {
      setPending(vector, false)
      trigger.signal()
    }
  }

  private mutating func disable(_ kind: Kind) {
    for vector in triggers[kind.rawValue].indices { triggers[kind.rawValue][vector] = nil }
    inUse = nil
    isMasked = false
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
