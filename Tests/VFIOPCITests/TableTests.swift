import Testing

@testable import VFIOPCI

private struct Empty: PCIDevice {
  static let identity = PCIIdentity(vendor: 1, device: 2, revision: 3, classCode: 0)
  static let interrupts = Interrupts()
  static let bars: [BAR<Empty>] = []
  var word: UInt32 = 0
  var observed: UInt32 = 0 { didSet { word = observed } }
}

@Suite struct TableTests {
  private func sentence(_ bars: [BAR<Empty>], _ interrupts: Interrupts = Interrupts()) -> String? {
    do throws(TableError) {
      try TableCheck.check(bars.map(\.table), interrupts)
      for bar in bars {
        if case .registers(let rows, let access) = bar.table.content {
          _ = try RegisterFile(rows, access, bar: bar.table.index, size: bar.table.size)
        }
      }
      return nil
    } catch {
      return error.description
    }
  }

  @Test func `registers that overlap are named`() {
    #expect(
      sentence([
        .registers(0, size: 16) {
          Constant(0x4, 0)
          Register(0x2, \.word)
        }
      ]) == "register 0x4 of BAR 0: overlaps the register at 0x2")
  }

  @Test func `a register beyond its BAR is named`() {
    #expect(
      sentence([.registers(1, size: 16) { Constant(0xE, 0) }])
        == "register 0xe of BAR 1: its 4 bytes end beyond the BAR's 0x10")
    #expect(
      sentence([.registers(1, size: 16) { Constant(.max, 0) }])
        == "register 0xffffffffffffffff of BAR 1: its 4 bytes end beyond the BAR's 0x10")
  }

  @Test func `a register whose property isn't stored is named`() {
    #expect(
      sentence([.registers(0, size: 16) { Register(0x8, \.observed) }])
        == "register 0x8 of BAR 0: its property is computed or observed, not stored")
  }

  @Test func `a doorbell's eventfd for a value that can't be written, or twice, is named`() {
    func bell(_ values: [UInt64]) -> String? {
      sentence([
        .registers(0, size: 16) { Doorbell(0x8) { (_, _: UInt16, _) in }.ioeventfd(values) }
      ])
    }
    #expect(bell([0, 0xFFFF]) == nil)
    #expect(
      bell([0x10000])
        == "register 0x8 of BAR 0: an eventfd for 0x10000, which has more than 2 bytes")
    #expect(bell([1, 1]) == "register 0x8 of BAR 0: two eventfds for the same value")
  }

  @Test func `BARs that share an index are named`() {
    #expect(
      sentence([.memory(2, size: 4096, is64Bit: true), .memory(3, size: 4096)])
        == "BAR 3: declared twice, or the upper half of a 64-bit BAR")
  }

  @Test func `a BAR that PCI can't have is named`() {
    #expect(sentence([.memory(6, size: 4096)]) == "BAR 6: not from 0 to 5")
    #expect(sentence([.memory(5, size: 4096, is64Bit: true)]) == "BAR 5: not from 0 to 4")
    #expect(sentence([.memory(-1, size: 4096)]) == "BAR -1: not from 0 to 5")
    #expect(
      sentence([.registers(0, size: 24) { Constant(0, 0) }])
        == "BAR 0: size 0x18 is not a power of two from 0x10 to 0x80000000")
    for size in [0, 64, 5000, 0x8000_1000] as [UInt64] {
      #expect(
        sentence([.memory(0, size: size)])
          == "BAR 0: \(hex(size)) bytes of memory, not whole pages up to 0x80000000")
    }
  }

  @Test func `a mappable range that isn't whole pages of the BAR is named`() {
    for range in [0..<5000, 100..<4096, 4096..<16384, 4096..<4096] as [Range<UInt64>] {
      #expect(
        sentence([.memory(0, size: 8192, mappable: range)])
          == "BAR 0: mappable \(hex(range.lowerBound))..<\(hex(range.upperBound)) is not whole "
          + "pages of its 0x2000 bytes, behind the one before")
    }
    #expect(
      sentence([.memory(0, size: 8192, mappable: 4096..<8192, 0..<4096)])
        == "BAR 0: mappable 0x0..<0x1000 is not whole pages of its 0x2000 bytes, behind the one before"
    )
  }

  @Test func `interrupts that PCI can't have are named`() {
    #expect(
      sentence([], Interrupts(msi: 3)) == "msi: 3 vectors, not a power of two up to 32")
    #expect(
      sentence([], Interrupts(msix: MSIX(vectors: 0, bar: 0, table: 0, pending: 0x800)))
        == "msi-x: 0 vectors, not 1 to 2048")
    #expect(
      sentence([], Interrupts(msix: MSIX(vectors: 8, bar: 4, table: 0, pending: 0x78)))
        == "msi-x: the table at 0x0 overlaps the pending bits at 0x78")
    #expect(
      sentence([], Interrupts(msix: MSIX(vectors: 8, bar: 4, table: 4000, pending: 0)))
        == "msi-x: table of 0x80 bytes at 0xfa0 are not in BAR 4's 0x1000 at a multiple of 8")
  }

  @Test func `a function with a wrong table isn't made`() {
    struct Wrong: PCIDevice {
      static let identity = PCIIdentity(vendor: 1, device: 2, revision: 3, classCode: 0)
      static let interrupts = Interrupts()
      static let bars: [BAR<Wrong>] = [.registers(0, size: 16) { Constant(16, 0) }]
    }
    #expect(throws: TableError.self) { try PCIFunction(Wrong(), memory: noMemory) }
  }
}
