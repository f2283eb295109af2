import Foundation
import JSON
import SystemPackage
import Testing
import VFIOCore
import VFIOServer
import VFIOWire

@Suite struct `The facts of the protocol` {
  @Test func `have the header that the codec writes`() {
    let header = Header(
      id: 0x1122, command: Command(rawValue: 0x3344), messageSize: 0x5566_7788,
      flags: Header.Flags(rawValue: 0x99AA_BBCC), error: 0xDDEE_FF00)
    var bytes = [UInt8](repeating: 0, count: Header.size)
    var span = bytes.mutableSpan
    header.write(to: &span, at: 0)
    #expect(Facts.headerSize == Header.size)
    #expect(
      Facts.decode(Facts.headerFields, bytes)
        == [
          "id": 0x1122, "command": 0x3344, "size": 0x5566_7788, "flags": 0x99AA_BBCC,
          "error": 0xDDEE_FF00,
        ])
  }

  @Test func `have the flags of the codec`() {
    let flags: [String: Header.Flags] = [
      "TYPE": .type, "REPLY": .reply, "NO_REPLY": .noReply, "ERROR": .error,
    ]
    #expect(Facts.all["flags"]?.elements.count == flags.count)
    for (name, flag) in flags { #expect(Facts.flag(name) == Int(flag.rawValue), "\(name)") }
  }

  @Test func `have the commands of the codec`() {
    let commands: [String: Command] = [
      "VERSION": .version, "DMA_MAP": .dmaMap, "DMA_UNMAP": .dmaUnmap,
      "DEVICE_GET_INFO": .deviceGetInfo, "DEVICE_GET_REGION_INFO": .deviceGetRegionInfo,
      "DEVICE_GET_IRQ_INFO": .deviceGetIRQInfo, "DEVICE_SET_IRQS": .deviceSetIRQs,
      "REGION_READ": .regionRead, "REGION_WRITE": .regionWrite, "DEVICE_RESET": .deviceReset,
      "GET_API_VERSION": .getAPIVersion, "CHECK_EXTENSION": .checkExtension,
      "SET_IOMMU": .setIOMMU, "GROUP_GET_STATUS": .groupGetStatus,
      "GROUP_SET_CONTAINER": .groupSetContainer, "GROUP_UNSET_CONTAINER": .groupUnsetContainer,
      "GROUP_GET_DEVICE_FD": .groupGetDeviceFD, "OPEN_CONTAINER": .openContainer,
      "OPEN_GROUP": .openGroup, "GET_TOPOLOGY": .getTopology,
      "GET_EXTERNAL_USER": .getExternalUser, "TOKEN_CHECK_EXTENSION": .tokenCheckExtension,
      "CONTAINER_READ": .containerRead, "CONTAINER_WRITE": .containerWrite,
      "CONTAINER_MMAP": .containerMmap,
    ]
    for (name, command) in commands {
      #expect(Facts.command(name)?["number"]?.int == Int(command.rawValue), "\(name)")
    }
  }

  @Test func `number the operations of an IOMMU as <linux/vfio.h> does`() {
    let offsets = [
      "IOMMU_GET_INFO": 12, "IOMMU_MAP_DMA": 13, "IOMMU_UNMAP_DMA": 14, "IOMMU_ENABLE": 15,
      "IOMMU_DISABLE": 16, "IOMMU_DIRTY_PAGES": 17, "IOMMU_SPAPR_TCE_GET_INFO": 12,
      "IOMMU_SPAPR_REGISTER_MEMORY": 17, "IOMMU_SPAPR_UNREGISTER_MEMORY": 18,
      "IOMMU_SPAPR_TCE_CREATE": 19, "IOMMU_SPAPR_TCE_REMOVE": 20, "EEH_PE_OP": 21,
    ]
    for (name, offset) in offsets {
      #expect(Facts.command(name)?["number"]?.int == 0x3B64 + offset, "\(name)")
    }
  }

  @Test func `name each command once, and number it once for each IOMMU`() {
    let commands = Facts.all["commands"]?.elements ?? []
    #expect(Set(commands.compactMap { $0["name"]?.string }).count == commands.count)
    let numbers = commands.map { "\($0["number"]?.int ?? 0) \($0["with"]?.string ?? "")" }
    #expect(Set(numbers).count == commands.count)
  }

  @Test func `have structures without gaps, whose fields have their types' sizes`() {
    #expect(["u16", "u32", "u64", "s64"].map(Facts.size) == [2, 4, 8, 8])
    let commands = Facts.all["commands"]?.elements ?? []
    let capabilities = ["capabilities", "structures"].flatMap { Facts.all[$0]?.elements ?? [] }
    #expect(!commands.isEmpty && !capabilities.isEmpty)
    let structures =
      commands.flatMap { [$0["request"], $0["reply"]] } + capabilities.map { $0["fields"] }
    for fields in structures {
      var end: Int? = 0
      for field in fields?.elements ?? [] {
        #expect(field["offset"]?.int == end, "\(field)")
        let type = field["type"]?.string ?? ""
        #expect(Facts.named(type, in: "types") != nil, "\(field)")
        let size = Facts.size(ofType: type)
        #expect(field["size"]?.int == size, "\(field)")
        end = size.map { (end ?? 0) + $0 }
      }
    }
  }

  @Test func `have the numbers of this system's errors`() {
    let errors: [String: Errno] = [
      "EPERM": .notPermitted, "ENOENT": .noSuchFileOrDirectory, "EIO": .ioError,
      "ENXIO": .noSuchAddressOrDevice,
      "E2BIG": .argListTooLong, "ECANCELED": .canceled,
      "EBADF": .badFileDescriptor, "ENOMEM": .noMemory, "EACCES": .permissionDenied,
      "EFAULT": .badAddress, "EBUSY": .resourceBusy, "EEXIST": .fileExists,
      "ENODEV": .operationNotSupportedByDevice, "EINVAL": .invalidArgument,
      "EMFILE": .tooManyOpenFiles, "ENOTTY": .inappropriateIOCTLForDevice, "ENOSPC": .noSpace,
      "EOVERFLOW": .overflow, "ENOTSUP": .notSupported, "ETOOMANYREFS": .tooManyReferences,
      "ETIMEDOUT": .timedOut,
    ]
    #expect(Facts.all["errors"]?.elements.count == errors.count)
    for (name, error) in errors { #expect(Facts.errno(name) == Int(error.rawValue), "\(name)") }
  }

  @Test func `have the constants of the core`() {
    #expect(Facts.constant("VFIO_GROUP_FLAGS_VIABLE") == Int(GroupStatus.viable.rawValue))
    #expect(
      Facts.constant("VFIO_GROUP_FLAGS_CONTAINER_SET") == Int(GroupStatus.containerSet.rawValue))
    #expect(Facts.constant("VFIO_DMA_MAP_FLAG_READ") == Int(DMAAccess.read.rawValue))
    #expect(Facts.constant("VFIO_DMA_MAP_FLAG_WRITE") == Int(DMAAccess.write.rawValue))
  }

  @Test func `have the constants of <linux/vfio.h>, where this system has it`() {
    let header = (try? String(contentsOfFile: "/usr/include/linux/vfio.h", encoding: .utf8)) ?? ""
    var values: [Substring: Int] = [:]
    for line in header.split(separator: "\n") {
      let words = line.split(whereSeparator: \.isWhitespace)
      guard words.count >= 3, words[0] == "#define" else { continue }
      if let number = Int(words[2]) {
        values[words[1]] = number
      } else if words.count >= 5, words[2] == "(1", words[3] == "<<",
        let shift = Int(words[4].prefix(while: \.isNumber))
      {
        values[words[1]] = 1 << shift
      }
    }
    for group in Facts.all["constants"]?.elements ?? [] {
      for constant in group["values"]?.elements ?? [] {
        let name = constant["name"]?.string ?? ""
        guard let value = values[name[...]] else { continue }
        #expect(constant["value"]?.int == value, "\(name)")
      }
    }
  }

  @Test func `have the limits of a server without a configuration`() {
    let limits = Configuration.Limits()
    let values = [
      "message_descriptors": limits.messageDescriptors,
      "max_data_xfer_size": limits.maxDataTransferSize, "mappings": limits.mappings,
      "undelivered_descriptors": limits.undeliveredDescriptors,
      "dma_timeout": limits.dmaTimeout, "queued_replies": limits.queuedReplies,
      "connections": limits.connections,
    ]
    #expect(Facts.all["limits"]?.elements.count == values.count)
    for (name, value) in values {
      #expect(Facts.named(name, in: "limits")?["value"]?.int == value, "\(name)")
    }
    #expect(
      Facts.named("largest message", in: "sizes")?["value"]?.int
        == Header.size + 16 + limits.maxDataTransferSize)
  }

  @Test func `have the built-in topology`() {
    let devices = Configuration.builtIn.groups.flatMap { group in
      group.devices.map { device -> JSONValue in
        [
          "group": .integer(Int128(group.id)), "address": .string(device.address),
          "model": device.model.map { .string($0) } ?? nil,
          "driver": device.driver.map { .string($0) } ?? nil,
        ]
      }
    }
    #expect(Facts.all["built_in_topology"] == .array(devices))
  }

  @Test func `have a schema of the configuration that names what a server knows`() {
    let schema = Facts.read("configuration.schema.json")
    let drivers = schema["properties"]?["iommu_drivers"]?["items"]?["enum"]?.elements
    #expect(Set(drivers?.compactMap(\.string) ?? []) == Set(Server.names.iommuDrivers))
    let models = schema["$defs"]?["device"]?["properties"]?["model"]?["enum"]?.elements
    #expect(Set(models?.compactMap(\.string) ?? []) == Set(Server.names.models))
  }

  @Test func `are those from which the specification was generated`() throws {
    // FNV-1a, which the generator writes into the text: one bit more or less and they part.
    let hash = Facts.bytes(of: "protocol.json").reduce(0xCBF2_9CE4_8422_2325 as UInt64) {
      ($0 ^ UInt64($1)) &* 0x100_0000_01B3
    }
    let text = String(decoding: Facts.bytes(of: "README.md"), as: UTF8.self)
    let digits = String(hash, radix: 16)
    #expect(text.contains(String(repeating: "0", count: 16 - digits.count) + digits))
  }
}
