import LinuxIO
import SystemPackage
import VFIOCore
import VFIOStream
import VFIOWire

/// The root socket: what `/dev/vfio` is to the kernel's clients.
final class RootSession: Session {
  private let service: Service
  private let administration: Administration
  private let peer: Credentials
  private var version = Version()
  private var later: Later?

  init(_ service: Service, _ administration: Administration, peer: Credentials) {
    self.service = service
    self.administration = administration
    self.peer = peer
  }

  func takeLater() -> Later? {
    defer { later = nil }
    return later
  }

  var isFinished: Bool { version.isRefused }
  var messageLimit: Int { version.isDone ? service.limits.messageSize : Version.messageLimit }

  func handle(
    _ request: Request, _ body: Span<UInt8>, _ reply: inout Output
  ) throws(Errno) {
    if request.header.command == .version {
      return try version.negotiate(body, service.limits, &reply)
    }
    guard version.isDone else { throw .invalidArgument }
    switch request.header.command {
    case .openContainer: try openContainer(request, &reply)
    case .openGroup: try openGroup(request, body, &reply)
    case .getTopology: try getTopology(body, &reply)
    case .getExternalUser: try getExternalUser(request, &reply)
    case .addDevice, .removeDevice, .bindDriver, .unbindDriver:
      guard isAdministrator else { throw .notPermitted }
      later = administration.request(
        try AdministratorRequest(request.header.command, body, service.logger))
    case .trace:
      guard isAdministrator else { throw .notPermitted }
      guard request.mayHandOut else { throw .tooManyReferences }
      reply.attach(try service.trace(try body.string()))
    case .getDevice:
      guard isAdministrator else { throw .notPermitted }
      let device = try service.describe(try body.string())
      reply.append(Array(device.text.utf8) + [0])
    default: throw .inappropriateIOCTLForDevice
    }
  }

  private var isAdministrator: Bool { peer.user == 0 || peer.user == effectiveUser() }

  private func openContainer(_ request: Request, _ reply: inout Output) throws(Errno) {
    guard request.mayHandOut else { throw .tooManyReferences }
    let container = Container(registry: service.registry, limits: service.limits.iommu)
    let number = service.nextNumber()
    let session = ContainerSession(service, container, number: number)
    reply.attach(
      try service.handOut(session, as: .container(container), number: number, withCredentials: true)
    )
    service.logger.debug("container opened", metadata: ["container": "\(number)"])
  }

  private func openGroup(
    _ request: Request, _ body: Span<UInt8>, _ reply: inout Output
  ) throws(Errno) {
    try body.require(4)
    guard request.mayHandOut else { throw .tooManyReferences }
    let id = body.uint32(at: 0)
    if let access = service.topology.access(ofGroup: id), !access.allows(peer) {
      throw .permissionDenied
    }
    let group = try service.registry.openGroup(id, asAdministrator: isAdministrator)
    let number = service.nextNumber()
    service.topology.entered(group: id, process: peer.process, connection: number)
    let session = GroupSession(service, group, number: number)
    reply.attach(try service.handOut(session, as: .group(group), number: number))
    service.logger.debug("group opened", metadata: ["group": "\(id)", "connection": "\(number)"])
  }

  private func getTopology(
    _ body: Span<UInt8>, _ reply: inout Output
  ) throws(Errno) {
    try body.require(8)
    let argsz = body.uint32(at: 0)
    guard argsz >= 8, body.uint32(at: 4) == 0 else { throw .invalidArgument }
    let text = Array(service.topology.json(service.registry).text.utf8) + [0]
    let needed = UInt32(8 + text.count)
    reply.append(needed)
    reply.append(UInt32(0))
    if argsz >= needed { reply.append(text) }
  }

  private func getExternalUser(
    _ request: Request, _ reply: inout Output
  ) throws(Errno) {
    guard let descriptor = request.descriptors.first else { throw .badFileDescriptor }
    guard request.mayHandOut else { throw .tooManyReferences }
    guard request.descriptors.count == 1, case .group(let group)? = service.object(of: descriptor)
    else { throw .invalidArgument }
    let user = try group.externalUser()
    let number = service.nextNumber()
    let token = try service.handOut(TokenSession(service, user, number: number), number: number)
    reply.append(user.groupID)
    reply.attach(token)
    service.logger.debug(
      "external user", metadata: ["group": "\(user.groupID)", "connection": "\(number)"])
  }

  func close() {}
}

/// A token: an external user's hold on a group.
final class TokenSession: Session {
  private let service: Service
  private let user: ExternalUser
  private let number: UInt64

  init(_ service: Service, _ user: ExternalUser, number: UInt64) {
    self.service = service
    self.user = user
    self.number = number
  }

  var messageLimit: Int { service.limits.messageSize }

  func handle(
    _ request: Request, _ body: Span<UInt8>, _ reply: inout Output
  ) throws(Errno) {
    guard request.header.command == .tokenCheckExtension else {
      throw .inappropriateIOCTLForDevice
    }
    try body.require(8)
    reply.append(user.checkExtension(body.uint64(at: 0)))
  }

  func close() {
    user.release()
    service.logger.debug("external user gone", metadata: ["connection": "\(number)"])
  }
}
