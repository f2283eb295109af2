import Glibc
import Locks
import SystemPackage
import Testing
import VFIOCore
import VFIOPCI

@testable import VFIODevices

/// The outcome of a change of state, once it is there.
final class Change: Sendable {
  private let result = Mutex<Result<Void, Errno>?>(nil)
  var outcome: Result<Void, Errno>? { result.withLock { $0 } }
  var isDone: Bool { outcome != nil }

  init(_ device: any MigratableDevice, _ state: MigrationState) {
    device.setMigrationState(state) { [self] outcome in result.withLock { $0 = outcome } }
  }
}

extension MigratableDevice {
  /// Changes the state of a device that has nothing to finish.
  func go(_ state: MigrationState) throws {
    try #require(Change(self, state).outcome).get()
  }

  /// All there is to be read for now, in pieces.
  func readAll(_ piece: Int = 4096) throws -> [UInt8] {
    var all: [UInt8] = []
    while true {
      let bytes = try readMigrationData(piece)
      all += bytes
      if bytes.count < piece { return all }
    }
  }

  func writeAll(_ bytes: [UInt8], _ piece: Int = 4096) throws {
    for start in stride(from: 0, to: bytes.count, by: piece) {
      try writeMigrationData(bytes.span.extracting(start..<min(start + piece, bytes.count)))
    }
  }
}

/// A device that was opened, with memory decoding and bus mastering on.
func migratable(_ model: String, _ memory: ClientMemory = ClientMemory([])) throws
  -> any MigratableDevice
{
  let device = try #require(
    DeviceModels.make(model, DeviceOptions(), memory: Memory.make) as? any MigratableDevice)
  try device.open(memory.dma, keepingState: false)
  try device.set(7, 4, UInt16(0x0006))
  return device
}

@Suite struct MigrationTests {
  private typealias R = EduRegister
  private let memory = ClientMemory((0..<16384).map { UInt8(truncatingIfNeeded: $0 * 7 + 3) })

  /// Moves a device's state to another one by stop-copy alone.
  private func move(
    _ source: any MigratableDevice, to destination: any MigratableDevice, piece: Int = 4096
  ) throws {
    try source.go(.stopCopy)
    try destination.go(.resuming)
    try destination.writeAll(try source.readAll(piece), piece)
    try source.go(.stop)
    try destination.go(.running)
  }

  // MARK: States

  @Test func `a device runs at first, and goes where it is told`() throws {
    let edu = try migratable("edu")
    #expect(edu.migrationState == .running)
    for state in [.preCopy, .stopCopy, .stop, .resuming, .running, .stop] as [MigrationState] {
      try edu.go(state)
      #expect(edu.migrationState == state)
    }
  }

  @Test func `a state that can't be reached leaves the device where it is`() throws {
    let edu = try migratable("edu")
    #expect(throws: Errno.invalidArgument) { try edu.go(.error) }
    #expect(edu.migrationState == .running)
    try edu.go(.stopCopy)
    #expect(throws: Errno.invalidArgument) { try edu.go(.preCopy) }
    #expect(edu.migrationState == .stopCopy)
  }

  @Test func `data can be read in PRE_COPY and STOP_COPY, and written in RESUMING`() throws {
    let edu = try migratable("edu")
    for state in [.running, .preCopy, .stopCopy, .stop, .resuming] as [MigrationState] {
      try edu.go(state)
      let reads = state == .preCopy || state == .stopCopy
      #expect(((try? edu.readMigrationData(16)) != nil) == reads)
      let nothing: [UInt8] = []
      let writes = (try? edu.writeMigrationData(nothing.span)) != nil
      #expect(writes == (state == .resuming))
    }
  }

  @Test func `a reset makes a device run from any state`() throws {
    let edu = try migratable("edu")
    for state in [.preCopy, .stopCopy, .stop, .resuming] as [MigrationState] {
      try edu.go(state)
      try edu.reset()
      #expect(edu.migrationState == .running)
      try edu.set(0, R.liveness, UInt32(1))
    }
  }

