import ArgumentParser
import JSON
import VFIOClient

struct Bind: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Binds a device to a driver.",
    discussion: """
      With vfio-pci the device can be opened through its group, and gets a socket of its own. Any driver \
      but vfio-pci, pci-stub and pcieport makes the group unusable, and is refused while someone uses the \
      group; --force does it all the same and stops the DMA of the group's devices.
      """)

  @OptionGroup var server: ServerOptions
  @Argument(help: "The device's PCI address, such as 0000:06:0d.0.") var device: String
  @Argument(help: "The driver, such as vfio-pci.") var driver: String
  @Flag(help: "Bind a foreign driver although the group is in use.") var force = false

  func run() throws {
    try server.withServer { vfio in
      try administer([
        .invalidArgument: "the device has no model, which vfio-pci needs",
        .operationNotSupportedByDevice: "there is no such device: see vfioctl ls",
        .resourceBusy: "it has a driver, which vfioctl unbind takes away, or its group is in use",
      ]) { () throws(VFIOError) in
        try vfio.bindDriver(driver, to: device, force: force)
      }
    }
  }
}

struct Unbind: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Unbinds a device from its driver.",
    discussion: """
      From vfio-pci: asks the device's user to let go, by the device's request interrupt, and waits. When \
      the user doesn't within the timeout, the device is as before, and the status is 1.
      """)

  @OptionGroup var server: ServerOptions
  @Argument(help: "The device's PCI address.") var device: String
  @Option(help: "How many seconds to wait for the device's user.") var timeout: Int = 10

  func run() throws {
    try server.withServer { vfio in
      try administer([
        .operationNotSupportedByDevice:
          "there is no such device, or it has no driver: see vfioctl ls",
        .timedOut: "its user did not let go of it in \(timeout) s; it is as before",
      ]) { () throws(VFIOError) in
        try vfio.unbindDriver(from: device, timeout: .seconds(timeout))
      }
    }
  }
}

struct Add: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Adds a device to a group, which is made if it isn't there.",
    discussion: """
      The device is a JSON object as in the configuration: address, model, driver, options, socket. For \
      example: vfioctl add 29 '{"address": "0000:09:00.0", "model": "edu"}'
      """)

  @OptionGroup var server: ServerOptions
  @Argument(help: "The IOMMU group's number.") var group: UInt32
  @Argument(help: "The device, as JSON.") var device: String

  func run() throws {
    let document: JSONValue
    do {
      document = try JSONValue(parsing: Array(device.utf8).span)
    } catch {
      throw ValidationError("the device is not JSON: \(error)")
    }
    try server.withServer { vfio in
      try administer([
        .invalidArgument:
          "the server can't make this device; its members are those of the configuration, and the "
          + "server's log may say more",
        .resourceBusy: "there is a device at this address: see vfioctl ls",
      ]) { () throws(VFIOError) in
        try vfio.addDevice(document, toGroup: group)
      }
    }
  }
}

struct Remove: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Removes a device, once its user has let go of it.",
    discussion: """
      The user's request interrupt fires, and new opens get ENODEV. When the user doesn't close the device \
      within the timeout, it is as before, and the status is 1.
      """)

  @OptionGroup var server: ServerOptions
  @Argument(help: "The device's PCI address.") var device: String
  @Option(help: "How many seconds to wait for the device's user.") var timeout: Int = 10

  func run() throws {
    try server.withServer { vfio in
      try administer([
        .operationNotSupportedByDevice: "there is no such device: see vfioctl ls",
        .timedOut: "its user did not let go of it in \(timeout) s; it is as before",
      ]) { () throws(VFIOError) in
        try vfio.removeDevice(device, timeout: .seconds(timeout))
      }
    }
  }
}
