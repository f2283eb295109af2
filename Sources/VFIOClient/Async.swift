import Dispatch
public import JSON
import LinuxIO
import SystemPackage

// The calls that wait for the server, for tasks: each waits on the connection's own queue, so that no
// thread of Swift's pool is held. A task that is cancelled meanwhile still gets the answer.

extension Connection {
  func offload<Value: Sendable>(
    _ body: @escaping @Sendable () throws(VFIOError) -> Value
  ) async throws(VFIOError) -> Value {
    try await VFIOClient.offload(to: queue, body)
  }
}

private func offload<Value: Sendable>(
  to queue: DispatchQueue, _ body: @escaping @Sendable () throws(VFIOError) -> Value
) async throws(VFIOError) -> Value {
  let result = await withCheckedContinuation { continuation in
    queue.async { continuation.resume(returning: Result(catching: body)) }
  }
  return try result.get()
}

extension Handle {
  /// As the blocking `operation`.
  public func operation(
    _ number: UInt16, _ payload: [UInt8] = [], descriptors: [FileDescriptor] = []
  ) async throws(VFIOError) -> OperationReply {
    try await connection.offload { () throws(VFIOError) in
      try self.operation(number, payload, descriptors: descriptors)
    }
  }
}

extension VFIO {
  /// As the blocking `connect`.
  public static func connect(directory: String) async throws(VFIOError) -> VFIO {
    try await offload(to: .global()) { () throws(VFIOError) in try connect(directory: directory) }
  }

  /// As the blocking `openContainer`.
  public func openContainer() async throws(VFIOError) -> Container {
    try await connection.offload { () throws(VFIOError) in try self.openContainer() }
  }

  /// As the blocking `openGroup`.
  public func openGroup(_ id: UInt32) async throws(VFIOError) -> Group {
    try await connection.offload { () throws(VFIOError) in try self.openGroup(id) }
  }

  /// As the blocking `externalUser`.
  public func externalUser(of group: Group) async throws(VFIOError) -> ExternalUser {
    try await connection.offload { () throws(VFIOError) in try self.externalUser(of: group) }
  }

  /// As the blocking `topology`.
  public func topology() async throws(VFIOError) -> Topology {
    try await connection.offload { () throws(VFIOError) in try self.topology() }
  }

  /// As the blocking `addDevice`.
  public func addDevice(_ device: JSONValue, toGroup id: UInt32) async throws(VFIOError) {
    try await connection.offload { () throws(VFIOError) in
      try self.addDevice(device, toGroup: id)
    }
  }

  /// As the blocking `removeDevice`.
  public func removeDevice(_ name: String, timeout: Duration? = nil) async throws(VFIOError) {
    try await connection.offload { () throws(VFIOError) in
      try self.removeDevice(name, timeout: timeout)
    }
  }

  /// As the blocking `bindDriver`.
  public func bindDriver(
    _ driver: String, to name: String, force: Bool = false
  ) async throws(VFIOError) {
    try await connection.offload { () throws(VFIOError) in
      try self.bindDriver(driver, to: name, force: force)
    }
  }

  /// As the blocking `unbindDriver`.
  public func unbindDriver(
    _ driver: String? = nil, from name: String, timeout: Duration? = nil
  ) async throws(VFIOError) {
    try await connection.offload { () throws(VFIOError) in
      try self.unbindDriver(driver, from: name, timeout: timeout)
    }
  }
}

extension ExternalUser {
  /// As the blocking `checkExtension`.
  public func checkExtension(_ type: IOMMUType) async throws(VFIOError) -> Int64 {
    try await connection.offload { () throws(VFIOError) in try self.checkExtension(type) }
  }
}

extension Container {
  /// As the blocking `apiVersion`.
  public func apiVersion() async throws(VFIOError) -> Int64 {
    try await connection.offload { () throws(VFIOError) in try self.apiVersion() }
  }

  /// As the blocking `checkExtension`.
  public func checkExtension(_ type: IOMMUType) async throws(VFIOError) -> Int64 {
    try await connection.offload { () throws(VFIOError) in try self.checkExtension(type) }
  }