  @Test func `a client that opens the device through its group finds it running`() throws {
    let edu = try migratable("edu")
    try edu.go(.stop)
    edu.release()
    try edu.open(memory.dma, keepingState: true)
    #expect(edu.migrationState == .stop)
    edu.release()
    try edu.open(memory.dma, keepingState: false)
    #expect(edu.migrationState == .running)
  }

  // MARK: Stopped

  @Test(arguments: ["edu", "scratch"])
  func `what is stopped refuses writes to its BARs and answers all else`(_ model: String) throws {
    let device = try migratable(model)
    try device.set(0, 4, UInt32(5))
    let kept = try device.bytes(0, 4, 4)
    for state in [.stop, .stopCopy, .resuming] as [MigrationState] {
      try device.go(state)
      #expect(throws: Errno.invalidArgument) { try device.set(0, 4, UInt32(77)) }
      #expect(try device.bytes(0, 4, 4) == kept)
      try device.set(7, 0x3C, UInt8(9))
      #expect(try device.get(7, 0x3C) == UInt8(9))
    }
    try device.go(.running)
    try device.set(0, 4, UInt32(77))
  }

  @Test func `an interrupt that is asserted while the device is stopped comes when it runs`() throws
  {
    let edu = try migratable("edu")
    try edu.set(0, R.raise, UInt32(1))
    try edu.go(.stop)
    let trigger = Trigger()
    try edu.trigger(0, .triggers([trigger]))
    #expect(trigger.count == 0)
    try edu.go(.running)
    #expect(trigger.count == 1)
  }

  @Test(arguments: [1, 3] as [UInt64])
  func `a copy that has begun is finished before the device is stopped`(_ command: UInt64) throws {
    let edu = try migratable("edu", memory)
    memory.setClosed(true)
    try edu.set(0, R.source, UInt64(command == 1 ? 0 : 0x40000))
    try edu.set(0, R.destination, UInt64(command == 1 ? 0x40000 : 8192))
    try edu.set(0, R.count, UInt64(64))
    try edu.set(0, R.command, command)
    #expect(eventually { memory.arrived == 1 })
    let change = Change(edu, .stopCopy)
    #expect(!change.isDone)
    #expect(throws: Errno.invalidArgument) { try edu.set(0, R.raise, UInt32(1)) }
    #expect(throws: Errno.resourceBusy) { try edu.go(.stop) }
    memory.setClosed(false)
    #expect(eventually { change.isDone })
    #expect(edu.migrationState == .stopCopy)
    #expect(try edu.get(0, R.command) == command & ~1)
  }

  @Test func `a reset ends a change of state that waits`() throws {
    let edu = try migratable("edu", memory)
    memory.setClosed(true)
    try edu.set(0, R.destination, UInt64(0x40000))
    try edu.set(0, R.count, UInt64(64))
    try edu.set(0, R.command, UInt64(1))
    let change = Change(edu, .stop)
    try edu.reset()
    memory.setClosed(false)
    #expect(throws: Errno.canceled) { try #require(change.outcome).get() }
    #expect(edu.migrationState == .running)
  }

  // MARK: What moves

  @Test(arguments: [1, 15, 16, 17, 100, 4096, 1 << 20])
  func `edu moves with registers, buffer and configuration, whatever is read at a time`(
    _ piece: Int
  ) throws {
    let source = try migratable("edu", memory)
    try source.set(0, R.liveness, UInt32(0x1234_5678))
    try source.set(0, R.status, UInt32(0x80))
    try source.set(0, R.raise, UInt32(0xA0))
    try source.set(0, R.destination, UInt64(0x40000))
    try source.set(0, R.count, UInt64(4096))
    try source.set(0, R.command, UInt64(1))
    #expect(try eventually { try source.get(0, R.command, as: UInt64.self) & 1 == 0 })
    try source.set(7, 0x3C, UInt8(11))

    let theirs = ClientMemory([UInt8](repeating: 0, count: 8192))
    let destination = try migratable("edu", theirs)
    try destination.set(0, R.liveness, UInt32(99))
    try move(source, to: destination, piece: piece)
    for register in [R.liveness, R.factorial, R.status, R.causes] {
      #expect(try destination.bytes(0, register, 4) == source.bytes(0, register, 4))
    }
    #expect(try destination.bytes(7, 0, 256) == source.bytes(7, 0, 256))
    try destination.set(0, R.source, UInt64(0x40000))
    try destination.set(0, R.destination, UInt64(0))
    try destination.set(0, R.command, UInt64(3))
    #expect(try eventually { try destination.get(0, R.command, as: UInt64.self) & 1 == 0 })
    #expect(try theirs.bytes(0, 4096) == memory.bytes(0, 4096))
  }

