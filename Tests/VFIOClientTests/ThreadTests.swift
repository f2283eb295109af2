import Dispatch
import Testing
import VFIOClient

extension `The client` {
  @Suite struct `Together` {
    let world: World
    init() throws { world = try World() }

    @Test func `eight threads use one device, each getting its own replies`() throws {
      let bar = try world.scratch().region(.bar(0))
      DispatchQueue.concurrentPerform(iterations: 8) { thread in
        for round in 0..<500 as Range<UInt64> {
          let (place, value) = (UInt64(thread) * 8, UInt64(thread) << 32 | round)
          do {
            switch round % 3 {
            case 0: try bar.store(value, at: place)
            case 1: try bar.post(value, at: place)
            default:
              try bar.device.pipeline {
                $0.store(0 as UInt64, to: .bar(0), at: place)
                $0.store(value, to: .bar(0), at: place)
              }
            }
            #expect(try bar.load(UInt64.self, at: place) == value)
            #expect(
              errno { () throws(VFIOError) in try bar.load(UInt8.self, at: .max) }
                == .invalidArgument)
          } catch {
            Issue.record(error)
          }
        }
      }
    }

    @Test func `threads that transfer much and little don't hold each other up`() throws {
      let bar = try world.scratch().region(.bar(0))
      let many = [UInt8](repeating: 7, count: 1 << 20)
      DispatchQueue.concurrentPerform(iterations: 8) { thread in
        for _ in 0..<20 {
          do {
            if thread % 2 == 0 {
              try bar.write(many, at: 0)
            } else {
              #expect(try bar.read(at: 0, count: 1 << 20).count == 1 << 20)
            }
          } catch {
            Issue.record(error)
          }
        }
      }
    }

    @Test func `eight threads open and close groups and devices of their own`() throws {
      let directory = world.directory
      DispatchQueue.concurrentPerform(iterations: 8) { thread in
        for _ in 0..<50 {
          do {
            let vfio = try VFIO.connect(directory: directory)
            let container = try vfio.openContainer()
            let group = try vfio.openGroup(thread % 2 == 0 ? 26 : 27)
            try group.setContainer(container)
            try container.setIOMMU(.type1v2)
            let mapping = try container.map(try Memory(size: 0x1000), at: 0)
            let device = try group.openDevice(thread % 2 == 0 ? edu : scratch)
            #expect(try device.info().flags.contains(.pci))
            group.close()
            withExtendedLifetime(mapping) {}
          } catch {
            // Held by another thread, as the kernel would have it.
            #expect((error as? VFIOError)?.errno == .resourceBusy)
          }
        }
      }
    }

    @Test func `hundreds of tasks use one device`() async throws {
      let vfio = try await VFIO.connect(directory: world.directory)
      let container = try await vfio.openContainer()
      let group = try await vfio.openGroup(27)
      try await group.setContainer(container)
      try await container.setIOMMU(.type1v2)
      let bar = try await group.openDevice(scratch).region(.bar(0))
      try await withThrowingTaskGroup(of: Void.self) { tasks in
        for task in 0..<300 as Range<UInt32> {
          tasks.addTask {
            try await bar.store(task, at: UInt64(task) * 4)
            #expect(try await bar.load(UInt32.self, at: UInt64(task) * 4) == task)
          }
        }
        try await tasks.waitForAll()
      }
      #expect(try await group.status() == [.viable, .containerSet])
    }

    @Test func `a task's error says what failed, as a thread's does`() async throws {
      let vfio = world.vfio
      await #expect(
        throws: VFIOError(operation: "open group 99", errno: .operationNotSupportedByDevice)
      ) {
        _ = try await vfio.openGroup(99)
      }
    }

    @Test func `everything that was opened is closed`() throws {
      func use() throws {
        let (container, group) = try world.group(27)
        let device = try group.openDevice(scratch)
        let memory = try Memory(size: 0x2000)
        let mapping = try container.map(memory, at: 0)
        let interrupts = try device.enableInterrupts(.msix, count: 8)
        _ = try device.region(.bar(2)).mappedAreas()
        _ = try? device.pipeline { $0.load(UInt8.self, from: .bar(0), at: .max) }
        _ = try? container.operation(0x3BFF, descriptors: [try group.descriptor()])
        let user = try world.vfio.externalUser(of: group)
        withExtendedLifetime((mapping, interrupts, user)) {}
      }
      try use()
      // A request finds closed what was closed before it, in the server too.
      _ = try world.vfio.topology()
      let before = try openDescriptors()
      for _ in 0..<20 { try use() }
      // A loop of the server's may hold a socket for a moment longer.
      for _ in 0..<1000 where try openDescriptors() > before { _ = try world.vfio.topology() }
      #expect(try openDescriptors() <= before)
    }
  }
}
