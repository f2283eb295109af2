import CLinux
import SystemPackage

extension SharedMapping {
  /// The integer at `offset`, in one access of its own size where it is aligned. Throws as `read` does.
  public func load<Value: FixedWidthInteger>(at offset: UInt64) throws(Errno) -> Value {
    let source = unsafe try pointer(offset, MemoryLayout<Value>.size)
    var value: Value = 0
    // Sound: the pointer is valid for the value's size, and the mapping's faults are caught.
    unsafe clinux_copy(&value, source, MemoryLayout<Value>.size)
    if isPoisoned { throw .badAddress }
    return value
  }

  /// Stores an integer at `offset`, as `load` reads it. The mapping must be writable.
  public func store<Value: FixedWidthInteger>(_ value: Value, at offset: UInt64) throws(Errno) {
    let target = unsafe try pointer(offset, MemoryLayout<Value>.size)
    var value = value
    // Sound: as above.
    unsafe clinux_copy(target, &value, MemoryLayout<Value>.size)
    if isPoisoned { throw .badAddress }
  }

  /// Adds to the integer at `offset`, which is aligned, in one step, and returns what it was. Throws as
  /// `write` does.
  public func add(_ value: UInt32, at offset: UInt64) throws(Errno) -> UInt32 {
    // Sound, here and below: the pointer is valid for the integer's size, and the mapping's faults are
    // caught.
    unsafe try change(offset) { unsafe clinux_add32($0, value) }
  }
  public func add(_ value: UInt64, at offset: UInt64) throws(Errno) -> UInt64 {
    unsafe try change(offset) { unsafe clinux_add64($0, value) }
  }

  /// Stores an integer, as `add` does.
  public func swap(_ value: UInt32, at offset: UInt64) throws(Errno) -> UInt32 {
    unsafe try change(offset) { unsafe clinux_swap32($0, value) }
  }
  public func swap(_ value: UInt64, at offset: UInt64) throws(Errno) -> UInt64 {
    unsafe try change(offset) { unsafe clinux_swap64($0, value) }
  }

  /// Stores an integer if `expected` is there, as `add` does.
  public func compareAndSwap(
    _ expected: UInt32, _ value: UInt32, at offset: UInt64
  ) throws(Errno) -> UInt32 {
    unsafe try change(offset) { unsafe clinux_cas32($0, expected, value) }
  }
  public func compareAndSwap(
    _ expected: UInt64, _ value: UInt64, at offset: UInt64
  ) throws(Errno) -> UInt64 {
    unsafe try change(offset) { unsafe clinux_cas64($0, expected, value) }
  }

  private func change<Value: FixedWidthInteger>(
    _ offset: UInt64, _ body: (UnsafeMutableRawPointer) -> Value
  ) throws(Errno) -> Value {
    let size = MemoryLayout<Value>.size
    guard writable, offset.isMultiple(of: UInt64(size)) else { throw .badAddress }
    let old = unsafe body(try pointer(offset, size))
    if isPoisoned { throw .badAddress }
    return old
  }
}
