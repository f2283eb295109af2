import LinuxIO
import Locks
import SystemPackage
import VFIOCore
import VFIOStream
import VFIOWire

// What a device tells of itself, as the structures of <linux/vfio.h>.
extension DeviceSession {
  /// `VFIO_USER_DEVICE_GET_INFO`: `u32 argsz, u32 flags, u32 num_regions, u32 num_irqs`.
  func getInfo(
    _ body: Span<UInt8>, _ operations: any DeviceOperations, _ reply: inout Output
  ) throws(Errno) {
    try body.require(16)
    guard body.uint32(at: 0) >= 16 else { throw .invalidArgument }
    let information = operations.information
    reply.append(UInt32(16))
    reply.append(information.flags)
    reply.append(information.regions)
    reply.append(information.interrupts)
  }

  /// `VFIO_USER_DEVICE_GET_REGION_INFO`:
  /// `u32 argsz, u32 flags, u32 index, u32 cap_offset, u64 size, u64 offset`.
  ///
  /// A region of which parts may be mapped has a capability that says which; a request without room
  /// for it learns the room needed, and gets the descriptor with the next one.
  func getRegionInfo(
    _ request: Request, _ body: Span<UInt8>, _ operations: any DeviceOperations,
    _ reply: inout Output
  ) throws(Errno) {
    try body.require(32)
    let argsz = body.uint32(at: 0)
    guard argsz >= 32 else { throw .invalidArgument }
    let index = body.uint32(at: 8)
    let region = try operations.region(index)
    // A client that takes no descriptor can map nothing.
    let memory = version.peer.messageDescriptors > 0 ? region.memory : nil
    let areas = memory == nil || region.mappable == [0..<region.size] ? [] : region.mappable
    let areasSize = UInt32(areas.isEmpty ? 0 : 16 + 16 * areas.count)
    let typeSize = UInt32(region.type == nil ? 0 : 16)
    let needed = 32 + areasSize + typeSize
    let fits = argsz >= needed
    let hasCapabilities = fits && needed > 32

    var flags: UInt32 = 0
    if region.readable { flags |= 1 }
    if region.writable { flags |= 2 }
    if memory != nil { flags |= 4 }
    if hasCapabilities { flags |= 8 }
    reply.append(needed)
    reply.append(flags)
    reply.append(index)
    reply.append(UInt32(hasCapabilities ? 32 : 0))
    reply.append(region.size)
    reply.append(UInt64(0))  // where the region starts in its descriptor
    guard fits else { return }
    if !areas.isEmpty {
      reply.append(UInt16(1))  // VFIO_REGION_INFO_CAP_SPARSE_MMAP
      reply.append(UInt16(1))  // version
      reply.append(UInt32(typeSize == 0 ? 0 : 32 + areasSize))  // the next capability
      reply.append(UInt32(areas.count))
      reply.append(UInt32(0))
      for area in areas {
        reply.append(area.lowerBound)
        reply.append(area.upperBound - area.lowerBound)
      }
    }
    if let type = region.type {
      reply.append(UInt16(2))  // VFIO_REGION_INFO_CAP_TYPE
      reply.append(UInt16(1))
      reply.append(UInt32(0))
      reply.append(type.type)
      reply.append(type.subtype)
    }
    if let memory {
      guard request.mayHandOut else { throw .tooManyReferences }
      reply.attach(try Descriptor(duplicating: memory.descriptor))
    }
  }

  /// `VFIO_USER_DEVICE_GET_IRQ_INFO`: `u32 argsz, u32 flags, u32 index, u32 count`.
  func getInterruptInfo(
    _ body: Span<UInt8>, _ operations: any DeviceOperations, _ reply: inout Output
  ) throws(Errno) {
    try body.require(16)
    guard body.uint32(at: 0) >= 16 else { throw .invalidArgument }
    let index = body.uint32(at: 8)
    let interrupt = try operations.interrupt(index)
    reply.append(UInt32(16))
    reply.append(interrupt.flags)
    reply.append(index)
    reply.append(interrupt.count)
  }
}

extension InterruptRequest {
  /// `VFIO_USER_DEVICE_SET_IRQS`: `u32 argsz, u32 flags, u32 index, u32 start, u32 count`, then a byte
  /// per interrupt for bools; eventfds come as descriptors, none of them taking the triggers away.
  ///
  /// `EINVAL` unless there is one kind of data and one action, the range is the device's, and the data
  /// are as many as the range; also for a descriptor that isn't an eventfd, or that nothing asks for.
  init(
    _ request: Request, _ body: Span<UInt8>, _ operations: any DeviceOperations, _ loop: EventLoop
  ) throws(Errno) {
    try body.require(20)
    let flags = body.uint32(at: 4)
    let index = body.uint32(at: 8)
    let start = body.uint32(at: 12)
    let count = body.uint32(at: 16)
    guard body.uint32(at: 0) >= 20, flags & ~0x3F == 0,
      flags & 4 != 0 || request.descriptors.isEmpty
    else { throw .invalidArgument }
    // Before anything is made as large as the count says.
    guard UInt64(start) + UInt64(count) <= UInt64(try operations.interrupt(index).count) else {
      throw .invalidArgument
    }

    let action: Action
    switch flags >> 3 {
    case 1: action = .mask
    case 2: action = .unmask
    case 4: action = .trigger
    default: throw .invalidArgument
    }

    let data: Data
    switch flags & 7 {
    case 1:
      data = .none
    case 2:
      try body.require(20 + Int(count))
      data = .bools((0..<Int(count)).map { body[20 + $0] != 0 })
    case 4 where request.descriptors.isEmpty:
      data = .triggers(Array(repeating: nil, count: Int(count)))
    case 4:
      guard request.descriptors.count == Int(count) else { throw .invalidArgument }
      var triggers: [(any InterruptTrigger)?] = []
      for descriptor in request.descriptors {
        triggers.append(EventTrigger(try EventFD(checking: descriptor), loop))
      }
      data = .triggers(triggers)
    default:
      throw .invalidArgument
    }
    self.init(index: index, start: start, count: count, action: action, data: data)
  }
}

/// A client's eventfd as the core sees it.
private final class EventTrigger: InterruptTrigger {
  private let event: EventFD
  private let loop: EventLoop
  private let listening = Mutex<Listening?>(nil)

  init(_ event: EventFD, _ loop: EventLoop) {
    self.event = event
    self.loop = loop
  }

  func signal() { event.signal() }

  func listen(_ action: @escaping @Sendable () -> Void) throws(Errno) {
    let started = try loop.listen(to: event) { [event] in
      if event.drain() > 0 { action() }
    }
    listening.withLock { $0 = started }
  }
}
