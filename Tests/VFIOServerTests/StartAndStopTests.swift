import Foundation
import LinuxIO
import SystemPackage
import Testing
import VFIOWire

@testable import VFIOServer

extension `A running server` {
  @Suite struct `that stops` {
    private let server: Running

    init() throws { server = try Running() }

    @Test func `removes its sockets and leaves nothing behind`() throws {
      #expect(
        server.directory.files == [
          "devices/0000:06:0d.0.sock", "devices/0000:07:00.0.sock", "devices/0000:08:00.0.sock",
          "vfio.sock",
        ])
      server.server.stop()
      #expect(server.directory.files.isEmpty)
    }

    @Test func `ends the connections of all clients, whatever they are about`() throws {
      let root = try server.root()
      let (container, group) = (try root.openContainer(), try root.openGroup(26))
      try group.setContainer(container)
      try container.call(.setIOMMU, World.type1v2)
      let opened = try group.openDevice("0000:06:0d.0")
      let token = try root.externalUser(of: group)
      let device = try server.device()
      try ask(device)
      let silent = try server.socket("0000:08:00.0")
      let half = try server.root()
      half.send(Array(message(.openGroup, bytes(World.group)).prefix(18)))
      server.server.stop()
      for client in [root, container, group, opened, token, device, silent, half] {
        #expect((try? client.receive()) == nil)
      }
    }

    @Test func `does not wait for clients that read no replies`() throws {
      let device = try server.device()
      device.queue(
        (0..<100).flatMap { _ in message(.regionRead, bytes(UInt64(0), UInt32(0), UInt32(65536))) })
      device.sendMore()
      #expect(device.waitUntilFull())
      let root = try server.root()
      root.queue(
        (0..<3000).flatMap { _ in message(.getTopology, bytes(UInt32(4096), UInt32(0))) })
      root.sendMore()
      #expect(root.waitUntilFull())
      server.server.stop()
    }

    @Test func `while clients come and go, 20 times`() throws {
      for _ in 0..<20 {
        let server = try Running()
        let path = server.directory.path
        let clients = Thread {
          while let root = try? Client(path: "\(path)/vfio.sock"),
            (try? root.call(.version, version01)) != nil
          {
            _ = try? root.openGroup()
            _ = try? Client(path: "\(path)/devices/\(World.scratch).sock")
              .call(.version, version01)
          }
        }
        clients.start()
        try server.root().openContainer().close()
        server.server.stop()
        while !clients.isFinished { Thread.sleep(forTimeInterval: 0.001) }
      }
    }

    @Test func `makes room for another in its directory`() throws {
      server.server.stop()
      let next = try Server(
        directory: server.directory.path, configuration: .builtIn, logger: quiet)
      try server.root().openGroup().close()
      next.stop()
    }

    @Test func `twice has stopped`() {
      server.server.stop()
      server.server.stop()
    }
  }

  @Suite struct `that starts` {
    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func start(
      in path: String? = nil, _ configuration: Configuration = .builtIn
    ) throws -> Server {
      try Server(directory: path ?? directory.path, configuration: configuration, logger: quiet)
    }

    /// Why a server cannot start.
    private func refusal(
      in path: String? = nil, _ configuration: Configuration = .builtIn
    ) -> String? {
      do {
        try start(in: path, configuration).stop()
        return nil
      } catch {
        return "\(error)"
      }
    }

    @Test func `makes the directories on the way`() throws {
      let server = try start(in: "\(directory.path)/a/b")
      #expect(directory.files.contains("a/b/vfio.sock"))
      server.stop()
    }

    @Test func `is refused a directory that another one serves, which goes on`() throws {
      let server = try start()
      #expect(refusal() == "\(directory.path): another vfiod serves this directory")
      try Client(path: "\(directory.path)/vfio.sock").call(.version, version01)
      server.stop()
    }

    @Test func `replaces the sockets that a dead one left`() throws {
      try FileManager.default.createDirectory(
        atPath: "\(directory.path)/devices", withIntermediateDirectories: true)
      for name in ["vfio.sock", "devices/\(World.scratch).sock", "devices/0000:99:00.0.sock"] {
        _ = try Socket.listen(at: "\(directory.path)/\(name)", mode: 0o600, owner: nil)
      }
      let server = try start()
      try Client(path: "\(directory.path)/vfio.sock").call(.version, version01)
      #expect(!directory.files.contains("devices/0000:99:00.0.sock"))
      server.stop()
    }

    @Test func `is refused a path where there is no socket, and leaves that alone`() throws {
      let path = "\(directory.path)/vfio.sock"
      try "mine".write(toFile: path, atomically: false, encoding: .utf8)
      #expect(refusal() == "\(path): there is a file that is not a socket")
      #expect(directory.files == ["vfio.sock"])
    }

    @Test func `is refused a path where another server listens`() throws {
      let path = "\(directory.path)/vfio.sock"
      let other = try Socket.listen(at: path, mode: 0o600, owner: nil)
      #expect(refusal() == "\(path): another server is listening")
      #expect(try other.accept() != nil)
    }

    @Test func `is refused a path that is too long for a socket`() throws {
      let path = "\(directory.path)/" + String(repeating: "x", count: 100)
      let sentence = try #require(refusal(in: path))
      #expect(sentence.hasSuffix("the path is longer than the 107 bytes that a socket's may have"))
      #expect(directory.files.allSatisfy { !$0.hasSuffix(".sock") })
    }

    @Test func `gives its sockets the mode of their groups, and the root socket to all`() throws {
      var configuration = Configuration.builtIn
      configuration.groups[1].mode = 0o640
      let server = try start(configuration)
      func mode(_ name: String) throws -> Int? {
        try FileManager.default.attributesOfItem(atPath: "\(directory.path)/\(name)")[
          .posixPermissions] as? Int
      }
      #expect(try mode("vfio.sock") == 0o666)
      #expect(try mode("devices/0000:06:0d.0.sock") == 0o600)
      #expect(try mode("devices/\(World.scratch).sock") == 0o640)
      server.stop()
    }

    private func start(_ configuration: Configuration) throws -> Server {
      try start(in: nil, configuration)
    }
  }
}
