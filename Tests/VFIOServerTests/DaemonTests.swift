import Glibc
import LinuxIO
import SystemPackage
import Testing
import VFIOWire

@testable import VFIOServer

extension `A running server` {
  @Suite struct `in a process of its own` {
    @Test func `has no more descriptors after all clients have gone than before`() throws {
      let daemon = try Daemon()
      let root = try daemon.root()
      // What Dispatch and the first connections leave for good.
      try ask(daemon.device())
      try root.openGroup().close()
      let before = try settled(daemon, root)

      let file = try makeMemoryFile("test", size: 1 << 20)
      for _ in 0..<50 {
        let (container, group) = (try root.openContainer(), try root.openGroup())
        try group.setContainer(container)
        try container.call(.setIOMMU, World.type1v2)
        let device = try group.openDevice()
        _ = try root.externalUser(of: group)
        let map = bytes(UInt32(32), UInt32(3), UInt64(0), UInt64(0), UInt64(4096))
        try container.call(.iommuMapDMA, map, with: [file])
        try device.call(
          .deviceGetRegionInfo,
          bytes(UInt32(64), UInt32(0), UInt32(2), UInt32(0), UInt64(0), UInt64(0)))
        try device.call(
          .deviceSetIRQs, bytes(UInt32(20), UInt32(36), UInt32(2), UInt32(0), UInt32(1)),
          with: [EventFD().descriptor])
        // Refused, with descriptors.
        #expect(throws: Errno.fileExists) {
          try container.call(.iommuMapDMA, map, with: [file])
        }
        #expect(throws: Errno.invalidArgument) {
          try device.call(
            .dmaMap, bytes(UInt32(32), UInt32(3), UInt64(0), UInt64(1 << 20), UInt64(1 << 30)),
            with: [file])
        }
        #expect(throws: Errno.invalidArgument) {
          try root.call(.getExternalUser, with: [file, file, file])
        }
        #expect(throws: Errno.invalidArgument) {
          try root.call(.getExternalUser, with: Array(repeating: file, count: 250))
        }
        // Sent with a message that never ends, and with one that wants no reply.
        let other = try daemon.root()
        other.send([1, 2, 3], with: [file])
        root.send(message(.openContainer, flags: .noReply))
      }
      #expect(try daemon.comes(to: before, root))
    }

    @Test func `survives having no descriptors left, and serves when there are some again`() throws
    {
      let daemon = try Daemon(descriptors: 48)
      let root = try daemon.root()
      var open: [Client] = []
      var refused: Errno?
      while refused == nil, open.count < 100 {
        do { open.append(try root.openContainer()) } catch { refused = error as? Errno }
      }
      #expect(refused == .tooManyOpenFiles)
      // Clients are turned away, not left to wait.
      while let another = try? daemon.root() { open.append(another) }
      for _ in 0..<20 {
        #expect(throws: (any Error).self) { try daemon.root() }
      }
      // Descriptors that cannot be taken fail their message and nothing else.
      let file = try Descriptor.null()
      #expect(throws: Errno.invalidArgument) {
        try root.call(.getExternalUser, with: [file, file])
      }
      try root.call(.getTopology, bytes(UInt32(8), UInt32(0)))
      #expect(throws: Errno.tooManyOpenFiles) { try root.openGroup() }

      open.removeAll()
      try root.openGroup().close()
      try daemon.root().openContainer().close()
      try ask(daemon.device())
    }

    @Test func `waits without using the processor while a client is blocked`() throws {
      let daemon = try Daemon()
      let root = try daemon.root()
      root.queue(
        (0..<3000).flatMap { _ in message(.getTopology, bytes(UInt32(4096), UInt32(0))) })
      root.sendMore()
      #expect(root.waitUntilFull())
      let before = daemon.processorTime
      usleep(300_000)
      #expect(daemon.processorTime - before < 0.1)
    }

    @Test func `ends with status 0 at SIGTERM, and leaves no socket, whatever clients do`() throws {
      let daemon = try Daemon()
      let root = try daemon.root()
      let device = try daemon.device()
      root.queue(
        (0..<3000).flatMap { _ in message(.getTopology, bytes(UInt32(4096), UInt32(0))) })
      root.sendMore()
      #expect(root.waitUntilFull())
      try ask(device)
      #expect(daemon.stop() == 0)
      #expect(daemon.directory.files.isEmpty)
    }

    /// The number of descriptors once it stays.
    private func settled(_ daemon: Daemon, _ root: Client) throws -> Int {
      var (last, same) = (daemon.descriptors, 0)
      while same < 50 {
        try root.call(.getTopology, bytes(UInt32(8), UInt32(0)))
        usleep(1000)
        same = daemon.descriptors == last ? same + 1 : 0
        last = daemon.descriptors
      }
      return last
    }
  }
}
