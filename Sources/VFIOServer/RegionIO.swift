import LinuxIO
import Locks
import SystemPackage
import VFIOCore
import VFIOStream
import VFIOWire

extension DeviceSession {
  /// `VFIO_USER_DEVICE_GET_REGION_IO_FDS`: `u32 argsz, u32 flags, u32 index, u32 count`; in the reply,
  /// where there is room for all of them, sub-regions follow, an eventfd each:
  /// `u64 offset, u64 size, u32 fd_index, u32 type, u32 flags, u32 padding, u64 datamatch`.
  ///
  /// A client that takes fewer descriptors in a message gets so many of the sub-regions, and sends
  /// messages for the others.
  func getRegionIOFDs(
    _ request: Request, _ body: Span<UInt8>, _ operations: any DeviceOperations,
    _ reply: inout Output
  ) throws(Errno) {
    try body.require(16)
    let argsz = body.uint32(at: 0)
    let index = body.uint32(at: 8)
    guard argsz >= 16, body.uint32(at: 4) == 0, body.uint32(at: 12) == 0 else {
      throw .invalidArgument
    }
    let most = min(version.peer.messageDescriptors, maxEventsHandedOut)
    let events = Array(try operations.ioEvents(index).prefix(most))
    let needed = UInt32(16 + 40 * events.count)
    reply.append(needed)
    reply.append(UInt32(0))
    reply.append(index)
    reply.append(UInt32(events.count))
    guard argsz >= needed, !events.isEmpty else { return }
    guard request.mayHandOut else { throw .tooManyReferences }
    let eventFDs = try doorbells.eventFDs(of: index, events, operations)
    for (number, (event, eventFD)) in zip(events, eventFDs).enumerated() {
      reply.append(event.offset)
      reply.append(event.size)
      reply.append(UInt32(number))
      reply.append(UInt32(0))  // VFIO_USER_IO_FD_TYPE_IOEVENTFD
      reply.append(UInt32(event.value == nil ? 0 : 1))  // KVM_IOEVENTFD_FLAG_DATAMATCH
      reply.append(UInt32(0))
      reply.append(event.value ?? 0)
      reply.attach(eventFD.descriptor)
    }
  }
}

/// The eventfds with which a client rings its device's doorbells. They end with the client.
final class Doorbells: Sendable {
  private let loop: EventLoop
  private let bells = Mutex<[UInt32: [Bell]]>([:])
  /// Whether the client is there. Held while the device is written, so that no bell rings later. The
  /// device's locks come after it.
  private let isOpen = Mutex(true)

  private struct Bell: Sendable {
    let eventFD: EventFD
    let ring: @Sendable () -> Void
    let listening: Listening
  }

  init(_ loop: EventLoop) { self.loop = loop }

  /// One eventfd for each of a region's `events`, the same ones when they are asked for again.
  func eventFDs(
    of region: UInt32, _ events: [IOEvent], _ operations: any DeviceOperations
  ) throws(Errno) -> [EventFD] {
    try bells.withLock { bells throws(Errno) in
      if let made = bells[region] { return made.map(\.eventFD) }
      var made: [Bell] = []
      for event in events {
        let eventFD = try EventFD()
        let bytes = (0..<event.size).map {
          UInt8(truncatingIfNeeded: (event.value ?? 0) >> (8 * $0))
        }
        let ring = { @Sendable in
          guard eventFD.drain() > 0 else { return }
          // As a message that wants no reply: its errors are nobody's.
          try? operations.write(bytes.span, to: region, at: event.offset)
        }
        let listening = try loop.listen(to: eventFD) { [weak self] in
          self?.isOpen.withLock { isOpen in if isOpen { ring() } }
        }
        made.append(Bell(eventFD: eventFD, ring: ring, listening: listening))
      }
      bells[region] = made
      return made.map(\.eventFD)
    }
  }

  /// What the client has rung so far rings before this returns.
  func settle() {
    let made = bells.withLock { $0.values.flatMap { $0 } }
    isOpen.withLock { _ in
      for bell in made { bell.ring() }
    }
  }

  /// The client has gone: what it rang still rings, and nothing afterwards.
  func close() {
    let made = bells.withLock { bells in
      defer { bells = [:] }
      return bells.values.flatMap { $0 }
    }
    isOpen.withLock { isOpen in
      for bell in made { bell.ring() }
      isOpen = false
    }
  }
}
