import LinuxIO
import SystemPackage
import Testing
import VFIOStream
import VFIOWire

@testable import VFIOServer

/// Everything with a running server, one after the other: they all want the same processors.
@Suite(.serialized) struct `A running server` {}

extension `A running server` {
  @Suite struct `lets hang-ups take effect before it answers` {
    private let server: Running
    private let root: Client

    init() throws {
      server = try Running()
      root = try server.root()
    }

    @Test func `so that a group that was closed can be opened again, 1,000 times`() throws {
      for _ in 0..<1000 {
        let group = try root.openGroup()
        group.close()
      }
    }

    @Test func `also with a container, a driver and a device on a loop of its own`() throws {
      for _ in 0..<200 {
        let (container, group) = (try root.openContainer(), try root.openGroup())
        try group.setContainer(container)
        try container.call(.setIOMMU, World.type1v2)
        let device = try group.openDevice()
        try ask(device)
        device.close()
        try group.call(.groupUnsetContainer)
        group.close()
      }
    }

    @Test func `also on a device's socket, whose client comes back at once`() throws {
      for round in 0..<300 {
        let device = try server.device()
        if round.isMultiple(of: 2) { try ask(device) }
        device.close()
      }
    }

    @Test func `also between a device's socket and its group`() throws {
      for _ in 0..<200 {
        let device = try server.device()
        try ask(device)
        device.close()
        try root.openGroup().close()
      }
    }

    @Test func `after it has done what the client sent before it closed`() throws {
      for _ in 0..<100 {
        let (container, group) = (try root.openContainer(), try root.openGroup())
        group.send(
          message(.groupSetContainer, flags: .noReply), with: [try container.descriptor])
        group.close()
        #expect(throws: Errno.invalidArgument) { try container.call(.setIOMMU, World.type1v2) }
      }
    }

    @Test func `but not while a copy of the descriptor is open`() throws {
      let group = try root.openGroup()
      let copy = try Descriptor(duplicating: group.descriptor.borrowed)
      group.close()
      #expect(throws: Errno.resourceBusy) { try root.openGroup() }
      try Client(copy).call(.groupGetStatus, bytes(UInt32(8), UInt32(0)))
    }

    @Test(arguments: permutations(of: [0, 1, 2, 3]))
    func `in whatever order container, group, device and token are closed`(
      _ order: [Int]
    ) throws {
      let (container, group) = (try root.openContainer(), try root.openGroup())
      try group.setContainer(container)
      try container.call(.setIOMMU, World.type1v2)
      let all = [container, group, try group.openDevice(), try root.externalUser(of: group)]
      for (closed, index) in order.enumerated() {
        // The container's own descriptor doesn't keep the group.
        if order[closed...] != [0] {
          #expect(throws: Errno.resourceBusy) { try root.openGroup() }
        }
        all[index].close()
      }
      try root.openGroup().close()
      try ask(server.device())
    }
  }

  @Suite struct `serves the others` {
    private let server: Running
    private let root: Client

    init() throws {
      server = try Running()
      root = try server.root()
    }

    @Test func `when a client of the root socket reads no replies`() throws {
      let count = try fill(root, message(.getTopology, bytes(UInt32(4096), UInt32(0))))
      try server.root().openContainer().close()
      #expect(try answers(to: root) == count)
      try root.openContainer().close()
    }

    @Test func `when a client of a device reads no replies`() throws {
      let device = try server.device()
      let count = try fill(
        device, message(.regionRead, bytes(UInt64(0), UInt32(0), UInt32(65536))))
      try ask(server.device("0000:06:0d.0"))
      #expect(try answers(to: device) == count)
      try ask(device)
    }

    @Test func `when a client reads no replies and dies`() throws {
      let device = try server.device()
      _ = try fill(device, message(.regionRead, bytes(UInt64(0), UInt32(0), UInt32(65536))))
      device.close()
      try root.openGroup().close()
    }

    @Test func `when a client sends half a message and waits`() throws {
      let half = try server.socket()
      half.send(Array(message(.version, version01).prefix(9)))
      try server.device().close()
      half.send(Array(message(.version, version01).dropFirst(9)))
      #expect(try half.receive()?.header.error == 0)
    }

    @Test(arguments: [0, 15, 1 << 31, UInt32.max])
    func `when a client sends an impossible size, which ends its connection`(
      _ size: UInt32
    ) throws {
      for client in [try server.root(), try server.device(), try server.socket("0000:06:0d.0")] {
        client.send(bytes(UInt16(7), Command.version.rawValue, size, UInt32(0), UInt32(0)))
        #expect(try client.receive()?.header.error == 22)
        #expect((try? client.receive()) == nil)
      }
      try root.openGroup().close()
    }

    @Test func `when another client has the device, and tells it so`() throws {
      let first = try server.device()
      let second = try server.socket()
      #expect(throws: Errno.resourceBusy) { try second.call(.version, version01) }
      #expect(try second.receive() == nil)
      try ask(first)
    }

    @Test func `when there are a thousand connections`() throws {
      let clients = try (0..<1000).map { _ in try server.root() }
      for client in clients { try client.call(.getTopology, bytes(UInt32(8), UInt32(0))) }
    }

