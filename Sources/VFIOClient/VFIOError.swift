@_exported import struct SystemPackage.Errno
@_exported import struct SystemPackage.FileDescriptor

/// An operation that failed: which one, on what, and the errno that the kernel's call would set.
///
/// Errno of the client's own: `ECONNRESET` when the server has closed the connection, `EPROTO` when it
/// sent what isn't the protocol, `EBADF` after `close`, `ECANCELED` when the task was cancelled.
public struct VFIOError: Error, Equatable, Sendable, CustomStringConvertible {
  /// What was tried, such as `open group 26`.
  public var operation: String
  public var errno: Errno

  public init(operation: String, errno: Errno) {
    self.operation = operation
    self.errno = errno
  }

  /// A sentence such as `open group 26: device or resource busy`.
  public var description: String { "\(operation): \("\(errno)".lowercased())" }
}

/// Runs `body`, and names the operation in what it throws.
func naming<Value>(
  _ operation: @autoclosure () -> String, _ body: () throws(Errno) -> Value
) throws(VFIOError) -> Value {
  do throws(Errno) {
    return try body()
  } catch {
    throw VFIOError(operation: operation(), errno: error)
  }
}

/// A number as error sentences write addresses and sizes.
func hex(_ number: some BinaryInteger) -> String { "0x" + String(number, radix: 16) }
