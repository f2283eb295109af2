import VFIOWire

extension Command {
  // What a vfio-user server asks of its client.
  static let dmaRead = Command(rawValue: 11)
  static let dmaWrite = Command(rawValue: 12)

  // The operations of type1 containers, as in <linux/vfio.h>.
  static let iommuGetInfo = Command(rawValue: 0x3B70)
  static let iommuMapDMA = Command(rawValue: 0x3B71)
  static let iommuUnmapDMA = Command(rawValue: 0x3B72)

  // Those of sPAPR TCE containers.
  static let spaprTCEGetInfo = Command(rawValue: 0x3B70)
  static let iommuEnable = Command(rawValue: 0x3B73)
  static let iommuDisable = Command(rawValue: 0x3B74)
  static let spaprRegisterMemory = Command(rawValue: 0x3B75)
  static let spaprUnregisterMemory = Command(rawValue: 0x3B76)
  static let spaprTCECreate = Command(rawValue: 0x3B77)
  static let spaprTCERemove = Command(rawValue: 0x3B78)
}
