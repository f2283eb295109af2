import LinuxIO
import SystemPackage
import VFIOCore
import VFIOStream
import VFIOWire

/// A group's descriptor: the operations of `/dev/vfio/26`.
final class GroupSession: Session {
  private let service: Service
  private let group: OpenGroup
  private let number: UInt64

  init(_ service: Service, _ group: OpenGroup, number: UInt64) {
    self.service = service
    self.group = group
    self.number = number
  }

  var messageLimit: Int { service.limits.messageSize }

  func handle(
    _ request: Request, _ body: Span<UInt8>, _ reply: inout Output
  ) throws(Errno) {
    switch request.header.command {
    case .groupGetStatus:
      try body.require(8)
      let argsz = body.uint32(at: 0)
      guard argsz >= 8 else { throw .invalidArgument }
      reply.append(Int64(0))
      reply.append(argsz)
      reply.append(group.status.rawValue)
    case .groupSetContainer:
      try setContainer(request)
      reply.append(Int64(0))
    case .groupUnsetContainer:
      try group.unsetContainer()
      reply.append(Int64(0))
    case .groupGetDeviceFD:
      try getDevice(request, try body.string(), &reply)
    default:
      throw .inappropriateIOCTLForDevice
    }
  }

  /// The descriptor argument is the container's, as an integer is in the kernel's.
  private func setContainer(_ request: Request) throws(Errno) {
    guard !group.status.contains(.containerSet) else { throw .invalidArgument }
    guard let descriptor = request.descriptors.first else { throw .badFileDescriptor }
    guard request.descriptors.count == 1,
      case .container(let container)? = service.object(of: descriptor)
    else { throw .invalidArgument }
    try group.setContainer(container)
  }

  private func getDevice(
    _ request: Request, _ name: String, _ reply: inout Output
  ) throws(Errno) {
    guard request.mayHandOut else { throw .tooManyReferences }
    let number = service.nextNumber()
    let device = try group.openDevice(name)
    let session = DeviceSession(service, device, number: number)
    reply.append(Int64(0))
    reply.attach(try service.handOut(session, number: number))
    if !group.iommuGroup.hasIOMMU {
      service.logger.warning("device \(name) opened without an IOMMU")
    }
    service.logger.debug(
      "device opened", metadata: ["device": "\(name)", "connection": "\(number)"])
  }

  func close() {
    group.release()
    service.topology.left(group: group.iommuGroup.id, connection: number)
    service.logger.debug(
      "group closed", metadata: ["group": "\(group.iommuGroup.id)", "connection": "\(number)"])
  }
}
