import ArgumentParser
import VFIOClient

struct Demo: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Goes the whole way to a device, naming the kernel's call at each step.",
    discussion: """
      It uses an edu, the teaching device: copies memory into the device and back by DMA, takes the \
      interrupts, and then closes container, group, device and external user in each of the 24 orders, \
      after which the group must open again at once.
      """)

  @OptionGroup var server: ServerOptions
  @Option(help: "An edu in a viable group that nobody uses.") var device = "0000:06:0d.0"

  func run() throws {
    try server.withServer { vfio in
      let group = try vfio.group(of: device)
      try goTheWholeWay(vfio, group.id)
      try closeInEveryOrder(vfio, group.id)
    }
  }

  private func step(_ call: String, _ meaning: String) {
    let gap = String(repeating: " ", count: max(2, 54 - call.count))
    print("\(call)\(gap)\(meaning)")
  }

  // MARK: the whole way

  private func goTheWholeWay(_ vfio: VFIO, _ number: UInt32) throws {
    let container = try vfio.openContainer()
    step("open(\"/dev/vfio/vfio\")", "a container: memory that devices may reach")
    step("ioctl(VFIO_GET_API_VERSION)", "\(try container.apiVersion())")
    guard try container.checkExtension(.type1v2) > 0 else {
      throw Failure("the server has no type1v2 IOMMU driver")
    }
    step("ioctl(VFIO_CHECK_EXTENSION, TYPE1v2)", "there is such an IOMMU driver")

    let group = try vfio.openGroup(number)
    step("open(\"/dev/vfio/\(number)\")", "the device's group")
    guard try group.status().contains(.viable) else {
      throw Failure("group \(number) is not viable: see vfioctl ls")
    }
    step("ioctl(VFIO_GROUP_GET_STATUS)", "it is viable: no foreign driver in it")
    try group.setContainer(container)
    step("ioctl(VFIO_GROUP_SET_CONTAINER)", "its devices reach the container's memory")
    try container.setIOMMU(.type1v2)
    step("ioctl(VFIO_SET_IOMMU, TYPE1v2)", "through this IOMMU driver")

    let memory = try Memory(size: 0x2000)
    let mapping = try container.map(memory, at: 0x100000)
    step("ioctl(VFIO_IOMMU_MAP_DMA)", "8 KiB, which devices see at 0x100000")
    let opened = try group.openDevice(device)
    step("ioctl(VFIO_GROUP_GET_DEVICE_FD, \"\(device)\")", "the device")
    try drive(opened, memory)
    try mapping.unmap()
    step("ioctl(VFIO_IOMMU_UNMAP_DMA)", "the device can't reach the memory any more")
    opened.close()
    group.close()
    container.close()
    step("close(device); close(group); close(container)", "in any order")
  }

  /// Registers of an edu, and the address of its buffer.
  private enum Edu {
    static let identification = 0x00, causes = 0x24, acknowledge = 0x64
    static let source = 0x80, destination = 0x88, count = 0x90, command = 0x98
    static let buffer: UInt64 = 0x40000
    static let dmaDone: UInt32 = 0x100
  }

  private func drive(_ device: Device, _ memory: Memory) throws {
    let registers = device.region(.bar(0))
    let identification = try registers.load(UInt32.self, at: UInt64(Edu.identification))
    guard identification == 0x0100_00ED else {
      throw Failure("\(self.device) is not an edu: its identification is \(identification)")
    }
    step("pread(device, BAR 0 + 0x00)", "0x10000ed: an edu")
    try device.enableBusMaster()
    step("pwrite(device, config + 4)", "COMMAND: it may do DMA")
    let interrupt = try device.enableInterrupt(.msi, 0)
    step("ioctl(VFIO_DEVICE_SET_IRQS, eventfd)", "its MSI wakes an eventfd")

    let text = Array("hello, device".utf8)
    try memory.write(text, at: 0)
    try copy(registers, interrupt, from: 0x100000, to: Edu.buffer, text.count, toMemory: false)
    step("pwrite(device, BAR 0 + 0x80 ...)", "DMA: 0x100000 into the device; interrupted when done")
    try copy(registers, interrupt, from: Edu.buffer, to: 0x101000, text.count, toMemory: true)
    step("pwrite(device, BAR 0 + 0x80 ...)", "DMA: back to 0x101000; interrupted when done")
    guard try memory.read(at: 0x1000, count: text.count) == text else {
      throw Failure("what came back is not what was sent")
    }
    step("", "it came back: \"\(String(decoding: text, as: UTF8.self))\"")
    interrupt.disable()
    step("ioctl(VFIO_DEVICE_SET_IRQS, none)", "no more interrupts")
  }

  private func copy(
    _ registers: Region, _ interrupt: Interrupt, from source: UInt64, to destination: UInt64,
    _ count: Int, toMemory: Bool
  ) throws {
    try registers.store(source, at: UInt64(Edu.source))
    try registers.store(destination, at: UInt64(Edu.destination))
    try registers.store(UInt64(count), at: UInt64(Edu.count))
    try registers.store(UInt64(toMemory ? 1 | 2 | 4 : 1 | 4), at: UInt64(Edu.command))
    _ = try interrupt.wait(timeout: .seconds(10))
    guard try registers.load(UInt32.self, at: UInt64(Edu.causes)) == Edu.dmaDone else {
      throw Failure("the device was interrupted for something else than its DMA")
    }
    try registers.store(Edu.dmaDone, at: UInt64(Edu.acknowledge))
  }

  // MARK: closing

  private func closeInEveryOrder(_ vfio: VFIO, _ number: UInt32) throws {
    let orders = permutations([0, 1, 2, 3])
    for order in orders {
      let container = try vfio.openContainer()
      let group = try vfio.openGroup(number)
      try group.setContainer(container)
      try container.setIOMMU(.type1v2)
      let device = try group.openDevice(device)
      let user = try vfio.externalUser(of: group)
      let all: [any Handle] = [container, group, device, user]
      for index in order { all[index].close() }
    }
    // Would fail with EBUSY if anything were left.
    try vfio.openGroup(number).close()
    print()
    print(
      "closed container, group, device and external user in all \(orders.count) orders: "
        + "the group is free each time")
  }

  private func permutations(_ items: [Int]) -> [[Int]] {
    guard items.count > 1 else { return [items] }
    return items.flatMap { first in
      permutations(items.filter { $0 != first }).map { [first] + $0 }
    }
  }
}
