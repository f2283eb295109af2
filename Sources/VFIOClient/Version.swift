import JSON
import SystemPackage
import VFIOWire

/// What `VFIO_USER_VERSION` agreed on.
struct Version: Sendable {
  /// Bytes that one access may transfer when nothing else is said.
  static let maxDataTransferSize: UInt64 = 1 << 20

  /// Bytes that one access may transfer.
  var maxDataTransferSize: Int
  /// Descriptors that one message may bring.
  var maxDescriptors: Int

  /// `u16 major, u16 minor`, then NUL-terminated JSON.
  static func negotiate(_ connection: Connection, _ object: String) throws(VFIOError) -> Version {
    let proposal: JSONValue = [
      "capabilities": [
        "max_msg_fds": 253, "max_data_xfer_size": .integer(Int128(maxDataTransferSize)),
        "max_dma_maps": 65535, "pgsizes": 4096,
      ]
    ]
    return try connection.call(.version, "agree with \(object) on a version") { output in
      output.append(UInt16(0))
      output.append(UInt16(0))
      output.append(Array(proposal.text.utf8) + [0])
    } decode: { reply throws(Errno) in
      guard try reply.uint16(at: 0) == 0 else { throw .protocolNotSupported }
      try reply.require(4)
      return try reading(reply.bytes[4...]) { document throws(JSONError) in
        let capabilities = document["capabilities"]
        let size: UInt64 = try capabilities["max_data_xfer_size"].integer(
          in: 1...UInt64.max, default: maxDataTransferSize)
        let descriptors: UInt64 = try capabilities["max_msg_fds"].integer(
          in: 1...UInt64.max, default: 1)
        return Version(
          maxDataTransferSize: Int(min(size, maxDataTransferSize)),
          maxDescriptors: Int(min(descriptors, 253)))
      }
    }
  }
}

/// Reads JSON that the server sent, up to its NUL; none is an empty object. `EPROTO` when it isn't as it
/// should be.
func reading<Value>(
  _ bytes: ArraySlice<UInt8>, _ body: (JSONReader) throws(JSONError) -> Value
) throws(Errno) -> Value {
  let text = Array(bytes.prefix { $0 != 0 })
  do throws(JSONError) {
    let document: JSONValue =
      text.isEmpty ? .object([]) : try JSONValue(parsing: text.span, sizeLimit: 1 << 28)
    return try body(JSONReader(document))
  } catch {
    throw .protocolError
  }
}
