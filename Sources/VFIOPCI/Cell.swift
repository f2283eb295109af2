/// A device's state without its type: the one place where the kit uses unsafe memory.
///
/// Registers are reached at a byte offset, found once from their key path, because a key path at
/// each access costs four times as much and a generic class behind an existential is never
/// specialised. `PCIFunction` uses a cell only under its lock.
@safe final class Cell {
  private let base: UnsafeMutableRawPointer
  private let type: Any.Type
  private let restore: () -> Void
  private let destroy: () -> Void

  init<Device: Sendable>(_ initial: Device) {
    // Sound: allocated and initialised here as one Device, used as nothing else, and freed in deinit.
    let memory = UnsafeMutablePointer<Device>.allocate(capacity: 1)
    unsafe memory.initialize(to: initial)
    unsafe base = UnsafeMutableRawPointer(memory)
    type = Device.self
    restore = { unsafe memory.pointee = initial }
    destroy = {
      unsafe memory.deinitialize(count: 1)
      unsafe memory.deallocate()
    }
  }

  deinit { destroy() }

  /// Puts back the value that the cell was made with.
  func reset() { restore() }

  /// The state as what it is; traps if it isn't, which only a mix-up of two models can cause.
  func update<Device, Result>(_: Device.Type, _ body: (inout Device) -> Result) -> Result {
    precondition(type == Device.self, "the state of a \(type) is used as a \(Device.self)")
    // Sound: the type was just checked, and nothing else points to the state under the lock.
    return body(&(unsafe base.assumingMemoryBound(to: Device.self)).pointee)
  }

  /// The integer at `field`, which `MemoryLayout.offset(of:)` gave for a property of `width` bytes.
  func load(_ field: Int, width: Int) -> UInt64 {
    // Sound: inside the state, and of a `RegisterValue`, which is nothing but its bits.
    switch width {
    case 1: unsafe UInt64(base.load(fromByteOffset: field, as: UInt8.self))
    case 2: unsafe UInt64(base.load(fromByteOffset: field, as: UInt16.self))
    case 4: unsafe UInt64(base.load(fromByteOffset: field, as: UInt32.self))
    default: unsafe base.load(fromByteOffset: field, as: UInt64.self)
    }
  }

  func store(_ value: UInt64, _ field: Int, width: Int) {
    // Sound: as for load, and every bit pattern is a value.
    switch width {
    case 1:
      unsafe base.storeBytes(
        of: UInt8(truncatingIfNeeded: value), toByteOffset: field, as: UInt8.self)
    case 2:
      unsafe base.storeBytes(
        of: UInt16(truncatingIfNeeded: value), toByteOffset: field, as: UInt16.self)
    case 4:
      unsafe base.storeBytes(
        of: UInt32(truncatingIfNeeded: value), toByteOffset: field, as: UInt32.self)
    default: unsafe base.storeBytes(of: value, toByteOffset: field, as: UInt64.self)
    }
  }
}