    @Test func `when 1 of 60 devices is blocked`() throws {
      let server = try Running(
        Configuration(
          groups: (0..<60).map { index in
            let address = "0000:\(String(16 + index, radix: 16)):00.0"
            return .init(
              id: UInt32(index),
              devices: [.init(address, model: "edu", driver: "vfio-pci")])
          }))
      let names = (0..<60).map { "0000:\(String(16 + $0, radix: 16)):00.0" }
      let devices = try names.map { try server.device($0) }
      for device in devices { try ask(device) }
      // The first has a loop of its own, the last shares one.
      for blocked in [devices[0], devices[59]] {
        let count = try fill(
          blocked, message(.regionRead, bytes(UInt64(0), UInt32(7), UInt32(256))))
        for device in devices where device !== blocked { try ask(device) }
        #expect(try answers(to: blocked) == count)
      }
      devices[59].close()
      devices[0].close()
      try ask(server.device(names[59]))
      try ask(server.device(names[0]))
    }
  }

  @Suite struct `bounds what it hands out` {
    private let server: Running
    private let root: Client

    init() throws {
      server = try Running()
      root = try server.root()
    }

    @Test func `to 64 descriptors that a client has not read, and goes on when it has`() throws {
      root.send((0..<100).flatMap { message(.openContainer, id: $0) })
      // None is read before all are answered.
      #expect(root.waitForInput(100 * Header.size))
      var errors: [UInt32] = []
      for _ in 0..<100 { errors.append(try #require(try root.receive()).header.error) }
      let refused = UInt32(Errno.tooManyReferences.rawValue)
      #expect(errors == Array(repeating: 0, count: 64) + Array(repeating: refused, count: 36))
      for _ in 0..<200 { try root.openContainer().close() }
    }

    @Test func `and takes back what a client never read`() throws {
      for _ in 0..<100 {
        let client = try server.root()
        client.send(message(.openGroup, bytes(World.group)))
        client.close()
        try root.openGroup().close()
      }
    }

    @Test func `and takes back what a client wanted no reply to`() throws {
      for _ in 0..<10 {
        root.send(message(.openGroup, bytes(World.group), flags: .noReply))
        try root.openGroup().close()
      }
    }

    @Test func `to as many connections as may be, and refuses clients beyond them`() throws {
      var configuration = Configuration.builtIn
      configuration.limits.connections = 4
      let server = try Running(configuration)
      let root = try server.root()
      var open = try (0..<3).map { _ in try root.openContainer() }
      #expect(throws: Errno.tooManyOpenFiles) { try root.openContainer() }
      let another = try Client(path: "\(server.directory.path)/vfio.sock")
      #expect((try? another.receive()) == nil)
      open.removeAll()
      try root.openGroup().close()
      try server.root().openContainer().close()
    }
  }

  @Suite struct `on a device's own loop` {
    private let server: Running

    init() throws { server = try Running() }

    @Test func `goes on where the shared loop left off, in the order of the messages`() throws {
      for _ in 0..<20 {
        let device = try server.socket()
        device.queue(message(.version, version01))
        // Many turns of the shared loop, with more to read after each.
        for id in 1...2000 as ClosedRange<UInt16> {
          device.queue(message(.regionRead, bytes(UInt64(0), UInt32(0), UInt32(4)), id: id))
        }
        for id in 0...2000 as ClosedRange<UInt16> {
          device.sendMore()
          if id == 0 { device.sendUntilStuck() }
          let reply = try #require(try device.receive())
          try #require(reply.header.error == 0 && (id == 0 || reply.header.id == id))
        }
      }
    }

    @Test func `handles what a client sent before it closed without reading the replies`() throws {
      for round in 1...3 as ClosedRange<UInt8> {
        let device = try server.device()
        // More small replies than the socket takes, so that the loop waits in `send`, of which
        // nothing has been sent, when the client dies.
        device.queue(
          (0..<2000).flatMap { _ in message(.regionRead, bytes(UInt64(0), UInt32(0), UInt32(100))) }
        )
        device.queue(message(.regionWrite, bytes(UInt64(0), UInt32(0), UInt32(1)) + [round]))
        device.sendMore()
        try #require(!device.hasUnsent)
        try #require(device.waitUntilFull())
        device.close()
        let next = try server.device()
        let access = bytes(UInt64(0), UInt32(0), UInt32(1))
        #expect(try next.call(.regionRead, access).body == access + [round])
      }
    }
  }
}

/// Sends copies of a message until the server takes no more, and returns how many.
private func fill(_ client: Client, _ message: [UInt8]) throws -> Int {
  for count in 0..<1_000_000 {
    client.queue(message)
    if !client.sendUntilStuck() {
      return count + 1
    }
  }
  throw Errno.timedOut
}

/// How many replies there are, all without errors, to a client that has been stuck.
private func answers(to client: Client) throws -> Int {
  var count = 0
  while true {
    client.sendMore()
    if !client.hasUnsent { client.send(message(.version, id: 0xFFFF)) }
    while let reply = try client.receive() {
      if reply.header.id == 0xFFFF { return count }
      guard reply.header.error == 0 else { throw Errno(rawValue: CInt(reply.header.error)) }
      count += 1
      if client.hasUnsent { break }
    }
  }
}

/// All orders of some values.
private func permutations(of values: [Int]) -> [[Int]] {
  if values.isEmpty { return [[]] }
  return values.flatMap { first in
    permutations(of: values.filter { $0 != first }).map { [first] + $0 }
  }
}
