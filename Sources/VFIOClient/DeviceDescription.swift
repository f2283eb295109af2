import JSON
import SystemPackage
import VFIOWire

/// What a device is: its regions, its interrupts, and its configuration space at one moment.
public struct DeviceDescription: Sendable, Equatable {
  public struct Interrupt: Sendable, Equatable {
    public var kind: InterruptKind
    public var info: InterruptInfo
  }

  /// Those that the device has.
  public var regions: [RegionInfo] = []
  /// The kinds that the device has.
  public var interrupts: [Interrupt] = []
  public var config: [UInt8] = []
}

extension VFIO {
  /// Describes a device without opening it, whether it is in use or not. For the administrator: `EPERM`
  /// for others. `ENODEV` when there is no such device, or it isn't bound to a VFIO driver.
  public func describe(_ device: String) throws(VFIOError) -> DeviceDescription {
    try connection.call(.getDevice, "look at \(device)") { output in
      output.append(Array(device.utf8) + [0])
    } decode: { reply throws(Errno) in
      try reading(reply.bytes[...]) { document throws(JSONError) in
        try DeviceDescription(document)
      }
    }
  }
}

extension Device {
  /// Describes the device.
  public func describe() throws(VFIOError) -> DeviceDescription {
    let info = try info()
    var description = DeviceDescription()
    for index in 0..<info.regions {
      let region = try regionInfo(RegionIndex(rawValue: index))
      if region.size > 0 { description.regions.append(region) }
    }
    for index in 0..<info.interrupts {
      let kind = InterruptKind(rawValue: index)
      let info = try interruptInfo(kind)
      if info.count > 0 { description.interrupts.append(.init(kind: kind, info: info)) }
    }
    if let size = description.regions.first(where: { $0.index == .config })?.size {
      description.config = try config.read(at: 0, count: Int(clamping: min(size, 4096)))
    }
    return description
  }
}

extension DeviceDescription {
  init(_ document: JSONReader) throws(JSONError) {
    for region in try document["regions"].elements() {
      var flags: RegionInfo.Flags = []
      if try region["readable"].bool() { flags.insert(.read) }
      if try region["writable"].bool() { flags.insert(.write) }
      let areas = try region["mappable"].elements().map { area throws(JSONError) in
        let ends = try area.elements().map { end throws(JSONError) in
          try end.integer(in: 0...UInt64.max)
        }
        guard ends.count == 2, ends[0] <= ends[1] else {
          throw JSONError(place: "mappable", problem: "is not the two ends of a range")
        }
        return ends[0]..<ends[1]
      }
      if !areas.isEmpty { flags.insert(.mmap) }
      regions.append(
        RegionInfo(
          index: RegionIndex(rawValue: try region["index"].integer(in: 0...UInt32.max)),
          flags: flags, size: try region["size"].integer(in: 0...UInt64.max), mappable: areas))
    }
    for interrupt in try document["interrupts"].elements() {
      interrupts.append(
        Interrupt(
          kind: InterruptKind(rawValue: try interrupt["index"].integer(in: 0...UInt32.max)),
          info: InterruptInfo(
            flags: InterruptInfo.Flags(
              rawValue: try interrupt["flags"].integer(in: 0...UInt32.max)),
            count: try interrupt["count"].integer(in: 0...UInt32.max))))
    }
    let digits = Array(try document["config"].string())
    for index in stride(from: 0, to: digits.count - 1, by: 2) {
      guard let byte = UInt8(String(digits[index...index + 1]), radix: 16) else {
        throw JSONError(place: "config", problem: "is not hexadecimal digits")
      }
      config.append(byte)
    }
  }
}

extension RegionInfo {
  init(index: RegionIndex, flags: Flags, size: UInt64, mappable: [Range<UInt64>]) {
    self.index = index
    self.flags = flags
    self.size = size
    self.mappable = mappable
    start = 0
  }
}
