import Dispatch
import LinuxIO
import Locks
import Logging
import SystemPackage
import VFIOCore

import struct Synchronization.Atomic

/// What sessions share: the core, the devices, the limits, and the objects whose descriptors are out.
final class Service: Sendable {
  let registry: Registry
  let topology = Topology()
  let limits: Configuration.Limits
  let logger: Logger
  let loop: ControlLoop
  let events = EventLoop()
  let files = MappedFiles()
  let processes = Processes()
  /// Devices that may wait for their clients' answers at a time.
  let clientWaits = DispatchSemaphore(value: 128)
  let socketGroups = SocketGroups()

  /// By the cookie of the client's end: "is this really our descriptor?". Guards itself; a leaf.
  private let handedOut = Mutex<[UInt64: HandedOut]>([:])
  private let lastNumber = Atomic<UInt64>(0)
  /// How many traces there are.
  let traces = Atomic(0)

  /// An object that clients may name by its descriptor.
  enum HandedOut: Sendable {
    case container(Container)
    case group(OpenGroup)
  }

  init(
    registry: Registry, limits: Configuration.Limits, loop: ControlLoop, logger: Logger
  ) {
    self.registry = registry
    self.limits = limits
    self.loop = loop
    self.logger = logger
  }

  /// The next connection's number, never used again.
  func nextNumber() -> UInt64 { lastNumber.wrappingAdd(1, ordering: .relaxed).newValue }

  /// Makes the socket pair of an object, serves the server's end, and returns the client's, whose last
  /// copy is the object's reference. `object` is what other requests may find by that descriptor.
  ///
  /// Throws `EMFILE` when there are as many connections, or descriptors, as there may be. The session is
  /// closed then, so that what it holds is released.
  func handOut(
    _ session: any Session, as object: HandedOut? = nil, number: UInt64,
    withCredentials: Bool = false
  ) throws(Errno) -> Descriptor {
    do throws(Errno) {
      guard loop.count < limits.connections else { throw .tooManyOpenFiles }
      let (ours, theirs) = try Socket.pair()
      if withCredentials { try ours.receiveCredentials() }
      let cookie = theirs.descriptor.socketCookie ?? 0
      if let object { handedOut.withLock { $0[cookie] = object } }
      let connection = connection(ours, session, number: number) { [self] in
        handedOut.withLock { _ = $0.removeValue(forKey: cookie) }
      }
      do throws(Errno) {
        try loop.add(connection)
      } catch {
        handedOut.withLock { _ = $0.removeValue(forKey: cookie) }
        throw error
      }
      return theirs.descriptor
    } catch {
      session.close()
      throw error
    }
  }

  /// What a client's descriptor is an end of.
  func object(of descriptor: Descriptor) -> HandedOut? {
    guard let cookie = descriptor.socketCookie else { return nil }
    return handedOut.withLock { $0[cookie] }
  }

  func connection(
    _ socket: Socket, _ session: any Session, number: UInt64,
    whenClosed: @escaping @Sendable () -> Void = {}
  ) -> Connection {
    Connection(
      number: number, socket: socket, session: session, whenClosed: whenClosed,
      limits: ConnectionLimits(
        messageDescriptors: limits.messageDescriptors, queuedReplies: limits.queuedReplies,
        undeliveredDescriptors: limits.undeliveredDescriptors))
  }
}
