import Foundation
import JSON
import Testing
import VFIOServer

private func read(_ text: String) throws(ConfigurationError) -> Configuration {
  try Configuration(
    parsing: Array(text.utf8).span, file: "vfiod.json",
    names: Configuration.Names(
      models: ["edu", "scratch"], iommuDrivers: ["type1", "spapr-tce", "noiommu"],
      userID: { $0 == "alice" ? 1000 : nil }))
}

/// The sentence about a file that must be refused, without the file's name in front.
private func refusal(_ text: String) -> String? {
  do {
    _ = try read(text)
    return nil
  } catch {
    return error.error.description
  }
}

/// A file with one device, as its fields.
private func device(_ fields: String) -> String {
  #"{"groups": [{"id": 1, "devices": [{\#(fields)}]}]}"#
}

/// A file with one group without devices, as its further fields.
private func group(_ fields: String) -> String {
  #"{"groups": [{"id": 1, "devices": [], \#(fields)}]}"#
}

@Suite struct `A configuration file` {
  @Test func `that is an empty object gives the built-in topology`() throws {
    #expect(try read("{}") == .builtIn)
  }

  @Test func `can say what the built-in topology says`() throws {
    #expect(
      try read(
        """
        {"groups": [
          {"id": 26, "devices": [
            {"address": "0000:06:0d.0", "model": "edu"},
            {"address": "0000:06:0d.1", "driver": "pci-stub"}]},
          {"id": 27, "mode": "0600", "devices": [
            {"address": "0000:07:00.0", "model": "scratch", "driver": "vfio-pci", "options": {}}]},
          {"id": 28, "devices": [
            {"address": "0000:08:00.0", "model": "edu"},
            {"address": "0000:08:00.1", "driver": "e1000"}]}],
         "iommu_drivers": ["type1", "spapr-tce"],
         "limits": {"apertures": [[0, "0xfedfffff"], ["0xfef00000", 281474976710655]],
          "connections": 4096, "message_descriptors": 16, "undelivered_descriptors": 64,
          "max_data_xfer_size": 1048576, "mappings": 65535, "queued_replies": 4194304}}
        """) == .builtIn)
  }

  @Test func `sets every field`() throws {
    let configuration = try read(
      """
      {"groups": [{"id": 4294967295, "owner": "alice", "mode": "0660",
        "iommu": "none", "devices": [{"address": "abcd:ef:1f.7", "model": "edu", "driver": null,
          "options": {"mask": "0xffffffff", "most": 18446744073709551615, "on": true, "name": "x"}}]}],
       "iommu_drivers": ["noiommu", "type1"], "physical_memory": "/dev/shm/memory",
       "limits": {"apertures": [[4096, "0xFFFF"]], "connections": 1, "message_descriptors": 2, "undelivered_descriptors": 3,
        "max_data_xfer_size": 4096, "mappings": 5, "queued_replies": 65536,
        "locked_memory": 18446744073709551615}}
      """)
    var expected = Configuration(
      groups: [
        Configuration.Group(
          id: .max, owner: 1000, mode: 0o660, hasIOMMU: false,
          devices: [
            Configuration.Device(
              "abcd:ef:1f.7", model: "edu", driver: nil,
              options: [
                "mask": 0xFFFF_FFFF, "most": .integer(Int128(UInt64.max)), "on": true, "name": "x",
              ])
          ])
      ], iommuDrivers: ["noiommu", "type1"], physicalMemory: "/dev/shm/memory")
    expected.limits.apertures = [0x1000...0xFFFF]
    expected.limits.connections = 1
    expected.limits.messageDescriptors = 2
    expected.limits.undeliveredDescriptors = 3
    expected.limits.maxDataTransferSize = 4096
    expected.limits.mappings = 5
    expected.limits.queuedReplies = 65536
    expected.limits.lockedMemory = .max
    #expect(configuration == expected)
  }

  @Test func `can be the README's example`() throws {
    let package = URL(filePath: #filePath).appending(path: "../../..").standardized
    let readme = try String(contentsOf: package.appending(path: "README.md"), encoding: .utf8)
    let parts = readme.components(separatedBy: "```")
    let example = try #require(parts.first { $0.hasPrefix("json\n") }).dropFirst("json".count)
    let configuration = try read(String(example))
    #expect(configuration.limits.apertures == Configuration.builtIn.limits.apertures)
    #expect(configuration.limits.mappings == 1000)
  }

  @Test func `names a device's own socket`() throws {
    let fields = #""address": "0000:00:00.0", "socket": "/run/edu""#
    #expect(try read(device(fields)).groups[0].devices[0].socket == "/run/edu")
  }

  @Test func `may have groups with an IOMMU, which they have anyway`() throws {
    #expect(try read(group(#""iommu": null"#)).groups[0].hasIOMMU)
    #expect(try read(group(#""mode": "0600""#)).groups[0].hasIOMMU)
  }

  @Test func `refuses another IOMMU than none`() {
    #expect(
      refusal(group(#""iommu": "type1""#)) == #"groups[0].iommu: "type1" is not "none", or null"#)
    #expect(refusal(group(#""iommu": 0"#)) == #"groups[0].iommu: 0 is not "none", or null"#)
  }

  @Test func `has no group without an IOMMU, and no physical memory, unless it says noiommu`() {
    #expect(
      refusal(group(#""iommu": "none""#))
        == #"groups[0].iommu: "none" needs "noiommu" among the iommu_drivers"#)
    #expect(
      refusal(#"{"physical_memory": "/m"}"#)
        == #"physical_memory: "/m" needs "noiommu" among the iommu_drivers"#)
    #expect(
      refusal(#"{"physical_memory": "m", "iommu_drivers": ["noiommu"]}"#)
        == #"physical_memory: "m" is not an absolute path"#)
  }

  @Test func `gives a device without an IOMMU no socket`() {
    let device = #"{"address": "0000:00:00.0", "socket": "/run/edu"}"#
    #expect(
      refusal(#"{"groups": [{"id": 1, "iommu": "none", "devices": [\#(device)]}]}"#)
        == "groups[0].devices[0].socket: devices without an IOMMU have no sockets of their own")
  }

  @Test func `may give the owner as a uid`() throws {
    #expect(try read(group(#""owner": 42"#)).groups[0].owner == 42)
  }

  @Test func `binds a device with a model to vfio-pci unless it says otherwise`() throws {
    let drivers = try ["", #", "driver": "e1000""#, #", "driver": null"#].map {
      try read(device(#""address": "0000:00:00.0", "model": "edu"\#($0)"#))
        .groups[0].devices[0].driver
    }
    #expect(drivers == ["vfio-pci", "e1000", nil])
  }

  @Test func `leaves a device without a model driverless unless it says otherwise`() throws {
    #expect(try read(device(#""address": "0000:00:00.0""#)).groups[0].devices[0].driver == nil)
  }

  @Test func `is named in its errors`() {
    #expect(throws: ConfigurationError.self) { try read("{") }
    do {
      _ = try read("{\n\"limits\": }")
    } catch {
      #expect("\(error)" == "vfiod.json: line 2, column 11: unexpected character")
    }
  }

  @Test(arguments: [
    ("[]", "an array is not an object"),
    (
      #"{"group": []}"#,
      #"unknown field "group"; known are groups, iommu_drivers, limits, physical_memory"#
    ),
    (
      group(#""colour": 1"#),
      #"groups[0]: unknown field "colour"; known are id, owner, mode, iommu, devices"#
    ),
    (
      device(#""name": 1"#),
      #"groups[0].devices[0]: unknown field "name"; known are address, model, driver, options, socket"#
    ),
    (
      #"{"limits": {"speed": 1}}"#,
      #"limits: unknown field "speed"; known are connections, message_descriptors, "#
        + "undelivered_descriptors, max_data_xfer_size, mappings, dma_timeout, "
        + "queued_replies, locked_memory, apertures"
    ),
  ])
  func `with an unknown field is refused`(text: String, sentence: String) {
    #expect(refusal(text) == sentence)
  }

  @Test(arguments: [
    (#"{"groups": {}}"#, "groups: an object is not an array"),
    (#"{"groups": [{}]}"#, "groups[0].id: missing; it must be an integer between 0 and 4294967295"),
    (
      #"{"groups": [{"id": 4294967296, "devices": []}]}"#,
      "groups[0].id: 4294967296 is not an integer between 0 and 4294967295"
    ),
    (#"{"groups": [{"id": 1}]}"#, "groups[0].devices: missing; it must be an array"),
    (
      group(#""owner": "bob""#),
      #"groups[0].owner: "bob" is not the name of a user of this system"#
    ),
    (group(#""owner": -1"#), "groups[0].owner: -1 is not the name of a user or a uid"),
    (
      group(#""owner": 4294967295"#),
      "groups[0].owner: 4294967295 is not the name of a user or a uid"
    ),
  ])
  func `with a wrong group is refused`(text: String, sentence: String) {
    #expect(refusal(text) == sentence)
  }

  @Test(arguments: [#""600""#, #""0800""#, #""7777""#, #""0+60""#, "600", "null"])
  func `with a mode that isn't four octal digits is refused`(mode: String) {
    #expect(
      refusal(group(#""mode": \#(mode)"#))
        == #"groups[0].mode: \#(mode) is not a string of octal permission bits such as "0600""#)
  }

  @Test(arguments: [
    "[1]", "[1,2,3]", "[2,1]", "[-1,2]", #"["0x",1]"#, #"[0,"0x-1"]"#, #"[0,"ff"]"#,
  ])
  func `with an aperture that isn't a pair of addresses is refused`(aperture: String) {
    #expect(
      refusal(#"{"limits": {"apertures": [\#(aperture)]}}"#)
        == "limits.apertures[0]: \(aperture) is not a first and a last address such as "
        + #"[0, "0xfedfffff"]"#)
  }

  @Test(arguments: ["[[0,5],[5,9]]", "[[10,20],[0,5]]"])
  func `with apertures that overlap or descend is refused`(apertures: String) {
    #expect(
      refusal(#"{"limits": {"apertures": \#(apertures)}}"#)?
        .hasSuffix("does not begin after the range before it") == true)
  }

  @Test func `with an empty list of apertures is refused`() {
    #expect(
      refusal(#"{"limits": {"apertures": []}}"#)
        == "limits.apertures: [] leaves no address to map")
  }

  @Test(arguments: [
    "foo", "", "06:0d.0", "0000:06:0D.0", "0000:06:0d.8", "0000:06:20.0", "0000:06:0d.0x",
    "00000:06:0d.", "0000-06:0d.0", "0000:0g:0d.0", "../../6:0d.0", "é000:06:0d.",
  ])
  func `with an address that isn't a PCI address is refused`(address: String) {
    #expect(
      refusal(device(#""address": "\#(address)""#))
        == #"groups[0].devices[0].address: "\#(address)" is not a PCI address such as 0000:06:0d.0"#
    )
  }

  @Test(arguments: [
    (#""model": "foo""#, #"model: "foo" is not one of "edu", "scratch""#),
    (#""model": null"#, #"model: null is not one of "edu", "scratch""#),
    (#""driver": "vfio-pci""#, #"driver: "vfio-pci" needs a device with a model"#),
    (#""driver": """#, #"driver: "" is not the name of a driver, or null"#),
    (#""driver": 1"#, "driver: 1 is not the name of a driver, or null"),
    (#""options": {}"#, "options: options need a device with a model"),
    (
      #""model": "edu", "options": {"a": -1}"#,
      "options.a: -1 is not true or false, a string, or an integer between 0 and 18446744073709551615"
    ),
    (
      #""model": "edu", "options": {"a": [1]}"#,
      "options.a: an array is not true or false, a string, or an integer between 0 and "
        + "18446744073709551615"
    ),
    (#""model": "edu", "options": 1"#, "options: 1 is not an object"),
    (#""socket": "edu.sock""#, #"socket: "edu.sock" is not an absolute path of at most 107 bytes"#),
  ])
  func `with a wrong device is refused`(fields: String, sentence: String) {
    #expect(
      refusal(device(#""address": "0000:00:00.0", \#(fields)"#))
        == "groups[0].devices[0].\(sentence)")
  }

  @Test func `takes a socket's path of 107 bytes and refuses 108`() {
    let socket = { (character: String, count: Int) in
      let path = String(repeating: character, count: count)
      return device(#""address": "0000:00:00.0", "socket": "/\#(path)""#)
    }
    #expect(refusal(socket("s", 106)) == nil)
    #expect(refusal(socket("s", 107)) != nil)
    #expect(refusal(socket("é", 54)) != nil)
  }

  @Test(arguments: [
    (
      #"{"groups": [{"id": 1, "devices": []}, {"id": 1, "devices": []}]}"#,
      "groups[1].id: 1 is already used at groups[0].id"
    ),
    (
      #"""
      {"groups": [{"id": 1, "devices": [{"address": "0000:00:00.0"}]},
                  {"id": 2, "devices": [{"address": "0000:00:00.0"}]}]}
      """#,
      #"groups[1].devices[0].address: "0000:00:00.0" is already used at groups[0].devices[0].address"#
    ),
    (
      #"""
      {"groups": [{"id": 1, "devices": [{"address": "0000:00:00.0", "socket": "/s"},
                                        {"address": "0000:00:00.1", "socket": "/s"}]}]}
      """#,
      #"groups[0].devices[1].socket: "/s" is already used at groups[0].devices[0].socket"#
    ),
    (
      #"{"iommu_drivers": ["type1", "type1"]}"#,
      #"iommu_drivers[1]: "type1" is already used at iommu_drivers[0]"#
    ),
  ])
  func `that uses an id, address, socket or driver twice is refused`(text: String, sentence: String)
  {
    #expect(refusal(text) == sentence)
  }

  @Test func `with an unknown IOMMU driver is refused`() {
    #expect(
      refusal(#"{"iommu_drivers": ["type2"]}"#)
        == #"iommu_drivers[0]: "type2" is not one of "type1", "spapr-tce", "noiommu""#)
  }

  @Test(arguments: [
    ("connections", 1, 65536), ("message_descriptors", 1, 253),
    ("undelivered_descriptors", 1, 4096), ("max_data_xfer_size", 4096, 67_108_864),
    ("mappings", 1, 16_777_216), ("dma_timeout", 1, 3600), ("queued_replies", 65536, 1_073_741_824),
  ])
  func `takes a limit within its range alone`(name: String, lowest: Int, highest: Int) {
    // A transfer must fit the queue of replies, whichever of both is tried.
    let others = [
      "max_data_xfer_size": #""queued_replies": 67108864"#,
      "queued_replies": #""max_data_xfer_size": 4096"#,
    ]
    let limit = { (value: Int) in
      #"{"limits": {\#(others[name] ?? #""mappings": 1"#), "\#(name)": \#(value)}}"#
    }
    #expect(refusal(limit(lowest)) == nil)
    #expect(refusal(limit(highest)) == nil)
    for value in [lowest - 1, highest + 1] {
      #expect(
        refusal(limit(value))
          == "limits.\(name): \(value) is not an integer between \(lowest) and \(highest)")
    }
  }

  @Test func `takes a limit of locked memory of a page at least`() throws {
    #expect(try read(#"{"limits": {"locked_memory": 4096}}"#).limits.lockedMemory == 4096)
    #expect(try read(#"{"limits": {}}"#).limits.lockedMemory == nil)
    #expect(
      refusal(#"{"limits": {"locked_memory": 4095}}"#)
        == "limits.locked_memory: 4095 is not an integer between 4096 and \(UInt64.max)")
  }

  @Test func `refuses a queue of replies that doesn't hold one transfer`() {
    #expect(
      refusal(#"{"limits": {"queued_replies": 65536}}"#)
        == "limits.queued_replies: 65536 bytes don't hold a reply of max_data_xfer_size, 1048576")
  }
}