  @Test func `the level of INTx moves, and comes at the destination when that runs`() throws {
    let source = try migratable("edu")
    try source.set(0, R.raise, UInt32(1))
    let destination = try migratable("edu")
    let trigger = Trigger()
    try destination.trigger(0, .triggers([trigger]))
    try move(source, to: destination)
    #expect(trigger.count == 1)
    #expect(try destination.get(7, 6, as: UInt16.self) & 8 == 8)
  }

  @Test func `the MSI-X table moves`() throws {
    let source = try migratable("scratch")
    try source.set(4, 0x10, UInt64(0xFEE0_0000))
    try source.set(4, 0x1C, UInt32(0))
    let destination = try migratable("scratch")
    try move(source, to: destination)
    #expect(try destination.bytes(4, 0, 4096) == source.bytes(4, 0, 4096))
  }

  @Test(arguments: [1000, 4096, 1 << 20])
  func `memory moves, and what is written during pre-copy moves again`(_ piece: Int) throws {
    let source = try migratable("scratch")
    let destination = try migratable("scratch")
    let pattern = (0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 12) }
    try source.set(0, 0, pattern)
    try source.set(2, 0xFFF, [1, 2, 3])
    try source.go(.preCopy)
    let first = try source.readAll(piece)
    #expect(first.count > 3 << 20)
    try source.set(0, 0x5FFF, [0xAA, 0xBB])
    try source.set(2, 0x1F_FFFF, [0xCC])
    let second = try source.readAll(piece)
    #expect((3 * 4096..<4 * 4096).contains(second.count))
    try source.set(0, 0xF_FFFF, [0xDD])
    try source.go(.stopCopy)
    let last = try source.readAll(piece)
    #expect((4096..<3 * 4096).contains(last.count))

