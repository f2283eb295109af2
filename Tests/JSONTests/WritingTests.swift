import JSON
import Testing

@Suite struct `Writing a JSON text` {
  @Test func `puts every kind of value on one line`() {
    let value: JSONValue = ["b": [nil, true, -1, 2.5, "x/\"\n"], "a": [:], "c": []]
    #expect(value.text == #"{"b":[null,true,-1,2.5,"x/\"\n"],"a":{},"c":[]}"#)
  }

  @Test(arguments: [
    Int128(Int64.min), Int128(Int64.max), Int128(UInt64.max), Int128.max, Int128.min,
  ])
  func `writes every digit of an integer`(number: Int128) {
    #expect(JSONValue.integer(number).text == "\(number)")
  }

  @Test(arguments: [(0.1, "0.1"), (1e300, "1e+300"), (-0.0, "-0.0"), (3.0, "3.0")])
  func `writes a double in the fewest digits that read back the same`(
    number: Double, text: String
  ) throws {
    #expect(JSONValue.double(number).text == text)
    #expect(try parse(text) == .double(number))
  }

  @Test(arguments: [Double.nan, .infinity, -.infinity])
  func `writes null for a number that JSON hasn't got`(number: Double) {
    #expect(JSONValue.array([.double(number)]).text == "[null]")
  }

  @Test(arguments: ["", "a\0b", "\u{1}\u{7F}", "é😀\u{2028}", "\\\"/"])
  func `writes a string that reads back the same`(string: String) throws {
    #expect(try parse(JSONValue.string(string).text) == .string(string))
  }

  @Test func `keeps only the last of two members with one name`() {
    #expect(JSONValue.object([JSONMember("a", 1), JSONMember("a", 2)]).text == #"{"a":2}"#)
  }
}
