import LinuxIO
import SystemPackage
import VFIOStream
import VFIOWire

/// One region of a device, reached by messages. What may be mapped is reached faster, by `mappedAreas`.
///
/// An access is `pread` or `pwrite` on the device with the kernel. `EINVAL` outside the region or for a size
/// that the register hasn't got, `EIO` for a BAR whose decoding is off.
public struct Region: Sendable {
  public let device: Device
  public let index: RegionIndex

  /// Loads an integer of 1, 2, 4 or 8 bytes in one access.
  public func load<Value: FixedWidthInteger>(
    _ type: Value.Type = Value.self, at offset: UInt64
  ) throws(VFIOError) -> Value {
    let size = MemoryLayout<Value>.size
    return try device.connection.call(.regionRead, sentence("load", size, offset)) {
      $0.append(RegionAccess(offset: offset, region: index.rawValue, count: size))
    } decode: { reply throws(Errno) in
      try reply.value(at: RegionAccess.size)
    }
  }

  /// Stores an integer of 1, 2, 4 or 8 bytes in one access.
  public func store<Value: FixedWidthInteger>(
    _ value: Value, at offset: UInt64
  ) throws(VFIOError) {
    let size = MemoryLayout<Value>.size
    try device.connection.call(.regionWrite, sentence("store", size, offset)) {
      $0.append(value, at: offset, of: index)
    }
  }

  /// Stores an integer without waiting: what is asked afterwards finds it done. Whether it failed is never
  /// told.
  public func post(_ value: some FixedWidthInteger, at offset: UInt64) throws(VFIOError) {
    let size = value.bitWidth / 8
    try naming(sentence("post", size, offset)) { () throws(Errno) in
      try device.connection.post(.regionWrite) { $0.append(value, at: offset, of: index) }
    }
  }

  /// Reads `count` bytes, in several accesses when one can't transfer so many.
  public func read(at offset: UInt64, count: Int) throws(VFIOError) -> [UInt8] {
    var bytes: [UInt8] = []
    for piece in pieces(of: count) {
      let place = offset &+ UInt64(piece.lowerBound)
      bytes += try device.connection.call(.regionRead, sentence("read", piece.count, place)) {
        $0.append(RegionAccess(offset: place, region: index.rawValue, count: piece.count))
      } decode: { reply throws(Errno) in
        try reply.accessed(piece.count)
      }
    }
    return bytes
  }

  /// Writes bytes, in several accesses when one can't transfer so many.
  public func write(_ bytes: [UInt8], at offset: UInt64) throws(VFIOError) {
    for piece in pieces(of: bytes.count) {
      let place = offset &+ UInt64(piece.lowerBound)
      try device.connection.call(.regionWrite, sentence("write", piece.count, place)) {
        $0.append(RegionAccess(offset: place, region: index.rawValue, count: piece.count))
        $0.append(bytes.span.extracting(piece))
      }
    }
  }

  /// `VFIO_DEVICE_GET_REGION_INFO`.
  public func info() throws(VFIOError) -> RegionInfo { try device.regionInfo(index) }

  /// `mmap` of what may be mapped of the region: one area for each part; none when nothing may be.
  public func mappedAreas() throws(VFIOError) -> [MappedArea] {
    let (info, file) = try device.regionInfoAndFile(index)
    guard let last = info.mappable.map(\.upperBound).max() else { return [] }
    let name = "\(device.name) \(index)"
    return try naming("map \(name)") { () throws(Errno) in
      let (end, overflow) = info.start.addingReportingOverflow(last)
      guard let file, !overflow else { throw .protocolError }
      let isWritable = info.flags.contains(.write)
      let mapping = try SharedMapping(file, size: end, writable: isWritable)
      return info.mappable.map { area in
        MappedArea(
          name, mapping, offset: area.lowerBound, size: area.upperBound - area.lowerBound,
          at: info.start, isWritable: isWritable)
      }
    }
  }

  private func sentence(_ verb: String, _ count: Int, _ offset: UInt64) -> String {
    "\(verb) \(count) bytes at \(hex(offset)) of \(device.name) \(index)"
  }

  /// The accesses that a transfer needs; one even when there is nothing to transfer.
  private func pieces(of count: Int) -> [Range<Int>] {
    let limit = device.version.maxDataTransferSize
    guard count > limit else { return [0..<max(count, 0)] }
    return stride(from: 0, to: count, by: limit).map { $0..<min(count, $0 + limit) }
  }
}

/// The fixed part of a region access: `u64 offset, u32 region, u32 count`.
struct RegionAccess {
  static let size = 16
  var offset: UInt64
  var region: UInt32
  var count: Int
}

extension Output {
  mutating func append(_ access: RegionAccess) {
    append(access.offset)
    append(access.region)
    append(UInt32(clamping: access.count))
  }

  /// A write of one integer, in the device's byte order.
  mutating func append<Value: FixedWidthInteger>(
    _ value: Value, at offset: UInt64, of region: RegionIndex
  ) {
    let size = MemoryLayout<Value>.size
    append(RegionAccess(offset: offset, region: region.rawValue, count: size))
    append((0..<size).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) })
  }
}

extension Reply {
  /// The bytes that an access read.
  func accessed(_ count: Int) throws(Errno) -> [UInt8] {
    guard bytes.count - RegionAccess.size == count else { throw .protocolError }
    return Array(bytes[RegionAccess.size...])
  }
}
