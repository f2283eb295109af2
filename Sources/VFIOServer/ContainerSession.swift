import LinuxIO
import SystemPackage
import VFIOCore
import VFIOStream
import VFIOWire

/// A container's descriptor: the operations of `/dev/vfio/vfio`.
final class ContainerSession: Session {
  private let service: Service
  private let container: Container
  private let number: UInt64
  private let recentFile = RecentFile()

  init(_ service: Service, _ container: Container, number: UInt64) {
    self.service = service
    self.container = container
    self.number = number
  }

  var messageLimit: Int { service.limits.messageSize }

  func handle(
    _ request: Request, _ body: Span<UInt8>, _ reply: inout Output
  ) throws(Errno) {
    switch request.header.command {
    case .getAPIVersion:
      reply.append(Int64(0))  // VFIO_API_VERSION
    case .checkExtension:
      try body.require(8)
      reply.append(container.checkExtension(body.uint64(at: 0)))
    case .setIOMMU:
      try body.require(8)
      try container.setIOMMU(body.uint64(at: 0))
      reply.append(Int64(0))
    case .containerRead:
      let access = try RegionAccess(body, limit: service.limits.maxDataTransferSize)
      reply.append(access)
      try reply.append(count: access.count) { bytes throws(Errno) in
        try container.read(at: access.offset, into: &bytes)
      }
    case .containerWrite:
      let access = try RegionAccess(body, limit: service.limits.maxDataTransferSize)
      try container.write(body.extracting(try access.data(in: body)), at: access.offset)
      reply.append(access)
    case .containerMmap:
      try body.require(16)
      guard request.mayHandOut else { throw .tooManyReferences }
      let memory = try container.mmap(at: body.uint64(at: 0), size: body.uint64(at: 8))
      reply.attach(try Descriptor(duplicating: memory.descriptor))
    case let other:
      let source = RequestMemory(request, service, recentFile)
      let result = try container.operation(UInt32(other.rawValue), body, source)
      reply.append(result.value)
      reply.append(result.structure)
    }
  }

  func close() {
    service.logger.debug("container closed", metadata: ["container": "\(number)"])
  }
}

/// The fixed part of vfio-user's region access: `u64 offset, u32 region, u32 count`.
struct RegionAccess {
  static let size = 16

  var offset: UInt64
  var region: UInt32
  /// Bytes to transfer, `limit` at most.
  var count: Int

  init(_ body: Span<UInt8>, limit: Int) throws(Errno) {
    try body.require(Self.size)
    offset = body.uint64(at: 0)
    region = body.uint32(at: 8)
    count = Int(body.uint32(at: 12))
    guard count <= limit else { throw .invalidArgument }
  }

  /// Where in `body` the bytes of a write are.
  func data(in body: Span<UInt8>) throws(Errno) -> Range<Int> {
    try body.require(Self.size + count)
    return Self.size..<Self.size + count
  }
}

extension Output {
  mutating func append(_ access: RegionAccess) {
    append(access.offset)
    append(access.region)
    append(UInt32(access.count))
  }
}
