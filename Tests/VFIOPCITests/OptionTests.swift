import Testing

@testable import VFIOPCI

@Suite struct OptionTests {
  private let options = DeviceOptions(["n": .integer(7), "b": .bool(true), "s": .string("x")])

  @Test func `an option is read as what it is, and nil when it isn't given`() throws {
    #expect(try options.integer("n") == 7)
    #expect(try options.bool("b") == true)
    #expect(try options.string("s") == "x")
    #expect(try options.integer("none") == nil)
    #expect(try options.bool("none") == nil)
    #expect(try options.string("none") == nil)
  }

  @Test func `an option of another type is refused with its value`() {
    #expect(throws: OptionError("s", "\"x\" is not an integer from 0 to 9")) {
      try options.integer("s", in: 0...9)
    }
    #expect(throws: OptionError("n", "7 is not true or false")) { try options.bool("n") }
    #expect(throws: OptionError("b", "true is not a string")) { try options.string("b") }
  }

  @Test func `an integer out of range is refused with the range`() {
    #expect(throws: OptionError("n", "7 is not an integer from 0 to 6")) {
      try options.integer("n", in: 0...6)
    }
  }

  @Test func `an unknown option is refused with those that are allowed`() throws {
    #expect(throws: OptionError("s", "unknown option; allowed: n, b")) {
      try options.allow(only: ["n", "b"])
    }
    try options.allow(only: ["n", "b", "s"])
  }
}
