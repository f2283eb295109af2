/// What a message asks for. On root, container and group sockets an operation that has an ioctl is
/// numbered as that ioctl.
public struct Command: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt16
  @inlinable public init(rawValue: UInt16) { self.rawValue = rawValue }

  // vfio-user, on device sockets. VERSION also opens the root socket.
  public static let version = Command(rawValue: 1)
  public static let dmaMap = Command(rawValue: 2)
  public static let dmaUnmap = Command(rawValue: 3)
  public static let deviceGetInfo = Command(rawValue: 4)
  public static let deviceGetRegionInfo = Command(rawValue: 5)
  public static let deviceGetRegionIOFDs = Command(rawValue: 6)
  public static let deviceGetIRQInfo = Command(rawValue: 7)
  public static let deviceSetIRQs = Command(rawValue: 8)
  public static let regionRead = Command(rawValue: 9)
  public static let regionWrite = Command(rawValue: 10)
  /// These two are the server's.
  public static let dmaRead = Command(rawValue: 11)
  public static let dmaWrite = Command(rawValue: 12)
  public static let deviceReset = Command(rawValue: 13)
  public static let regionWriteMulti = Command(rawValue: 15)
  public static let deviceFeature = Command(rawValue: 16)
  public static let migrationDataRead = Command(rawValue: 17)
  public static let migrationDataWrite = Command(rawValue: 18)

  // `_IO(';', 100 + n)` of <linux/vfio.h>.
  public static let getAPIVersion = Command(rawValue: 0x3B64)
  public static let checkExtension = Command(rawValue: 0x3B65)
  public static let setIOMMU = Command(rawValue: 0x3B66)
  public static let groupGetStatus = Command(rawValue: 0x3B67)
  public static let groupSetContainer = Command(rawValue: 0x3B68)
  public static let groupUnsetContainer = Command(rawValue: 0x3B69)
  public static let groupGetDeviceFD = Command(rawValue: 0x3B6A)

  // Operations without an ioctl.
  public static let openContainer = Command(rawValue: 0x4000)
  public static let openGroup = Command(rawValue: 0x4001)
  public static let getTopology = Command(rawValue: 0x4002)
  public static let getExternalUser = Command(rawValue: 0x4003)
  public static let tokenCheckExtension = Command(rawValue: 0x4004)
  public static let addDevice = Command(rawValue: 0x4010)
  public static let removeDevice = Command(rawValue: 0x4011)
  public static let bindDriver = Command(rawValue: 0x4012)
  public static let unbindDriver = Command(rawValue: 0x4013)
  public static let trace = Command(rawValue: 0x4030)
  public static let getDevice = Command(rawValue: 0x4031)
  public static let traceRecord = Command(rawValue: 0x4032)
  public static let containerRead = Command(rawValue: 0x4020)
  public static let containerWrite = Command(rawValue: 0x4021)
  public static let containerMmap = Command(rawValue: 0x4022)
}