  /// As the blocking `setIOMMU`.
  public func setIOMMU(_ type: IOMMUType) async throws(VFIOError) {
    try await connection.offload { () throws(VFIOError) in try self.setIOMMU(type) }
  }

  /// As the blocking `iommuInfo`.
  public func iommuInfo() async throws(VFIOError) -> IOMMUInfo {
    try await connection.offload { () throws(VFIOError) in try self.iommuInfo() }
  }

  /// As the blocking `map`.
  public func map(
    _ memory: Memory, at iova: UInt64, access: DMAAccess = [.read, .write], offset: UInt64 = 0,
    size: UInt64? = nil
  ) async throws(VFIOError) -> DMAMemory {
    try await connection.offload { () throws(VFIOError) in
      try self.map(memory, at: iova, access: access, offset: offset, size: size)
    }
  }

  /// As the blocking `map`.
  public func map(
    address: UInt64, size: UInt64, at iova: UInt64, access: DMAAccess = [.read, .write]
  ) async throws(VFIOError) {
    try await connection.offload { () throws(VFIOError) in
      try self.map(address: address, size: size, at: iova, access: access)
    }
  }

  /// As the blocking `unmap`.
  @discardableResult
  public func unmap(at iova: UInt64, size: UInt64) async throws(VFIOError) -> UInt64 {
    try await connection.offload { () throws(VFIOError) in try self.unmap(at: iova, size: size) }
  }

  /// As the blocking `unmapAll`.
  @discardableResult
  public func unmapAll() async throws(VFIOError) -> UInt64 {
    try await connection.offload { () throws(VFIOError) in try self.unmapAll() }
  }

  /// As the blocking `read`.
  public func read(at offset: UInt64, count: Int) async throws(VFIOError) -> [UInt8] {
    try await connection.offload { () throws(VFIOError) in try self.read(at: offset, count: count) }
  }

  /// As the blocking `write`.
  public func write(_ bytes: [UInt8], at offset: UInt64) async throws(VFIOError) {
    try await connection.offload { () throws(VFIOError) in try self.write(bytes, at: offset) }
  }

  /// As the blocking `mapped`.
  public func mapped(at offset: UInt64, size: UInt64) async throws(VFIOError) -> MappedArea {
    try await connection.offload { () throws(VFIOError) in try self.mapped(at: offset, size: size) }
  }
}

extension Group {
  /// As the blocking `status`.
  public func status() async throws(VFIOError) -> GroupStatus {
    try await connection.offload { () throws(VFIOError) in try self.status() }
  }

  /// As the blocking `setContainer`.
  public func setContainer(_ container: Container) async throws(VFIOError) {
    try await connection.offload { () throws(VFIOError) in try self.setContainer(container) }
  }

  /// As the blocking `unsetContainer`.
  public func unsetContainer() async throws(VFIOError) {
    try await connection.offload { () throws(VFIOError) in try self.unsetContainer() }
  }

  /// As the blocking `openDevice`.
  public func openDevice(_ name: String) async throws(VFIOError) -> Device {
    try await connection.offload { () throws(VFIOError) in try self.openDevice(name) }
  }
}

extension DMAMemory {
  /// As the blocking `unmap`.
  public func unmap() async throws(VFIOError) {
    try await connection.offload { () throws(VFIOError) in try self.unmap() }
  }
}

extension Device {
  /// As the blocking `connect`.
  public static func connect(to path: String) async throws(VFIOError) -> Device {
    try await offload(to: .global()) { () throws(VFIOError) in try connect(to: path) }
  }

  /// As the blocking `info`.
  public func info() async throws(VFIOError) -> DeviceInfo {
    try await connection.offload { () throws(VFIOError) in try self.info() }
  }

  /// As the blocking `regionInfo`.
  public func regionInfo(_ index: RegionIndex) async throws(VFIOError) -> RegionInfo {
    try await connection.offload { () throws(VFIOError) in try self.regionInfo(index) }
  }

