import Testing
import VFIOClient

extension `The client` {
  @Suite struct `A pipeline` {
    let device: Device
    let world: World
    init() throws {
      world = try World()
      device = try world.scratch()
    }

    @Test func `does its accesses in order, and gives each its reply`() throws {
      let loads = try device.pipeline { pipeline in
        (0..<500 as Range<UInt32>).map { value in
          pipeline.store(value, to: .bar(0), at: 0x10)
          return pipeline.load(UInt32.self, from: .bar(0), at: 0x10)
        }
      }
      #expect(try loads.map { try $0.value } == Array(0..<500))
    }

    @Test func `carries any sizes without a deadlock`() throws {
      let bytes = [UInt8](repeating: 0xA5, count: 1 << 20)
      let reads = try device.pipeline { pipeline in
        (0..<4).map { _ in
          pipeline.write(bytes, to: .bar(0), at: 0)
          return pipeline.read(from: .bar(0), at: 0, count: 1 << 20)
        }
      }
      for read in reads { #expect(try read.value == bytes) }
    }

    @Test func `throws its first error, having done the rest`() throws {
      var good: Pending<UInt32>?
      var bad: Pending<UInt32>?
      let error = #expect(throws: VFIOError.self) {
        try device.pipeline { pipeline in
          pipeline.store(5 as UInt32, to: .bar(0), at: 1 << 30)
          bad = pipeline.load(from: .bar(1), at: 0)
          pipeline.store(6 as UInt32, to: .bar(0), at: 0)
          good = pipeline.load(from: .bar(0), at: 0)
        }
      }
      #expect(
        error?.description == "store 4 bytes at 0x40000000 of 0000:07:00.0 bar 0: invalid argument")
      #expect(try good?.value == 6)
      #expect(throws: VFIOError.self) { try bad?.value }
    }

    @Test func `has no values before it has run`() throws {
      try device.pipeline { pipeline in
        let pending = pipeline.load(UInt8.self, from: .config, at: 0)
        #expect(
          errno { () throws(VFIOError) in try pending.value } == .resourceTemporarilyUnavailable)
      }
    }

    @Test func `of a closed device fails, with every access in it`() throws {
      device.close()
      var pending: Pending<UInt8>?
      #expect(
        errno { () throws(VFIOError) in
          try device.pipeline { pending = $0.load(from: .config, at: 0) }
        } == .badFileDescriptor)
      #expect(errno { () throws(VFIOError) in try pending?.value } == .badFileDescriptor)
    }

    @Test func `can be awaited`() async throws {
      let pending = try await device.pipeline { pipeline in
        pipeline.store(77 as UInt16, to: .bar(0), at: 8)
        return pipeline.load(UInt16.self, from: .bar(0), at: 8)
      }
      #expect(try pending.value == 77)
    }
  }
}