    try destination.go(.resuming)
    try destination.writeAll(first + second + last, piece)
    try destination.go(.running)
    for (region, size) in [(0, 1 << 20), (2, 2 << 20)] as [(UInt32, Int)] {
      #expect(try destination.bytes(region, 0, size) == source.bytes(region, 0, size))
    }
  }

  @Test func `memory that a client may have mapped is read whole once the device has stopped`()
    throws
  {
    let source = try migratable("scratch")
    let destination = try migratable("scratch")
    let mapped = try #require(try source.region(2).memory)
    try source.go(.preCopy)
    let before = try source.readAll()
    try mapped.write([0x77].span, at: 0x10_0000)
    try source.go(.stopCopy)
    try destination.go(.resuming)
    try destination.writeAll(before + source.readAll())
    try destination.go(.running)
    #expect(try destination.get(2, 0x10_0000) == UInt8(0x77))
  }

  @Test func `a client that has the destination's memory mapped sees what was moved`() throws {
    let source = try migratable("scratch")
    let destination = try migratable("scratch")
    let mapped = try #require(try destination.region(2).memory)
    try source.set(2, 0x2000, [0x66])
    try move(source, to: destination)
    var byte: [UInt8] = [0]
    var span = byte.mutableSpan
    try mapped.read(at: 0x2000, into: &span)
    #expect(byte == [0x66])
  }

  @Test func `a pre-copy that is given up begins anew`() throws {
    let source = try migratable("scratch")
    let destination = try migratable("scratch")
    try source.set(0, 0, [1, 2, 3])
    try source.go(.preCopy)
    _ = try source.readMigrationData(1000)
    try source.go(.running)
    try source.go(.preCopy)
    let bytes = try source.readAll()
    try source.go(.stopCopy)
    try destination.go(.resuming)
    try destination.writeAll(bytes + source.readAll())
    try destination.go(.running)
    #expect(try destination.bytes(0, 0, 3) == [1, 2, 3])
  }

  @Test func `writes from many sides during a migration are all moved or all refused`() throws {
    let source = try migratable("scratch")
    let destination = try migratable("scratch")
    let written = Mutex<[UInt64: UInt32]>([:])
    let running = Mutex(4)
    for writer in 0..<4 as Range<UInt64> {
      let thread = Thread {
        var number: UInt32 = 0
        while true {
          let place = 4 * (UInt64(number) * 4 + writer) % (1 << 20)
          guard (try? source.set(0, place, number)) != nil else { break }
          written.withLock { $0[place] = number }
          number += 1
        }
        running.withLock { $0 -= 1 }
      }
      thread.start()
    }
    #expect(eventually { written.withLock { $0.count > 100 } })
    try source.go(.preCopy)
    var bytes = try source.readAll()
    let change = Change(source, .stopCopy)
    #expect(eventually { change.isDone })
    bytes += try source.readAll()
    #expect(eventually { running.withLock { $0 == 0 } })
    try destination.go(.resuming)
    try destination.writeAll(bytes)
    try destination.go(.running)
    let lost = try written.withLock { $0 }.filter { place, number in
      try destination.get(0, place) != number
    }
    #expect(lost.isEmpty)
  }

  // MARK: What is refused

  /// What edu gives in STOP_COPY.
  private func state(of model: String = "edu") throws -> [UInt8] {
    let device = try migratable(model)
    try device.go(.stopCopy)
    return try device.readAll()
  }

  /// Whether a device takes a state; if not, it must be in ERROR, unharmed, and a reset must lead out.
  private func takes(_ bytes: [UInt8], _ model: String = "edu") throws -> Bool {
    let device = try migratable(model)
    try device.set(0, 4, UInt32(0xABCD))
    let before = try device.bytes(0, 4, 4)
    try device.go(.resuming)
    let isWritten = (try? device.writeAll(bytes)) != nil
    let change = Change(device, .stop)
    guard case .failure(let error) = try #require(change.outcome) else { return isWritten }
    #expect(error == .invalidArgument)
    #expect(device.migrationState == .error)
    #expect(try device.bytes(0, 4, 4) == before)
    #expect(throws: Errno.invalidArgument) { try device.go(.running) }
    try device.reset()
    #expect(device.migrationState == .running)
    return false
  }

  @Test func `a state that isn't whole is refused`() throws {
    let state = try state()
    #expect(try takes(state))
    for count in [1, 8, 15, 16, 17, 31, 32, 100, state.count - 16, state.count - 1] {
      #expect(try !takes(Array(state.prefix(count))))
    }
  }

  @Test func `a state that lacks memory is refused`() throws {
    let scratch = try migratable("scratch")
    try scratch.go(.preCopy)
    _ = try scratch.readAll()
    try scratch.go(.stopCopy)
    #expect(try !takes(scratch.readAll(), "scratch"))
  }

  @Test func `bytes behind the end are refused`() throws {
    let state = try state()
    #expect(try !takes(state + [0]))
    #expect(try !takes(state + state))
  }

  @Test func `another magic, version or model is refused`() throws {
    for place in [0, 8, 12, 14] {
      var state = try state()
      state[place] ^= 1
      #expect(try !takes(state))
    }
    #expect(try !takes(try state(of: "scratch")))
  }

  @Test func `a record that comes twice or isn't known is refused`() throws {
    let state = try state()
    let config = Array(state[16..<16 + 16 + 256])
    #expect(try !takes(Array(state.prefix(16)) + config + state.dropFirst(16)))
    var unknown = state
    unknown[16] = 0x7F
    #expect(try !takes(unknown))
  }

  @Test func `configuration space that is another function's is refused`() throws {
    var state = try state()
    state[32] ^= 0xFF  // the vendor
    #expect(try !takes(state))
  }

  @Test func `a device that is given nothing stays as it is`() throws {
    let edu = try migratable("edu")
    try edu.set(0, R.liveness, UInt32(5))
    let before = try edu.bytes(0, R.liveness, 4)
    try edu.go(.resuming)
    try edu.go(.running)
    #expect(try edu.bytes(0, R.liveness, 4) == before)
  }

  @Test func `no state harms the server, however wrong`() throws {
    var random = SystemRandomNumberGenerator()
    let good = try state()
    let device = try migratable("edu", memory)
    for _ in 0..<300 {
      var bytes = good
      for _ in 0..<Int.random(in: 1...3, using: &random) {
        bytes[Int.random(in: 0..<bytes.count, using: &random)] = .random(
          in: 0...255, using: &random)
      }
      // The work of the round before may not have ended yet.
      let change = Change(device, .resuming)
      #expect(eventually { change.isDone })
      try? device.writeAll(bytes, .random(in: 1...5000, using: &random))
      if (try? device.go(.running)) == nil { try device.reset() }
      try device.set(7, 4, UInt16(0x0006))
      try device.set(0, R.factorial, UInt32(5))
      try device.set(0, R.command, UInt64(3))
      try device.reset()
    }
  }

  // MARK: The sample's timer

  @Test func `a timer that is set moves, and fires where the device runs`() throws {
    let source = try migratable("vfio-user-sample")
    let destination = try migratable("vfio-user-sample")
    let (here, there) = (Trigger(), Trigger())
    try source.trigger(0, .triggers([here]))
    try destination.trigger(0, .triggers([there]))
    try source.set(0, 0, UInt64(4_000_000_000))
    try source.go(.stopCopy)
    let state = try source.readAll()
    // Another time, which has passed, in place of the last eight bytes before the flag and the end.
    let due = UInt64(4_000_000_000)
    let encoded = (0..<8).map { UInt8(truncatingIfNeeded: due >> (8 * $0)) }
    let place = try #require(
      state.indices.last { Array(state[$0...].prefix(8)) == encoded })
    try destination.go(.resuming)
    try destination.writeAll(
      Array(state[..<place]) + [1, 0, 0, 0, 0, 0, 0, 0] + state[(place + 8)...])
    try destination.go(.stop)
    #expect(there.count == 0)
    try destination.go(.running)
    #expect(eventually { there.count == 1 })
    #expect(here.count == 0)
  }

  @Test func `a timer that has fired doesn't fire again elsewhere`() throws {
    let source = try migratable("vfio-user-sample")
    let destination = try migratable("vfio-user-sample")
    let (here, there) = (Trigger(), Trigger())
    try source.trigger(0, .triggers([here]))
    try source.set(0, 0, UInt64(1))
    #expect(eventually { here.count == 1 })
    let stopped = Change(source, .stop)
    #expect(eventually { stopped.isDone })
    try move(source, to: destination)
    try destination.trigger(0, .triggers([there]))
    // The level moves with the device; the timer, which would raise it again, doesn't.
    #expect(there.count == 1)
    try destination.trigger(0, .none, action: .unmask)
    #expect(there.count == 2)
  }

  @Test func `a timer can be set again and again, and fires once, at the last time`() throws {
    let sample = try migratable("vfio-user-sample")
    let trigger = Trigger()
    try sample.trigger(0, .triggers([trigger]))
    for time in 0..<10_000 as Range<UInt64> { try sample.set(0, 0, 4_000_000_000 - time) }
    try sample.set(0, 0, UInt64.max)
    #expect(trigger.count == 0)
    try sample.set(0, 0, UInt64(1))
    #expect(eventually { trigger.count == 1 })
  }
}
