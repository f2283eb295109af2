import JSON
import Testing

/// The sentence of the error that `read` throws.
private func sentence(_ read: () throws -> Void) -> String? {
  do {
    try read()
    return nil
  } catch {
    return "\(error)"
  }
}

@Suite struct `Reading fields of a JSON value` {
  let reader = JSONReader([
    "groups": [["id": 26, "devices": [["address": "foo", "on": true]]]],
    "count": 300, "name": nil, "half": 0.5,
  ])
  var device: JSONReader {
    get throws { try reader["groups"].elements()[0]["devices"].elements()[0] }
  }

  @Test func `finds values in nested arrays and objects`() throws {
    #expect(try device["address"].string() == "foo")
    #expect(try device["on"].bool())
    #expect(try reader["groups"].elements()[0]["id"].integer(in: 0...UInt32.max) == 26)
  }

  @Test func `names the path of a field in its error`() throws {
    let address = try device["address"]
    #expect(address.path == "groups[0].devices[0].address")
    #expect(
      address.mismatch("a PCI address such as 0000:06:0d.0").description
        == #"groups[0].devices[0].address: "foo" is not a PCI address such as 0000:06:0d.0"#)
  }

  @Test func `says what a value of another kind should have been`() {
    #expect(sentence { _ = try reader["groups"].string() } == "groups: an array is not a string")
    #expect(sentence { _ = try reader["count"].bool() } == "count: 300 is not true or false")
    #expect(sentence { _ = try reader["count"].elements() } == "count: 300 is not an array")
    #expect(sentence { _ = try reader["name"].members() } == "name: null is not an object")
    #expect(sentence { _ = try reader["count"].string() } == "count: 300 is not a string")
  }

  @Test func `refuses an integer outside its range or its type`() {
    #expect(
      sentence { _ = try reader["count"].integer(in: 1...253) }
        == "count: 300 is not an integer between 1 and 253")
    #expect(
      sentence { _ = try reader["count"].integer(in: UInt8.min...UInt8.max) }
        == "count: 300 is not an integer between 0 and 255")
    #expect(
      sentence { _ = try reader["half"].integer(in: 0...1) }
        == "half: 0.5 is not an integer between 0 and 1")
  }

  @Test func `accepts the bounds of a range`() throws {
    #expect(try reader["count"].integer(in: 300...400) == 300)
    #expect(try reader["count"].integer(in: 200...300) == 300)
  }

  @Test func `gives the default only for an absent field`() throws {
    #expect(try reader["none"].integer(in: 1...5, default: 3) == 3)
    #expect(try reader["none"].string(default: "x") == "x")
    #expect(try reader["none"].bool(default: true))
    #expect(
      sentence { _ = try reader["name"].integer(in: 1...5, default: 3) }
        == "name: null is not an integer between 1 and 5")
  }

  @Test func `says that a field without default is missing`() {
    #expect(
      sentence { _ = try reader["deep"]["er"].string() }
        == "deep.er: missing; it must be a string")
  }

  @Test func `tells an absent field from null`() {
    #expect(reader["name"].exists && reader["name"].isNull)
    #expect(!reader["none"].exists && !reader["none"].isNull)
  }

  @Test func `names an unknown field and those that are known`() {
    #expect(
      sentence { try reader.requireFields(among: ["groups", "count", "name"]) }
        == #"unknown field "half"; known are groups, count, name"#)
    #expect(
      sentence { try reader.requireFields(among: ["groups", "count", "name", "half"]) } == nil)
  }

  @Test func `shortens a long value in an error`() {
    let long = JSONReader(.string(String(repeating: "x", count: 100_000)))
    #expect(long.mismatch("an object").description.count < 120)
  }
}
