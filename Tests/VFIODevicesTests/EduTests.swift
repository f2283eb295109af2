import Dispatch
import SystemPackage
import Testing
import VFIOCore
import VFIOPCI

@testable import VFIODevices

/// The registers of docs/specs/edu.rst.
enum EduRegister {
  static let identification: UInt64 = 0x00
  static let liveness: UInt64 = 0x04
  static let factorial: UInt64 = 0x08
  static let status: UInt64 = 0x20
  static let causes: UInt64 = 0x24
  static let raise: UInt64 = 0x60
  static let acknowledge: UInt64 = 0x64
  static let source: UInt64 = 0x80
  static let destination: UInt64 = 0x88
  static let count: UInt64 = 0x90
  static let command: UInt64 = 0x98
}

@Suite struct EduTests {
  typealias R = EduRegister
  private let edu: any DeviceOperations
  private let trigger = Trigger()

  init() throws {
    edu = try DeviceModels.make("edu", DeviceOptions(), memory: Memory.make)
    try edu.open(ClientMemory([]).dma, keepingState: false)
  }

  private func compute(_ number: UInt32) throws -> UInt32 {
    try edu.set(0, R.factorial, number)
    #expect(try eventually { try edu.get(0, R.status, as: UInt32.self) & 1 == 0 })
    return try edu.get(0, R.factorial)
  }

