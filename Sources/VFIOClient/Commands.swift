import VFIOWire

extension Command {
  // What a vfio-user server asks of its client.
  static let dmaRead = Command(rawValue: 11)
  static let dmaWrite = Command(rawValue: 12)

  // The operations of type1 containers, as in <linux/vfio.h>.
  static let iommuGetInfo = Command(rawValue: 0x3B70)
  static let iommuMapDMA = Command(rawValue: 0x3B71)
  static let iommuUnmapDMA = Command(rawValue: 0x3B72)
}
