import Dispatch
import Testing
import VFIOClient
import VFIOWire

private func bytes(_ numbers: UInt64...) -> [UInt8] {
  numbers.flatMap { number in (0..<8).map { UInt8(truncatingIfNeeded: number >> (8 * $0)) } }
}

extension `The client` {
  @Suite struct `A device's client` {
    @Test func `answers DMA_READ and DMA_WRITE from memory mapped by message, while it waits`()
      throws
    {
      let memory = try Memory(size: 0x1000)
      try memory.write([1, 2, 3, 4], at: 0xFFC)
      try Peer.play { peer in
        let (map, body) = try peer.receive()
        #expect(map.command == .dmaMap && body.count == 32)
        try peer.reply(to: map)
        let (reset, _) = try peer.receive()
        let (header, read) = try peer.command(11, bytes(0x8FFC, 4))
        #expect(header.id == 0x7777 && header.flags == .reply)
        #expect(read == bytes(0x8FFC, 4) + [1, 2, 3, 4])
        #expect(try peer.command(12, bytes(0x8000, 2) + [8, 9]).1 == bytes(0x8000, 2))
        try peer.reply(to: reset)
      } _: { device in
        let mapping = try device.mapByMessage(memory, at: 0x8000)
        try device.reset()
        #expect(try memory.read(at: 0, count: 2) == [8, 9])
        withExtendedLifetime(mapping) {}
      }
    }

    @Test func `refuses the server's other commands, and the stream goes on`() throws {
      let memory = try Memory(size: 0x1000)
      try Peer.play { peer in
        let (map, _) = try peer.receive()
        try peer.reply(to: map)
        let (reset, _) = try peer.receive()
        func error(_ number: UInt16, _ body: [UInt8]) throws -> Errno {
          let (header, body) = try peer.command(number, body)
          #expect(header.flags == [.reply, .error] && body.isEmpty)
          return Errno(rawValue: CInt(header.error))
        }
        #expect(try error(99, []) == .notSupported)
        #expect(try error(11, bytes(0x9000, 1)) == .badAddress)
        #expect(try error(11, bytes(0x8FFF, 2)) == .badAddress)
        #expect(try error(11, bytes(.max, 2)) == .badAddress)
        #expect(try error(11, bytes(0x8000, .max)) == .invalidArgument)
        #expect(try error(12, bytes(0x8000, 1) + [1]) == .badAddress)  // mapped for reading alone
        #expect(try error(12, bytes(0x8000, 2) + [1]) == .badAddress)
        #expect(try error(11, [1, 2, 3]) == .protocolError)
        try peer.reply(to: reset)
      } _: { device in
        let mapping = try device.mapByMessage(memory, at: 0x8000, access: .read)
        try device.reset()
        withExtendedLifetime(mapping) {}
      }
    }

    @Test func `takes a reply that comes byte by byte`() throws {
      try Peer.play { peer in
        let (request, body) = try peer.receive()
        try peer.reply(to: request, body + [1, 2, 3, 4], piece: 1)
      } _: { device in
        let value: UInt32 = try device.region(.bar(0)).load(at: 0)
        #expect(value == 0x0403_0201)
      }
    }

    @Test(arguments: [0, 15, 16, 19, 21])
    func `refuses a reply of the wrong size with EPROTO`(size: Int) throws {
      try Peer.play { peer in
        let (request, _) = try peer.receive()
        try peer.reply(to: request, [UInt8](repeating: 0, count: size))
      } _: { device in
        #expect(
          errno { () throws(VFIOError) in try device.region(.bar(0)).read(at: 0, count: 4) }
            == .protocolError)
      }
    }

    @Test func `refuses another request's reply with EPROTO, and whatever comes then`() throws {
      try Peer.play { peer in
        let (request, _) = try peer.receive()
        try peer.send(
          Header(id: request.id &+ 1, command: request.command, messageSize: 0, flags: .reply))
      } _: { device in
        for _ in 0..<2 {
          #expect(errno { () throws(VFIOError) in try device.reset() } == .protocolError)
        }
      }
    }

    @Test(arguments: [0, 15, UInt32.max])
    func `refuses a message of an impossible size with EPROTO`(size: UInt32) throws {
      try Peer.play { peer in
        let (request, _) = try peer.receive()
        try peer.send(
          Header(id: request.id, command: request.command, messageSize: 0, flags: .reply),
          size: size)
      } _: { device in
        #expect(errno { () throws(VFIOError) in try device.reset() } == .protocolError)
      }
    }

    @Test func `is told ECONNRESET when the server goes within a message`() throws {
      try Peer.play { peer in
        let (request, _) = try peer.receive()
        try peer.send(
          Header(id: request.id, command: request.command, messageSize: 0, flags: .reply), [1],
          size: 100)
      } _: { device in
        #expect(errno { () throws(VFIOError) in try device.reset() } == .connectionReset)
      }
    }

    @Test func `refuses more descriptors than a message may carry, and goes on`() throws {
      try Peer.play { peer in
        let (reset, _) = try peer.receive()
        try peer.reply(to: reset)
      } _: { device in
        let own = try device.descriptor()
        let error = errno { () throws(VFIOError) in
          try device.operation(13, descriptors: Array(repeating: own, count: 254))
        }
        #expect(error == .invalidArgument)
        try device.reset()
      }
    }

    @Test func `lets the next thread read when the one that read has its reply`() throws {
      try Peer.play { peer in
        for _ in 0..<200 {
          let (first, _) = try peer.receive()
          let (second, _) = try peer.receive()
          try peer.reply(to: first)
          try peer.reply(to: second)
        }
      } _: { device in
        let done = DispatchSemaphore(value: 0)
        for _ in 0..<200 {
          DispatchQueue.global().async {
            #expect(errno { () throws(VFIOError) in try device.reset() } == nil)
            done.signal()
          }
          try device.reset()
          done.wait()
        }
      }
    }

    @Test func `survives capabilities that lead nowhere, in circles and out of bounds`() throws {
      func u32(_ numbers: UInt32...) -> [UInt8] {
        numbers.flatMap { number in (0..<4).map { UInt8(truncatingIfNeeded: number >> (8 * $0)) } }
      }
      // argsz, flags MMAP and CAPS, index, cap_offset, size, offset, then the chain.
      func info(at first: UInt32, _ chain: [UInt8]) -> [UInt8] {
        u32(32, 4 | 8, 0, first) + bytes(0x2000, 0) + chain
      }
      let sparse: UInt32 = 1 | 1 << 16
      let answers = [
        info(at: 4096, []), info(at: .max, []), info(at: 30, []),
        info(at: 32, u32(sparse, 0, .max, 0)),
        info(at: 32, u32(sparse, 0, 1, 0) + bytes(.max, 2)),
        info(at: 32, u32(sparse, 0, 1, 0) + bytes(0x1000, 0x1001)),
        info(at: 32, u32(9, 32)),
      ]
      try Peer.play { peer in
        for answer in answers { try peer.reply(to: try peer.receive().0, answer) }
      } _: { device in
        let errors = answers.map { _ in
          errno { () throws(VFIOError) in try device.regionInfo(.bar(0)) }
        }
        #expect(errors == Array(repeating: .protocolError, count: 6) + [nil])
      }
    }
  }
}
