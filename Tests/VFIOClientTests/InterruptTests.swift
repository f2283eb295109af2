import Testing
import VFIOClient

extension `The client` {
  @Suite struct `An interrupt` {
    let world: World
    let device: Device
    init() throws {
      world = try World()
      device = try world.scratch()
    }

    @Test func `comes with a count`() throws {
      let interrupt = try device.enableInterrupt(.msix, 3)
      #expect(interrupt.count() == 0)
      try interrupt.trigger()
      try interrupt.trigger()
      #expect(try interrupt.wait() == 2)
      #expect(interrupt.count() == 0)
    }

    @Test func `that doesn't come gives 0 after the timeout`() throws {
      let interrupt = try device.enableInterrupt(.msix)
      #expect(try interrupt.wait(timeout: .milliseconds(20)) == 0)
    }

    @Test func `is one of several`() throws {
      let interrupts = try device.enableInterrupts(.msix, count: 8)
      #expect(interrupts.map(\.index) == Array(0..<8))
      for interrupt in interrupts where interrupt.index % 2 == 1 { try interrupt.trigger() }
      #expect(interrupts.map { $0.count() } == [0, 1, 0, 1, 0, 1, 0, 1])
    }

    @Test func `that the device hasn't got is EINVAL`() throws {
      let error = #expect(throws: VFIOError.self) { _ = try device.enableInterrupt(.msix, 8) }
      #expect(error?.description == "enable msi-x 8 of 0000:07:00.0: invalid argument")
      #expect(
        errno { () throws(VFIOError) in try device.enableInterrupt(.msi) } == .invalidArgument)
    }

    @Test func `that goes frees the device for another kind`() throws {
      func enableBriefly() throws {
        _ = try device.enableInterrupts(.msix, count: 2)
      }
      try enableBriefly()
      let line = try device.enableInterrupt(.intx)
      #expect(
        errno { () throws(VFIOError) in try device.enableInterrupt(.msix) } == .invalidArgument)
      line.disable()
      line.disable()
      #expect(try device.enableInterrupt(.msix).kind == .msix)
    }

    @Test func `that is disabled isn't signalled, and the others of its kind are`() throws {
      let interrupts = try device.enableInterrupts(.msix, count: 2)
      interrupts[0].disable()
      try interrupts[0].trigger()
      try interrupts[1].trigger()
      #expect(interrupts.map { $0.count() } == [0, 1])
    }

    @Test func `enabled anew isn't disabled with the old one`() throws {
      var old: Interrupt? = try device.enableInterrupt(.msix)
      let new = try device.enableInterrupt(.msix)
      withExtendedLifetime(old) {}
      old = nil
      try new.trigger()
      #expect(new.count() == 1)
    }

    @Test func `of the line masks itself until it is unmasked`() throws {
      let (_, device) = try world.edu()
      let bar = device.region(.bar(0))
      let line = try device.enableInterrupt(.intx)
      try bar.store(1 as UInt32, at: 0x60)
      #expect(try line.wait(timeout: .seconds(10)) == 1)
      try bar.store(2 as UInt32, at: 0x60)
      #expect(line.count() == 0)
      try line.unmask()
      #expect(line.count() == 1)
      try bar.store(3 as UInt32, at: 0x64)
      try line.mask()
      try bar.store(1 as UInt32, at: 0x60)
      #expect(line.count() == 0)
    }

    @Test func `keeps the device open`() throws {
      func enable() throws -> Interrupt { try world.edu().1.enableInterrupt(.msi) }
      let interrupt = try enable()
      try interrupt.trigger()
      #expect(interrupt.count() == 1)
    }

    @Test func `is awaited by a task`() async throws {
      let interrupt = try await device.enableInterrupt(.msix)
      async let count = interrupt.wait()
      try await interrupt.trigger()
      #expect(try await count == 1)
    }

    @Test func `awaited with a timeout gives 0 when it has passed`() async throws {
      let interrupt = try await device.enableInterrupt(.msix)
      #expect(try await interrupt.wait(timeout: .milliseconds(20)) == 0)
    }

    @Test func `is a sequence of counts that ends when its task is cancelled`() async throws {
      let interrupt = try await device.enableInterrupt(.msix)
      let (seen, continuation) = AsyncStream.makeStream(of: UInt64.self)
      let task = Task {
        for try await count in interrupt { continuation.yield(count) }
        continuation.finish()
      }
      var counts = seen.makeAsyncIterator()
      for _ in 0..<3 {
        try await interrupt.trigger()
        #expect(await counts.next() == 1)
      }
      task.cancel()
      #expect(await counts.next() == nil)
      try await task.value
    }

    @Test func `wakes its own task of many, and none that was cancelled before`() async throws {
      let interrupts = try await device.enableInterrupts(.msix, count: 8)
      try await withThrowingTaskGroup(of: UInt64.self) { group in
        for interrupt in interrupts {
          group.addTask { try await interrupt.wait() }
        }
        for interrupt in interrupts { try await interrupt.trigger() }
        for try await count in group { #expect(count == 1) }
      }
      let task = Task {
        while !Task.isCancelled { await Task.yield() }
        return try await interrupts[0].wait()
      }
      task.cancel()
      await #expect(throws: VFIOError(operation: "wait for msi-x 0", errno: .canceled)) {
        try await task.value
      }
    }
  }
}
