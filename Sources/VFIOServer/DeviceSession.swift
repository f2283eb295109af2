import LinuxIO
import Logging
import SystemPackage
import VFIOCore
import VFIOStream
import VFIOWire

/// A device's descriptor, or a connection to its socket: vfio-user.
final class DeviceSession: Session {
  let service: Service
  private let number: UInt64
  /// Of its mappings.
  private let owner: DMAOwner
  /// What it maps without a descriptor.
  private let messages: MessageMemory
  private var requests: ClientRequests?
  private var twin: TwinSession?
  private let recentFile = RecentFile()
  private(set) var version = Version()
  let doorbells: Doorbells
  /// nil before VERSION on a connection to `devices/NAME.sock`.
  private var device: OpenDevice?
  /// Such a connection's way to the device.
  private let way: SocketWay?
  /// The device is held by another client, who was first.
  private var isBusy = false
  /// The reply to a change of the device's state, which waits for what the device had begun.
  private var later: Later?
  let tracepoint: Tracepoint?

  /// A descriptor from a group.
  init(_ service: Service, _ device: OpenDevice, number: UInt64) {
    self.service = service
    self.number = number
    self.device = device
    doorbells = Doorbells(service.events)
    owner = DMAOwner(number: number)
    messages = MessageMemory(service)
    way = nil
    tracepoint = service.topology.tracepoint(of: device.name)
  }

  /// A connection to a device's own socket; it takes its group at VERSION.
  init(_ service: Service, _ way: SocketWay, number: UInt64) {
    self.service = service
    self.number = number
    self.way = way
    doorbells = Doorbells(service.events)
    owner = DMAOwner(number: number)
    messages = MessageMemory(service)
    tracepoint = service.topology.tracepoint(of: way.device)
  }

  var isFinished: Bool { version.isRefused || isBusy }
  var takesReplies: Bool { version.isDone }
  func connected(_ requests: ClientRequests) { self.requests = requests }
  var wantsOwnLoop: Bool { version.isDone }
  /// Eventfds that one reply may bring; Linux passes 253 descriptors at once.
  var maxEventsHandedOut: Int { min(service.limits.undeliveredDescriptors, 253) }
  var messageLimit: Int { version.isDone ? service.limits.messageSize : Version.messageLimit }

  func takeLater() -> Later? {
    defer { later = nil }
    return later
  }

  func outlivesClient(_ command: Command) -> Bool {
    command == .regionWrite || command == .regionWriteMulti || command == .deviceReset
  }

  func handle(
    _ request: Request, _ body: Span<UInt8>, _ reply: inout Output
  ) throws(Errno) {
    if request.header.command == .version { return try negotiate(request, body, &reply) }
    guard version.isDone, let device else { throw .invalidArgument }
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
    case .regionWriteMulti:
      try writeMany(body, operations, &reply)
    case .dmaMap:
      try map(request, body, device)
    case .dmaUnmap:
      try unmap(body, device, &reply)
    case .deviceGetInfo:
      try getInfo(body, operations, &reply)
    case .deviceGetRegionInfo:
      try getRegionInfo(request, body, operations, &reply)
    case .deviceGetRegionIOFDs:
      try getRegionIOFDs(request, body, operations, &reply)
    case .deviceGetIRQInfo:
      try getInterruptInfo(body, operations, &reply)
    case .deviceSetIRQs:
      try operations.setInterrupts(try InterruptRequest(request, body, operations, service.events))
    case .deviceReset:
      try operations.reset()
      logDevice("device reset")
    case .deviceFeature:
      later = try feature(body, device, &reply)
    case .migrationDataRead:
      try readMigrationData(body, operations, &reply)
    case .migrationDataWrite:
      try writeMigrationData(body, operations)
    default:
      throw .notSupported
    }
  }

  /// `VFIO_USER_REGION_WRITE_MULTI`: `u64 wr_cnt`, then per write `u64 offset, u32 region, u32 count` and
  /// 8 bytes of data, of which `count` count. The reply tells how many were done, which is all of them.
  private func writeMany(
    _ body: Span<UInt8>, _ operations: any DeviceOperations, _ reply: inout Output
  ) throws(Errno) {
    let size = RegionAccess.size + 8
    try body.require(8)
    guard let count = Int(exactly: body.uint64(at: 0)), count <= (body.count - 8) / size else {
      throw .invalidArgument
    }
    for index in 0..<count {
      let write = body.extracting(8 + index * size..<8 + (index + 1) * size)
      let access = try RegionAccess(write, limit: 8)
      try operations.write(
        write.extracting(try access.data(in: write)), to: access.region, at: access.offset)
    }
    reply.append(UInt64(count))
  }

  private func negotiate(
    _ request: Request, _ body: Span<UInt8>, _ reply: inout Output
  ) throws(Errno) {
    do throws(Errno) {
      let mayTwin = request.mayHandOut && requests != nil
      try version.negotiate(body, service.limits, mayTwin: mayTwin, &reply) { () throws(Errno) in
        guard let way else { return }
        device = try way.open(service, messages)
        service.topology.entered(group: way.group, process: way.process, connection: number)
      }
    } catch {
      // Held by another client: it's told so and never waits.
      isBusy = error == .resourceBusy
      throw error
    }
    if version.hasTwin {
      let twin = TwinSession(
        messages, limit: version.peer.maxDataTransferSize,
        messageLimit: service.limits.messageSize, tracepoint)
      do throws(Errno) {
        reply.attach(try service.handOut(twin, number: service.nextNumber()))
      } catch {
        isBusy = true
        throw error
      }
      self.twin = twin
    } else if let requests {
      messages.connect(requests, limit: version.peer.maxDataTransferSize)
    }
    if way != nil { logDevice("device opened") }
  }

  func close() {
    if let requests { messages.disconnect(requests) }
    twin?.hangUp()
    guard let device else { return }
    doorbells.close()
    device.iommu.unmapAll(owner: owner)
    device.release()
    if let way {
      way.leave(service)
      service.topology.left(group: way.group, connection: number)
    }
    logDevice("device closed")
  }

  private func logDevice(_ event: Logger.Message) {
    service.logger.debug(
      event, metadata: ["device": "\(device?.name ?? "")", "connection": "\(number)"])
  }
}

