import JSON
import Testing

func parse(_ text: String, sizeLimit: Int = 1 << 20) throws(JSONError) -> JSONValue {
  try JSONValue(parsing: Array(text.utf8).span, sizeLimit: sizeLimit)
}

/// The error of a text that must not parse, as a sentence.
func refusal(_ text: String) -> String? { refusal(Array(text.utf8)) }

func refusal(_ bytes: [UInt8]) -> String? {
  do {
    _ = try JSONValue(parsing: bytes.span)
    return nil
  } catch {
    return error.description
  }
}

@Suite struct `Parsing a JSON text` {
  @Test func `gives every kind of value`() throws {
    #expect(
      try parse(#" {"a": [null, true, false, -1, 2.5, "é\n"], "b": {}, "c": []} "# + "\n")
        == ["a": [nil, true, false, -1, 2.5, "é\n"], "b": [:], "c": []])
  }

  @Test(arguments: ["null", "true", "7", "\"x\""])
  func `takes a value that is neither array nor object`(text: String) throws {
    #expect(try parse(text).text == text)
  }

  @Test func `keeps the order of members`() throws {
    #expect(
      try parse(#"{"z":1,"a":2,"m":3}"#)
        == .object([JSONMember("z", 1), JSONMember("a", 2), JSONMember("m", 3)]))
  }

  @Test func `keeps the last of two members with one name in the first one's place`() throws {
    #expect(
      try parse(#"{"a":1,"b":2,"a":3}"#) == .object([JSONMember("a", 3), JSONMember("b", 2)]))
  }

  @Test(arguments: [
    (Int128(Int64.min), "-9223372036854775808"), (Int128(Int64.max), "9223372036854775807"),
    (Int128(Int64.max) + 1, "9223372036854775808"), (Int128(UInt64.max), "18446744073709551615"),
  ])
  func `holds every integer of 64 bits`(number: Int128, text: String) throws {
    #expect(try parse(text) == .integer(number))
  }

  @Test func `keeps a NUL in a string`() throws {
    #expect(try parse(#""a\u0000b""#) == "a\0b")
  }

  @Test func `takes an escaped backslash before u0000 in a name for what it is`() throws {
    #expect(try parse(#"{"\\u0000":1}"#) == [#"\u0000"#: 1])
  }

  @Test func `takes 32 nested arrays and refuses 33`() throws {
    let nested = { String(repeating: "[", count: $0) + String(repeating: "]", count: $0) }
    _ = try parse(nested(32))
    #expect(refusal(nested(33)) == "line 1, column 33: nested deeper than 32")
  }

  @Test func `refuses a text above the size limit`() throws {
    _ = try parse("[1]", sizeLimit: 3)
    #expect(throws: JSONError(place: "", problem: "4 bytes of JSON are more than the limit of 3")) {
      try parse("[10]", sizeLimit: 3)
    }
  }

  @Test func `tells line and column of an error`() {
    #expect(refusal("{\n  \"a\": x\n}") == "line 2, column 8: unexpected character")
  }

  @Test func `counts characters, not bytes, in a column`() {
    #expect(refusal("\"äöü\" x") == "line 1, column 7: unexpected character")
  }

  @Test(arguments: [
    ("", "line 1, column 1: unexpected end of data"),
    (" \n", "line 2, column 1: unexpected end of data"),
    ("{\"a\":", "line 1, column 6: unexpected end of data"),
    ("\"abc", "line 1, column 5: unexpected end of data"),
    ("\"abc\\", "line 1, column 6: unexpected end of data"),
    ("\"\\u00", "line 1, column 6: unexpected end of data"),
    ("tru", "line 1, column 4: unexpected end of data"),
  ])
  func `refuses a text that ends too early`(text: String, sentence: String) {
    #expect(refusal(text) == sentence)
  }

  @Test(arguments: ["{}x", "{} {}", "1 2", "null,"])
  func `refuses what follows the value`(text: String) {
    #expect(refusal(text)?.hasSuffix("unexpected character") == true)
  }

  @Test(arguments: [
    "[1,]", "{\"a\":1,}", "[1 2]", "{\"a\" 1}", "{a:1}", "{'a':1}", "'a'", "// c\n1", "/* c */1",
    "NaN", "nan", "-NaN", "Infinity", "-Infinity", "True", "NULL", "+1", ".5", "1.", "1.e5", "01",
    "-", "-01", "1e", "1e+", "0x10", "--1", "1-1", "1.2.3", "\"\\x\"", "\"\\u12g4\"",
    "\"a\nb\"", "\"a\tb\"", "\u{FEFF}{}", "]", "}", ":", ",",
  ])
  func `refuses what RFC 8259 doesn't allow`(text: String) {
    #expect(refusal(text)?.hasPrefix("line ") == true)
  }

  @Test(arguments: ["18446744073709551616", "-9223372036854775809", "99999999999999999999999"])
  func `refuses an integer of more than 64 bits`(text: String) {
    #expect(refusal("[\(text)]") == "line 1, column 2: \(text) is not an integer of 64 bits")
  }

  @Test(arguments: ["1e999", "-1e999"])
  func `refuses a number too large for a double`(text: String) {
    #expect(refusal("[\(text)]") == "line 1, column 2: \(text) is not a number of 64 bits")
  }

  @Test(arguments: [
    [0xFF], [0xC0, 0xAF], [0xED, 0xA0, 0x80], [0xF5, 0x80, 0x80, 0x80], [0xE2, 0x82],
  ])
  func `refuses bytes that aren't UTF-8`(bytes: [UInt8]) {
    let quote = UInt8(ascii: "\"")
    #expect(refusal([quote] + bytes + [quote]) == "line 1, column 2: not valid UTF-8")
  }

  @Test func `reads a lone surrogate as a replacement character`() throws {
    #expect(try parse(#""\ud800""#) == "\u{FFFD}")
  }

  @Test func `refuses a NUL in a name`() {
    #expect(
      refusal(#"{"a\u0000b":1}"#) == "line 1, column 12: a name must not contain \\u0000")
  }

  @Test func `refuses a NUL byte anywhere`() {
    for text in ["\0", "[\0]", "\"a\0b\"", "{\"a\0\":1}", "1\0"] {
      #expect(refusal(text) != nil, "\(Array(text.utf8))")
    }
  }

  @Test func `survives every prefix of a text, and every byte replaced by every other`() throws {
    let text = Array(#"{"a":[-1.5e3,"\u00e9\\x",null],"b":{"c":true}}"#.utf8)
    for end in 0..<text.count {
      #expect(refusal(Array(text[..<end])) != nil, "the first \(end) bytes")
    }
    for index in text.indices {
      for byte in UInt8.min...UInt8.max {
        var changed = text
        changed[index] = byte
        // What still parses must read the same when written and parsed again.
        guard let value = try? JSONValue(parsing: changed.span) else { continue }
        #expect(try parse(value.text) == value)
      }
    }
  }
}
