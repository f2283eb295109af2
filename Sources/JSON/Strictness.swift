// json-c is lenient even in its strict mode: it takes NaN, 'name', control characters in strings and
// UTF-8 of forbidden forms, saturates integers beyond 64 bits, and ends a name at \u0000. What it
// would let through is refused here, before it sees the text.

/// Throws at the first byte that RFC 8259 forbids and json-c would accept or misread.
func checkStrictly(_ bytes: Span<UInt8>) throws(JSONError) {
  do {
    _ = try UTF8Span(validating: bytes)
  } catch {
    throw JSONError("not valid UTF-8", at: error.byteOffsets.lowerBound, of: bytes)
  }
  var index = 0
  var lastStringHasNUL = false
  while index < bytes.count {
    switch bytes[index] {
    case UInt8(ascii: "\""):
      index = try checkString(bytes, from: index, hasNUL: &lastStringHasNUL)
    case UInt8(ascii: "-"), UInt8(ascii: "0")...UInt8(ascii: "9"):
      index = try checkNumber(bytes, from: index)
    case UInt8(ascii: ":") where lastStringHasNUL:
      throw JSONError("a name must not contain \\u0000", at: index, of: bytes)
    case UInt8(ascii: "'"), UInt8(ascii: "N"), UInt8(ascii: "I"), 0:
      throw JSONError("unexpected character", at: index, of: bytes)
    default:
      index += 1
    }
  }
}

/// Checks the string whose opening quote is at `start`, and returns the index after its end.
private func checkString(
  _ bytes: Span<UInt8>, from start: Int, hasNUL: inout Bool
) throws(JSONError) -> Int {
  hasNUL = false
  var index = start + 1
  while index < bytes.count {
    switch bytes[index] {
    case UInt8(ascii: "\""):
      return index + 1
    case UInt8(ascii: "\\"):
      if isNULEscape(bytes, at: index) { hasNUL = true }
      index += 2
    case 0..<0x20:
      throw JSONError("a control character in a string must be escaped", at: index, of: bytes)
    default:
      index += 1
    }
  }
  return index
}

private func isNULEscape(_ bytes: Span<UInt8>, at start: Int) -> Bool {
  guard bytes.count - start >= 6, bytes[start + 1] == UInt8(ascii: "u") else { return false }
  return (2..<6).allSatisfy { bytes[start + $0] == UInt8(ascii: "0") }
}

/// Checks the number that begins at `start`, and returns the index after its end.
private func checkNumber(_ bytes: Span<UInt8>, from start: Int) throws(JSONError) -> Int {
  var end = start
  var text = ""
  while end < bytes.count, isNumeric(bytes[end]) {
    text.unicodeScalars.append(Unicode.Scalar(bytes[end]))
    end += 1
  }
  let digits = text.hasPrefix("-") ? text.dropFirst() : text[...]
  if digits.hasPrefix("0"), digits.dropFirst().first?.isNumber == true {
    throw JSONError("a number must not begin with 0", at: start, of: bytes)
  }
  guard text.contains(where: { ".eE".contains($0) }) else {
    guard Int64(text) != nil || UInt64(text) != nil else {
      throw JSONError("\(shortened(text)) is not an integer of 64 bits", at: start, of: bytes)
    }
    return end
  }
  let fraction = text.split(separator: ".", omittingEmptySubsequences: false).dropFirst().first
  guard fraction == nil || fraction?.first?.isNumber == true,
    let value = Double(text), value.isFinite
  else {
    throw JSONError("\(shortened(text)) is not a number of 64 bits", at: start, of: bytes)
  }
  return end
}

private func isNumeric(_ byte: UInt8) -> Bool {
  switch byte {
  case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "+"),
    UInt8(ascii: "."), UInt8(ascii: "e"), UInt8(ascii: "E"):
    true
  default: false
  }
}

/// Long values come from hostile or mistaken authors; a log line needs their beginning.
func shortened(_ text: String) -> String {
  text.count <= 80 ? text : "\(text.prefix(80))…"
}
