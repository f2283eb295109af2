import LinuxIO
import SystemPackage
import VFIOWire

/// A write to a register that an eventfd stands for: ringing it takes no message. The descriptor may be
/// given to `KVM_IOEVENTFD`.
///
/// It rings until the device is closed. Rings that come faster than the device takes them may count as one.
public struct Doorbell: Sendable {
  /// In the region.
  public let offset: UInt64
  /// Bytes of the write for which it stands; 0 for any.
  public let size: UInt64
  /// What is written; nil for anything.
  public let value: UInt64?
  private let event: EventFD

  init(offset: UInt64, size: UInt64, value: UInt64?, event: EventFD) {
    self.offset = offset
    self.size = size
    self.value = value
    self.event = event
  }

  /// The eventfd. It belongs to this value and its copies.
  public var descriptor: FileDescriptor { event.descriptor.borrowed }

  public func ring() { event.signal() }
}

extension Region {
  /// `VFIO_USER_DEVICE_GET_REGION_IO_FDS`: the doorbells that may be rung by an eventfd; none where the
  /// region has none. `EINVAL` for a region that the device hasn't got.
  public func doorbells() throws(VFIOError) -> [Doorbell] {
    let sentence = "get doorbells of \(device.name) \(index)"
    var size: UInt32 = 16
    while true {
      let reply = try device.connection.call(.deviceGetRegionIOFDs, sentence) { output in
        for field: UInt32 in [size, 0, index.rawValue, 0] { output.append(field) }
      } decode: {
        $0
      }
      let needed = try naming(sentence) { () throws(Errno) in try reply.uint32(at: 0) }
      guard needed > size else {
        return try naming(sentence) { () throws(Errno) in try reply.doorbells() }
      }
      size = needed
    }
  }
}

extension Reply {
  /// `u32 argsz, u32 flags, u32 index, u32 count`, then as many
  /// `u64 offset, u64 size, u32 fd_index, u32 type, u32 flags, u32 padding, u64 datamatch`.
  fileprivate func doorbells() throws(Errno) -> [Doorbell] {
    var doorbells: [Doorbell] = []
    for index in 0..<Int(try uint32(at: 12)) {
      let start = 16 + 40 * index
      let hasValue = try uint32(at: start + 24) & 1 != 0  // KVM_IOEVENTFD_FLAG_DATAMATCH
      let value = try uint64(at: start + 32)
      // VFIO_USER_IO_FD_TYPE_IOEVENTFD; the other kinds aren't eventfds.
      guard try uint32(at: start + 20) == 0 else { continue }
      let file = Int(try uint32(at: start + 16))
      guard file < descriptors.count else { throw .protocolError }
      doorbells.append(
        Doorbell(
          offset: try uint64(at: start), size: try uint64(at: start + 8),
          value: hasValue ? value : nil, event: try EventFD(checking: descriptors[file])))
    }
    return doorbells
  }
}
