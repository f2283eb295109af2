import VFIOCore

/// A run of IOVA and the memory behind it.
struct Mapping: Sendable {
  let iova: UInt64
  /// The last address, not the one behind it, which doesn't exist for a mapping that ends at 2^64.
  let last: UInt64
  let memory: any DMAMemory
  /// Where the first byte is in `memory`.
  let offset: UInt64
  let access: DMAAccess
  /// Who made it.
  let owner: DMAOwner

  /// Bytes; never 2^64, since a request's size has 64 bits.
  var size: UInt64 { last &- iova &+ 1 }
}