  @Test func `it has one BAR of 1 MiB that can't be mapped`() throws {
    let bar = try edu.region(0)
    #expect(bar.size == 1 << 20)
    #expect(bar.readable && bar.writable && bar.mappable.isEmpty && bar.memory == nil)
    for index in [1, 2, 3, 4, 5, 6, 8] as [UInt32] { #expect(try edu.region(index).size == 0) }
  }

  @Test func `it identifies itself as 0x010000ed`() throws {
    #expect(try edu.get(0, R.identification) == UInt32(0x0100_00ED))
    try edu.set(0, R.identification, UInt32(0))
    #expect(try edu.get(0, R.identification) == UInt32(0x0100_00ED))
  }

  @Test func `liveness inverts what is written`() throws {
    try edu.set(0, R.liveness, UInt32(0x1234_5678))
    #expect(try edu.get(0, R.liveness) == UInt32(0xEDCB_A987))
  }

  @Test(
    arguments: [
      (0, 1), (1, 1), (5, 120), (12, 479_001_600), (13, 1_932_053_504), (33, 2_147_483_648),
      (34, 0), (.max, 0),
    ] as [(UInt32, UInt32)]) func `a factorial wraps at 32 bits`(
      _ number: UInt32, _ result: UInt32
    ) throws
  {
    #expect(try compute(number) == result)
  }

  @Test func `status keeps only the bit that asks for an interrupt`() throws {
    try edu.set(0, R.status, UInt32.max)
    #expect(try edu.get(0, R.status) == UInt32(0x80))
    try edu.set(0, R.status, UInt32(0x01))
    #expect(try edu.get(0, R.status) == UInt32(0))
  }

  @Test func `a factorial raises cause 1 if status asks for it`() throws {
    _ = try compute(3)
    #expect(try edu.get(0, R.causes) == UInt32(0))
    try edu.set(0, R.status, UInt32(0x80))
    _ = try compute(3)
    #expect(try edu.get(0, R.causes) == UInt32(1))
  }

  @Test func `causes are raised and acknowledged by bits, and not written`() throws {
    try edu.set(0, R.raise, UInt32(0xF0))
    try edu.set(0, R.raise, UInt32(0x0F))
    try edu.set(0, R.causes, UInt32(0))
    #expect(try edu.get(0, R.causes) == UInt32(0xFF))
    try edu.set(0, R.acknowledge, UInt32(0x3C))
    #expect(try edu.get(0, R.causes) == UInt32(0xC3))
  }

  @Test func `raise and acknowledge read as all ones`() throws {
    #expect(try edu.get(0, R.raise) == UInt32.max)
    #expect(try edu.get(0, R.acknowledge) == UInt32.max)
  }

  @Test(
    arguments: [
      (0x00, 1), (0x00, 2), (0x00, 8), (0x00, 16), (0x02, 4), (0x04, 8), (0x08, 3), (0x20, 8),
      (0x80, 1), (0x80, 2), (0x80, 16), (0x84, 4), (0x82, 8), (0x98, 5), (0x0C, 4), (0xFFFFC, 4),
    ] as [(UInt64, Int)])
  func `an access of another size or place reads as all ones and writes nothing`(
    _ offset: UInt64, _ count: Int
  ) throws {
    let before = try registers()
    let ones = [UInt8](repeating: 0xFF, count: count)
    try edu.set(0, offset, [UInt8](repeating: 0x5A, count: count))
    #expect(try edu.bytes(0, offset, count) == ones)
    #expect(try registers() == before)
  }

  private func registers() throws -> [UInt64] {
    try [R.source, R.destination, R.count, R.command].map { try edu.get(0, $0) }
      + [R.liveness, R.factorial, R.status, R.causes].map {
        UInt64(try edu.get(0, $0, as: UInt32.self))
      }
  }

  @Test(arguments: [R.source, R.destination, R.count])
  func `the registers of DMA take four or eight bytes`(_ register: UInt64) throws {
    try edu.set(0, register, UInt64(0x1122_3344_5566_7788))
    #expect(try edu.get(0, register) == UInt64(0x1122_3344_5566_7788))
    #expect(try edu.get(0, register) == UInt32(0x5566_7788))
    try edu.set(0, register, UInt32(0x99))
    #expect(try edu.get(0, register) == UInt64(0x99))
  }

  // MARK: Interrupts

  @Test func `INTx follows the causes, and so does STATUS`() throws {
    try edu.trigger(0, .triggers([trigger]))
    #expect(try edu.get(7, 6, as: UInt16.self) & 8 == 0)
    try edu.set(0, R.raise, UInt32(3))
    #expect(trigger.count == 1)
    #expect(try edu.get(7, 6, as: UInt16.self) & 8 == 8)
    try edu.set(0, R.acknowledge, UInt32(1))
    try edu.trigger(0, .none, action: .unmask)
    #expect(trigger.count == 2)
    try edu.set(0, R.acknowledge, UInt32(2))
    #expect(try edu.get(7, 6, as: UInt16.self) & 8 == 0)
    try edu.trigger(0, .none, action: .unmask)
    #expect(trigger.count == 2)
  }

  @Test func `raising nothing interrupts only while a cause is left`() throws {
    try edu.trigger(1, .triggers([trigger]))
    try edu.set(0, R.raise, UInt32(0))
    #expect(trigger.count == 0)
    try edu.set(0, R.raise, UInt32(1))
    try edu.set(0, R.raise, UInt32(0))
    #expect(trigger.count == 2)
  }

  @Test func `MSI is used when the client has set it`() throws {
    try edu.trigger(1, .triggers([trigger]))
    try edu.set(0, R.raise, UInt32(1))
    try edu.set(0, R.raise, UInt32(1))
    #expect(trigger.count == 2)
    #expect(try edu.get(7, 6, as: UInt16.self) & 8 == 0)
  }

  @Test func `no signal is lost or doubled while its trigger is being replaced`() throws {
    let other = Trigger()
    try edu.trigger(1, .triggers([trigger]))
    DispatchQueue.concurrentPerform(iterations: 2) { [edu, trigger] thread in
      for turn in 0..<5000 {
        do {
          if thread == 0 {
            try edu.set(0, R.raise, UInt32(1))
          } else {
            try edu.trigger(1, .triggers([turn % 2 == 0 ? other : trigger]))
          }
        } catch {
          Issue.record(error)
        }
      }
    }
    #expect(trigger.count + other.count == 5000)
  }

  @Test func `COMMAND's INTx disable bit holds INTx back`() throws {
    try edu.trigger(0, .triggers([trigger]))
    try edu.set(7, 4, UInt16(0x0402))
    try edu.set(0, R.raise, UInt32(1))
    #expect(trigger.count == 0)
    #expect(try edu.get(7, 6, as: UInt16.self) & 8 == 8)
    try edu.set(7, 4, UInt16(0x0002))
    #expect(trigger.count == 1)
  }

  @Test func `triggers stay across a reset and go with the last release`() throws {
    try edu.open(ClientMemory([]).dma, keepingState: false)
    try edu.trigger(1, .triggers([trigger]))
    try edu.reset()
    try edu.set(0, R.raise, UInt32(1))
    #expect(trigger.count == 1)
    edu.release()
    try edu.set(0, R.raise, UInt32(1))
    #expect(trigger.count == 2)
    edu.release()
    try edu.open(ClientMemory([]).dma, keepingState: true)
    try edu.set(0, R.raise, UInt32(1))
    #expect(trigger.count == 2)
  }

  @Test func `a request for the device signals REQ`() throws {
    edu.request()
    try edu.trigger(4, .triggers([trigger]))
    edu.request()
    #expect(trigger.count == 1)
  }

  // MARK: Sessions

  @Test func `a first open lets INTx through that the last client had disabled`() throws {
    try edu.set(7, 4, UInt16(0x0402))
    edu.release()
    try edu.open(ClientMemory([]).dma, keepingState: false)
    try edu.trigger(0, .triggers([trigger]))
    try edu.set(0, R.raise, UInt32(1))
    #expect(trigger.count == 1)
  }

  @Test func `a reset clears the registers and deasserts INTx`() throws {
    try edu.set(0, R.raise, UInt32(1))
    try edu.set(0, R.source, UInt64(5))
    try edu.reset()
    #expect(try edu.get(0, R.causes) == UInt32(0))
    #expect(try edu.get(0, R.source) == UInt64(0))
    #expect(try edu.get(7, 6, as: UInt16.self) & 8 == 0)
  }

  @Test func `the first open resets the device, a second one doesn't`() throws {
    try edu.set(0, R.liveness, UInt32(0))
    try edu.open(ClientMemory([]).dma, keepingState: false)
    #expect(try edu.get(0, R.liveness) == UInt32.max)
    edu.release()
    edu.release()
    try edu.open(ClientMemory([]).dma, keepingState: false)
    #expect(try edu.get(0, R.liveness) == UInt32(0))
  }

  @Test func `an open that keeps the state finds the device as its last client left it`() throws {
    try edu.set(0, R.liveness, UInt32(0))
    try edu.set(7, 4, UInt16(0x0006))
    edu.release()
    try edu.open(ClientMemory([]).dma, keepingState: true)
    #expect(try edu.get(0, R.liveness) == UInt32.max)
    #expect(try edu.get(7, 4) == UInt16(0x0006))
  }
}
