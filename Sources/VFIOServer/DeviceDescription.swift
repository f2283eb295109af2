import JSON
import SystemPackage
import VFIOCore

extension Service {
  /// What a device is, for the administrator, whether it is in use or not: its regions, its interrupts
  /// and its configuration space (`protocol/device.schema.json`). The device doesn't notice.
  ///
  /// `ENODEV` when there is no such device, or it isn't bound to a VFIO driver.
  func describe(_ name: String) throws(Errno) -> JSONValue {
    guard let (_, found) = topology.find(name),
      let operations = registry.operations(of: found.bus)
    else { throw .operationNotSupportedByDevice }
    let information = operations.information
    return [
      "regions": .array(
        try json(0..<information.regions) { index throws(Errno) in
          let region = try operations.region(index)
          guard region.size > 0 else { return nil }
          return [
            "index": .integer(Int128(index)), "size": .integer(Int128(region.size)),
            "readable": .bool(region.readable), "writable": .bool(region.writable),
            "mappable": .array(
              region.mappable.map { area in
                [.integer(Int128(area.lowerBound)), .integer(Int128(area.upperBound))]
              }),
          ]
        }),
      "interrupts": .array(
        try json(0..<information.interrupts) { index throws(Errno) in
          let interrupt = try operations.interrupt(index)
          guard interrupt.count > 0 else { return nil }
          return [
            "index": .integer(Int128(index)), "count": .integer(Int128(interrupt.count)),
            "flags": .integer(Int128(interrupt.flags)),
          ]
        }),
      "config": .string(try config(of: operations)),
    ]
  }

  private func json(
    _ indices: Range<UInt32>, _ describe: (UInt32) throws(Errno) -> JSONValue?
  ) throws(Errno) -> [JSONValue] {
    var all: [JSONValue] = []
    for index in indices { if let value = try describe(index) { all.append(value) } }
    return all
  }

  /// `VFIO_PCI_CONFIG_REGION_INDEX`.
  private static let configRegion: UInt32 = 7

  /// Configuration space in hexadecimal digits.
  private func config(of operations: any DeviceOperations) throws(Errno) -> String {
    let size = try operations.region(Self.configRegion).size
    var bytes = [UInt8](repeating: 0, count: Int(min(size, 4096)))
    var span = bytes.mutableSpan
    try operations.read(Self.configRegion, at: 0, into: &span)
    let digits = Array("0123456789abcdef".utf8)
    return String(
      decoding: bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
  }
}
