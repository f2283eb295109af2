import LinuxIO
import Locks
import SystemPackage
import VFIOCore
import VFIOWire

/// A device's descriptor, or a connection to its socket: vfio-user.
final class DeviceSession: Session {
  private let service: Service
  private let number: UInt64
  /// Of its mappings.
  private let owner: DMAOwner
  /// What it maps without a descriptor.
  private let messages: MessageMemory
  /// Guards what VERSION changes. Held for a look only, never while the device works.
  private let state: Mutex<State>

  private struct State {
    var version = Version()
    var device: OpenDevice?
    /// Present on a connection to `devices/NAME.sock`, which goes the whole way by itself.
    var way: SocketWay?
    var isBusy = false
  }

  /// A descriptor from a group.
  init(_ service: Service, _ device: OpenDevice, number: UInt64) {
    self.service = service
    self.number = number
    owner = DMAOwner(number: number)
    messages = MessageMemory()
    state = Mutex(State(device: device))
  }

  /// A connection to a device's own socket; it takes its group at VERSION.
  init(_ service: Service, _ way: SocketWay, number: UInt64) {
    self.service = service
    self.number = number
    owner = DMAOwner(number: number)
    messages = way.messages
    state = Mutex(State(way: way))
  }

  var isFinished: Bool { state.withLock { $0.version.isRefused || $0.isBusy } }
  var wantsOwnLoop: Bool { state.withLock { $0.version.isDone } }
  var messageLimit: Int { wantsOwnLoop ? service.limits.messageSize : Version.messageLimit }

  func handle(
    _ request: Request, _ body: Span<UInt8>, _ reply: inout Output<Descriptor>
  ) throws(Errno) {
    if request.header.command == .version { return try negotiate(body, &reply) }
    let (device, isShared) = state.withLock { state in
      (state.version.isDone ? state.device : nil, state.way != nil)
    }
    guard let device else { throw .invalidArgument }
    let operations = device.operations
    switch request.header.command {
    case .regionRead:
      let access = try RegionAccess(body, limit: service.limits.maxDataTransferSize)
      reply.append(access)
      try reply.append(count: access.count) { bytes throws(Errno) in
        try operations.read(access.region, at: access.offset, into: &bytes)
      }
    case .regionWrite:
      let access = try RegionAccess(body, limit: service.limits.maxDataTransferSize)
      try operations.write(
        body.extracting(try access.data(in: body)), to: access.region, at: access.offset)
      reply.append(access)
    case .dmaMap:
      try map(request, body, device, mayShare: isShared)
    case .dmaUnmap:
      try unmap(body, device, &reply)
    case .deviceGetInfo:
      try getInfo(body, operations, &reply)
    case .deviceGetRegionInfo:
      try getRegionInfo(request, body, operations, &reply)
    case .deviceGetIRQInfo:
      try getInterruptInfo(body, operations, &reply)
    case .deviceSetIRQs:
      try operations.setInterrupts(try InterruptRequest(request, body, operations))
    case .deviceReset:
      try operations.reset()
      service.logger.debug("device reset", metadata: ["device": "\(device.name)"])
    default:
      throw .notSupported
    }
  }

  private func negotiate(_ body: Span<UInt8>, _ reply: inout Output<Descriptor>) throws(Errno) {
    try state.withLock { state throws(Errno) in
      var found: OpenDevice?
      let way = state.way
      do throws(Errno) {
        try state.version.negotiate(body, service.limits, &reply) { () throws(Errno) in
          found = try way?.open(service)
        }
      } catch {
        // Held by another client: it's told so and never waits.
        if error == .resourceBusy { state.isBusy = true }
        throw error
      }
      if let found {
        state.device = found
        service.logger.debug(
          "device opened", metadata: ["device": "\(found.name)", "connection": "\(number)"])
      }
    }
  }

  func close() {
    let (device, way) = state.withLock { ($0.device, $0.way) }
    guard let device else { return }
    device.iommu.unmapAll(owner: owner)
    device.release()
    way?.leave(service)
    service.logger.debug(
      "device closed", metadata: ["device": "\(device.name)", "connection": "\(number)"])
  }
}

// MARK: DMA

extension DeviceSession {
  /// `VFIO_USER_DMA_MAP`: `u32 argsz, u32 flags, u64 offset, u64 address, u64 size`.
  private func map(
    _ request: Request, _ body: Span<UInt8>, _ device: OpenDevice, mayShare: Bool
  ) throws(Errno) {
    try body.require(32)
    let flags: UInt32 = body.load(at: 4)
    guard body.load(UInt32.self, at: 0) >= 32, flags & ~3 == 0, request.descriptors.count <= 1
    else { throw .invalidArgument }
    let mapping = DMAMapping(
      iova: body.load(at: 16), size: body.load(at: 24), offset: body.load(at: 8),
      access: DMAAccess(rawValue: flags), owner: owner, mayShare: mayShare)
    try device.iommu.map(mapping, from: RequestMemory(request, service, messages: messages))
  }

  /// `VFIO_USER_DMA_UNMAP`: `u32 argsz, u32 flags, u64 address, u64 size`, which is also the reply.
  private func unmap(
    _ body: Span<UInt8>, _ device: OpenDevice, _ reply: inout Output<Descriptor>
  ) throws(Errno) {
    try body.require(24)
    let flags: UInt32 = body.load(at: 4)
    let (iova, size): (UInt64, UInt64) = (body.load(at: 8), body.load(at: 16))
    guard body.load(UInt32.self, at: 0) >= 24 else { throw .invalidArgument }
    switch flags {
    case 0:
      try device.iommu.unmap(iova: iova, size: size, owner: owner)
    case 2:  // all that was mapped on this socket
      guard iova == 0, size == 0 else { throw .invalidArgument }
      device.iommu.unmapAll(owner: owner)
    case 1:  // with the dirty bitmap
      throw .notSupported
    default:
      throw .invalidArgument
    }
    reply.append(UInt32(24))
    reply.append(flags)
    reply.append(iova)
    reply.append(size)
  }
}
