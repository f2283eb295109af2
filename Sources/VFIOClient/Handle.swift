import LinuxIO
import SystemPackage
import VFIOWire

/// An object of VFIO's, which is a descriptor: the kernel's `open`, and at its end `close`.
///
/// The descriptor closes with `close()`, or when the last that uses it goes: the object itself, its
/// mappings, its interrupts. Objects close in any order, as the kernel's do.
public protocol Handle: AnyObject, Sendable {
  var connection: Connection { get }
}

extension Handle {
  public var isClosed: Bool { connection.isClosed }

  /// Closes the descriptor. A call that another thread is in ends first. Whatever is tried afterwards
  /// fails with `EBADF`.
  public func close() { connection.close() }

  /// The descriptor, to be passed to another process, say. It belongs to this object.
  public func descriptor() throws(VFIOError) -> FileDescriptor {
    try naming("use a closed object") { () throws(Errno) in
      try connection.socket().descriptor.borrowed
    }
  }

  /// Any operation by its number, such as an ioctl that this library doesn't know: `payload` is the
  /// structure that the ioctl's pointer would point to.
  ///
  /// `EINVAL` for more than 253 descriptors, which is all that Linux passes at once.
  ///
  /// Returns the reply as it came: to an ioctl a 64-bit result, then the structure written back.
  public func operation(
    _ number: UInt16, _ payload: [UInt8] = [], descriptors: [FileDescriptor] = []
  ) throws(VFIOError) -> OperationReply {
    let sentence = "operation \(hex(number))"
    let duplicates = try naming(sentence) { () throws(Errno) in
      guard descriptors.count <= 253 else { throw .invalidArgument }  // SCM_MAX_FD
      var duplicates: [Descriptor] = []
      for descriptor in descriptors { duplicates.append(try Descriptor(duplicating: descriptor)) }
      return duplicates
    }
    return try connection.call(
      Command(rawValue: number), sentence, with: duplicates
    ) { output in
      output.append(payload)
    } decode: { reply in
      OperationReply(payload: reply.bytes, owned: reply.descriptors)
    }
  }
}

/// What an operation answered.
public struct OperationReply: Sendable {
  public var payload: [UInt8]
  let owned: [Descriptor]

  /// Descriptors that came with it. They close with the last copy of this value.
  public var descriptors: [FileDescriptor] { owned.map(\.borrowed) }

  /// What an ioctl returned: the first eight bytes; nil when there are fewer.
  public var result: Int64? {
    payload.count >= 8 ? Int64(bitPattern: payload.span.uint64(at: 0)) : nil
  }

  /// The structure that an ioctl wrote back: what follows its result.
  public var structure: [UInt8] { Array(payload.dropFirst(8)) }
}