// MARK: DMA

extension DeviceSession {
  /// `VFIO_USER_DMA_MAP`: `u32 argsz, u32 flags, u64 offset, u64 address, u64 size`.
  private func map(
    _ request: Request, _ body: Span<UInt8>, _ device: OpenDevice
  ) throws(Errno) {
    try body.require(32)
    let flags = body.uint32(at: 4)
    guard body.uint32(at: 0) >= 32, flags & ~3 == 0, request.descriptors.count <= 1
    else { throw .invalidArgument }
    // Without a descriptor the client's memory is reached by the device's addresses.
    let offset = request.descriptors.isEmpty ? body.uint64(at: 16) : body.uint64(at: 8)
    let mapping = DMAMapping(
      iova: body.uint64(at: 16), size: body.uint64(at: 24), offset: offset,
      access: DMAAccess(rawValue: flags), owner: owner)
    try device.iommu.map(
      mapping, from: RequestMemory(request, service, recentFile, messages: messages))
  }

  /// `VFIO_USER_DMA_UNMAP`: `u32 argsz, u32 flags, u64 address, u64 size`, which is also the reply, with
  /// the pages that the device has written behind it if the flags ask for them.
  private func unmap(
    _ body: Span<UInt8>, _ device: OpenDevice, _ reply: inout Output
  ) throws(Errno) {
    try body.require(24)
    let flags = body.uint32(at: 4)
    let (iova, size) = (body.uint64(at: 8), body.uint64(at: 16))
    guard body.uint32(at: 0) >= 24 else { throw .invalidArgument }
    // struct vfio_user_bitmap: u64 pgsize, u64 size, and in the reply the bitmap.
    var bitmap: [UInt8] = []
    switch flags {
    case 0:
      try device.iommu.unmap(iova: iova, size: size, owner: owner)
    case 2:  // all that was mapped on this socket
      guard iova == 0, size == 0 else { throw .invalidArgument }
      device.iommu.unmapAll(owner: owner)
    case 1:  // with the dirty bitmap, once nothing of it can be written any more
      try body.require(40)
      let pageSize = body.uint64(at: 24)
      let needed = try DirtyLog.bitmapSize(length: size, pageSize: pageSize)
      guard device.log.isOn, body.uint64(at: 32) == needed,
        needed <= UInt64(service.limits.maxDataTransferSize),
        UInt64(body.uint32(at: 0)) >= 40 + needed
      else { throw .invalidArgument }
      try device.iommu.unmap(iova: iova, size: size, owner: owner)
      bitmap = try device.log.report(iova: iova, length: size, pageSize: pageSize)
    default:
      throw .invalidArgument
    }
    reply.append(UInt32(bitmap.isEmpty ? 24 : 40 + bitmap.count))
    reply.append(flags)
    reply.append(iova)
    reply.append(size)
    if !bitmap.isEmpty {
      reply.append(body.extracting(24..<40))
      reply.append(bitmap)
    }
  }
}
