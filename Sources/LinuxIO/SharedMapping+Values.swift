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
}
