import CJSONC

// The only unsafe code of this target: calls of json-c. Every json-c object made here has one owner,
// `Tree` or the container it was added to, and no pointer outlives the call that got it.

extension JSONValue {
  /// How deep arrays and objects may be nested in a text.
  public static let depthLimit = 32

  /// The value of a JSON text (RFC 8259, in UTF-8, nothing but white space after it).
  ///
  /// Throws a `JSONError` with line and column for a text that isn't JSON, is nested deeper than
  /// `depthLimit`, or has more than `sizeLimit` bytes.
  public init(parsing bytes: Span<UInt8>, sizeLimit: Int = 1 << 20) throws(JSONError) {
    guard bytes.count <= sizeLimit, let count = Int32(exactly: bytes.count) else {
      throw JSONError(
        place: "", problem: "\(bytes.count) bytes of JSON are more than the limit of \(sizeLimit)")
    }
    try checkStrictly(bytes)
    guard let tokener = unsafe json_tokener_new_ex(Int32(Self.depthLimit)) else {
      throw JSONError(place: "", problem: "out of memory")
    }
    defer { unsafe json_tokener_free(tokener) }
    unsafe json_tokener_set_flags(tokener, JSON_TOKENER_STRICT)

    // Sound: json-c reads `count` bytes of the buffer and copies what it keeps.
    var tree = unsafe bytes.withUnsafeBytes { buffer in
      unsafe Tree(
        root: json_tokener_parse_ex(
          tokener, buffer.baseAddress?.assumingMemoryBound(to: CChar.self), count))
    }
    var end = Int(clamping: unsafe json_tokener_get_parse_end(tokener))
    if unsafe count == 0 || json_tokener_get_error(tokener) == json_tokener_continue {
      // Only the NUL after it ends a number, and tells that more was expected.
      tree = unsafe Tree(root: json_tokener_parse_ex(tokener, "", 1))
      end = bytes.count
    }
    let error = unsafe json_tokener_get_error(tokener)
    guard error == json_tokener_success else {
      let problem =
        switch error {
        case json_tokener_error_depth: "nested deeper than \(Self.depthLimit)"
        default: unsafe String(cString: json_tokener_error_desc(error))
        }
      throw JSONError(problem, at: end, of: bytes)
    }
    self = tree.value
  }

  /// This value as JSON text, on one line.
  public var text: String {
    let tree = Tree(self)
    var length = 0
    let flags = JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE
    // Sound: the bytes belong to the tree, which lives until this function ends.
    guard let bytes = unsafe json_object_to_json_string_length(tree.root, flags, &length) else {
      return "null"
    }
    defer { withExtendedLifetime(tree) {} }
    return unsafe copy(bytes, length)
  }
}

/// Owns a json-c object; nil is JSON's null.
@safe private struct Tree: ~Copyable {
  let root: OpaquePointer?

  init(root: OpaquePointer?) { unsafe self.root = root }
  init(_ value: JSONValue) { unsafe root = make(value) }
  deinit { unsafe json_object_put(root) }

  var value: JSONValue { unsafe read(root) }
}

/// A copy of an object that json-c made. Recurses no deeper than the parser does.
private func read(_ object: OpaquePointer?) -> JSONValue {
  switch unsafe json_object_get_type(object) {
  case json_type_boolean:
    return .bool(unsafe json_object_get_boolean(object) != 0)
  case json_type_int:
    let signed = unsafe json_object_get_int64(object)
    return .integer(
      signed < 0 ? Int128(signed) : Int128(unsafe json_object_get_uint64(object)))
  case json_type_double:
    return .double(unsafe json_object_get_double(object))
  case json_type_string:
    guard let bytes = unsafe json_object_get_string(object) else { return .string("") }
    let length = unsafe json_object_get_string_len(object)
    return .string(unsafe copy(bytes, Int(length)))
  case json_type_array:
    return .array(
      (0..<(unsafe json_object_array_length(object))).map {
        unsafe read(json_object_array_get_idx(object, $0))
      })
  case json_type_object:
    var members: [JSONMember] = []
    var iterator = unsafe json_object_iter_begin(object)
    var end = unsafe json_object_iter_end(object)
    // Sound: the object doesn't change while it is walked through.
    while unsafe json_object_iter_equal(&iterator, &end) == 0 {
      members.append(
        JSONMember(
          unsafe String(cString: json_object_iter_peek_name(&iterator)),
          unsafe read(json_object_iter_peek_value(&iterator))))
      unsafe json_object_iter_next(&iterator)
    }
    return .object(members)
  default:
    return .null
  }
}

/// A new json-c object that the caller owns.
private func make(_ value: JSONValue) -> OpaquePointer? {
  switch value {
  case .null:
    return nil
  case .bool(let flag):
    return unsafe json_object_new_boolean(flag ? 1 : 0)
  case .integer(let number):
    if let signed = Int64(exactly: number) { return unsafe json_object_new_int64(signed) }
    if let unsigned = UInt64(exactly: number) { return unsafe json_object_new_uint64(unsigned) }
    return unsafe json_object_new_double_s(Double(number), "\(number)")
  case .double(let number):
    // Swift's text is the shortest one that reads back as the same number; json-c's isn't.
    return number.isFinite ? unsafe json_object_new_double_s(number, "\(number)") : nil
  case .string(let text):
    // Sound: the argument is a copy of all its UTF-8, with a NUL after it.
    return unsafe json_object_new_string_len(text, Int32(clamping: text.utf8.count))
  case .array(let elements):
    let array = unsafe json_object_new_array()
    for element in elements {
      let child = unsafe make(element)
      // json-c owns the child only when it could add it.
      if unsafe json_object_array_add(array, child) != 0 { unsafe json_object_put(child) }
    }
    return unsafe array
  case .object(let members):
    let object = unsafe json_object_new_object()
    for member in members {
      let child = unsafe make(member.value)
      if unsafe json_object_object_add(object, member.name, child) != 0 {
        unsafe json_object_put(child)
      }
    }
    return unsafe object
  }
}

private func copy(_ start: UnsafePointer<CChar>, _ count: Int) -> String {
  // Sound: json-c gives `count` readable bytes at `start`; CChar and UInt8 have the same layout.
  unsafe String(
    decoding: UnsafeRawBufferPointer(start: start, count: max(count, 0)), as: UTF8.self)
}