  /// As the blocking `interruptInfo`.
  public func interruptInfo(_ kind: InterruptKind) async throws(VFIOError) -> InterruptInfo {
    try await connection.offload { () throws(VFIOError) in try self.interruptInfo(kind) }
  }

  /// As the blocking `enableBusMaster`.
  public func enableBusMaster() async throws(VFIOError) {
    try await connection.offload { () throws(VFIOError) in try self.enableBusMaster() }
  }

  /// As the blocking `reset`.
  public func reset() async throws(VFIOError) {
    try await connection.offload { () throws(VFIOError) in try self.reset() }
  }

  /// As the blocking `map`.
  public func map(
    _ memory: Memory, at iova: UInt64, access: DMAAccess = [.read, .write], offset: UInt64 = 0,
    size: UInt64? = nil
  ) async throws(VFIOError) -> DMAMemory {
    try await connection.offload { () throws(VFIOError) in
      try self.map(memory, at: iova, access: access, offset: offset, size: size)
    }
  }

  /// As the blocking `mapByMessage`.
  public func mapByMessage(
    _ memory: Memory, at iova: UInt64, access: DMAAccess = [.read, .write]
  ) async throws(VFIOError) -> DMAMemory {
    try await connection.offload { () throws(VFIOError) in
      try self.mapByMessage(memory, at: iova, access: access)
    }
  }

  /// As the blocking `enableInterrupt`.
  public func enableInterrupt(
    _ kind: InterruptKind, _ index: UInt32 = 0
  ) async throws(VFIOError) -> Interrupt {
    try await connection.offload { () throws(VFIOError) in try self.enableInterrupt(kind, index) }
  }

  /// As the blocking `enableInterrupts`.
  public func enableInterrupts(
    _ kind: InterruptKind, count: UInt32
  ) async throws(VFIOError) -> [Interrupt] {
    try await connection.offload { () throws(VFIOError) in
      try self.enableInterrupts(kind, count: count)
    }
  }

  /// As the blocking `pipeline`.
  public func pipeline<Value: Sendable>(
    _ body: @escaping @Sendable (inout Pipeline) -> Value
  ) async throws(VFIOError) -> Value {
    try await connection.offload { () throws(VFIOError) in try self.pipeline(body) }
  }
}

extension Region {
  /// As the blocking `load`.
  public func load<Value: FixedWidthInteger & Sendable>(
    _ type: Value.Type = Value.self, at offset: UInt64
  ) async throws(VFIOError) -> Value {
    try await device.connection.offload { () throws(VFIOError) in try self.load(at: offset) }
  }

  /// As the blocking `store`.
  public func store<Value: FixedWidthInteger & Sendable>(
    _ value: Value, at offset: UInt64
  ) async throws(VFIOError) {
    try await device.connection.offload { () throws(VFIOError) in try self.store(value, at: offset)
    }
  }

  /// As the blocking `post`: it waits for room in the socket alone.
  public func post<Value: FixedWidthInteger & Sendable>(
    _ value: Value, at offset: UInt64
  ) async throws(VFIOError) {
    try await device.connection.offload { () throws(VFIOError) in try self.post(value, at: offset) }
  }

  /// As the blocking `read`.
  public func read(at offset: UInt64, count: Int) async throws(VFIOError) -> [UInt8] {
    try await device.connection.offload { () throws(VFIOError) in
      try self.read(at: offset, count: count)
    }
  }

  /// As the blocking `write`.
  public func write(_ bytes: [UInt8], at offset: UInt64) async throws(VFIOError) {
    try await device.connection.offload { () throws(VFIOError) in try self.write(bytes, at: offset)
    }
  }

  /// As the blocking `info`.
  public func info() async throws(VFIOError) -> RegionInfo {
    try await device.connection.offload { () throws(VFIOError) in try self.info() }
  }

  /// As the blocking `mappedAreas`.
  public func mappedAreas() async throws(VFIOError) -> [MappedArea] {
    try await device.connection.offload { () throws(VFIOError) in try self.mappedAreas() }
  }
}
