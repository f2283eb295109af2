import LinuxIO
import SystemPackage
import VFIOWire

/// A device: its registers, its interrupts, its DMA. Its socket speaks vfio-user.
public final class Device: Handle {
  public let connection: Connection
  /// Its PCI address, or the path of the socket that it was reached by.
  public let name: String
  let version: Version
  let interrupts: InterruptOwners

  /// Negotiates the version.
  init(_ connection: Connection, name: String) throws(VFIOError) {
    self.connection = connection
    self.name = name
    version = try Version.negotiate(connection, name)
    interrupts = InterruptOwners(connection)
  }

  /// Connects to a device's own vfio-user socket, `devices/NAME.sock`: the server goes the way through
  /// container and group by itself. `EBUSY` while the device or its group is in use elsewhere.
  public static func connect(to path: String) throws(VFIOError) -> Device {
    try Device(try Connection.open(path), name: path)
  }

  /// The device behind a descriptor that another process passed on before it was used. Takes the
  /// descriptor over.
  public convenience init(
    adopting descriptor: FileDescriptor, name: String
  ) throws(VFIOError) {
    try self.init(Connection(Socket(Descriptor(owning: descriptor.rawValue))), name: name)
  }

  // MARK: information

  /// `VFIO_DEVICE_GET_INFO`.
  public func info() throws(VFIOError) -> DeviceInfo {
    try connection.call(.deviceGetInfo, "get information of \(name)") { output in
      for field: UInt32 in [16, 0, 0, 0] { output.append(field) }  // argsz
    } decode: { reply throws(Errno) in
      DeviceInfo(
        flags: DeviceInfo.Flags(rawValue: try reply.uint32(at: 4)),
        regions: try reply.uint32(at: 8), interrupts: try reply.uint32(at: 12))
    }
  }

  /// `VFIO_DEVICE_GET_REGION_INFO`. `EINVAL` beyond the last region.
  public func regionInfo(_ index: RegionIndex) throws(VFIOError) -> RegionInfo {
    try regionInfoAndFile(index).info
  }

  /// Also the descriptor to map, where something may be mapped.
  func regionInfoAndFile(
    _ index: RegionIndex
  ) throws(VFIOError) -> (info: RegionInfo, file: Descriptor?) {
    let sentence = "get information of \(name) \(index)"
    var size: UInt32 = 32
    while true {
      let reply = try connection.call(.deviceGetRegionInfo, sentence) { output in
        for field: UInt32 in [size, 0, index.rawValue, 0] { output.append(field) }
        output.append(UInt64(0))
        output.append(UInt64(0))
      } decode: {
        $0
      }
      let needed = try naming(sentence) { () throws(Errno) in try reply.uint32(at: 0) }
      if needed <= size {
        return try naming(sentence) { () throws(Errno) in
          (try RegionInfo(reply), reply.descriptors.first)
        }
      }
      size = needed
    }
  }

  /// `VFIO_DEVICE_GET_IRQ_INFO`. `EINVAL` beyond the last kind.
  public func interruptInfo(_ kind: InterruptKind) throws(VFIOError) -> InterruptInfo {
    try connection.call(.deviceGetIRQInfo, "get information of \(name) \(kind)") { output in
      for field: UInt32 in [16, 0, kind.rawValue, 0] { output.append(field) }
    } decode: { reply throws(Errno) in
      InterruptInfo(
        flags: InterruptInfo.Flags(rawValue: try reply.uint32(at: 4)),
        count: try reply.uint32(at: 12))
    }
  }

  // MARK: registers

  /// One of its regions. Whether the device has it, the first access tells.
  public func region(_ index: RegionIndex) -> Region { Region(device: self, index: index) }

  /// PCI configuration space.
  public var config: Region { region(.config) }

  /// Sets the bus master bit of COMMAND: the device may do DMA, which it may not at first.
  public func enableBusMaster() throws(VFIOError) {
    let command = 0x04 as UInt64
    try config.store(try config.load(UInt16.self, at: command) | 0x4, at: command)
  }

  /// `VFIO_DEVICE_RESET`. COMMAND stays as it is, as with the kernel.
  public func reset() throws(VFIOError) {
    try connection.call(.deviceReset, "reset \(name)")
  }

  // MARK: DMA

  /// `VFIO_USER_DMA_MAP`: the device reaches `memory`, from `offset` on, at the address `iova`. All the
  /// rest of it when no `size` is given. For a device that has its own socket; with a container, map there.
  ///
  /// The mapping goes with what this returns, or with the connection. `EEXIST` over another mapping.
  public func map(
    _ memory: Memory, at iova: UInt64, access: DMAAccess = [.read, .write], offset: UInt64 = 0,
    size: UInt64? = nil
  ) throws(VFIOError) -> DMAMemory {
    try DMAMemory(
      memory, offset, size, at: iova, access, connection, map: .dmaMap, unmap: .dmaUnmap)
  }

  /// `VFIO_USER_DMA_MAP` without a descriptor: the server doesn't map the memory but asks for its bytes,
  /// with `VFIO_USER_DMA_READ` and `VFIO_USER_DMA_WRITE`. They are answered whenever a thread waits
  /// for a reply from this device.
  public func mapByMessage(
    _ memory: Memory, at iova: UInt64, access: DMAAccess = [.read, .write]
  ) throws(VFIOError) -> DMAMemory {
    let mapping = try DMAMemory(
      memory, 0, nil, at: iova, access, connection, map: .dmaMap, unmap: .dmaUnmap, byMessage: true)
    connection.messageMemory.withLock {
      $0.append(MessageMemory(iova: iova, memory: memory, access: access))
    }
    return mapping
  }
}
