import CLinux
import Glibc
import Locks
import SystemPackage

/// The files that clients share, one mapping each, however many DMA mappings refer to it.
public final class MappedFiles: Sendable {
  private struct Key: Hashable {
    var device: UInt64
    var inode: UInt64
    var writable: Bool
  }

  private struct Weak: Sendable { weak var mapping: SharedMapping? }

  /// Guards the look-up, and that one file isn't mapped twice at once.
  private let mappings = Mutex<[Key: Weak]>([:])

  public init() {}

  /// Files known, some of whose mappings may have gone; for tests.
  var count: Int { mappings.withLock { $0.count } }

  /// A mapping of the file that covers `offset ..< offset + size`.
  ///
  /// Throws `EINVAL` when the file isn't a regular one (shared memory is), is shorter, or lies in a file
  /// system that another process or machine serves, as FUSE and NFS are; `EACCES` when
  /// it is not open for what is asked, and `ENOMEM` when there's no room for another mapping.
  public func mapping(
    of file: Descriptor, offset: UInt64, size: UInt64, writable: Bool
  ) throws(Errno) -> SharedMapping {
    guard file.rawValue >= 0 else { throw .invalidArgument }  // what is left of a socket
    var info = clinux_file_status()
    // Sound: the call fills the structure given.
    try call { unsafe clinux_file_status(file.rawValue, &info) }
    let (end, overflow) = offset.addingReportingOverflow(size)
    guard info.is_regular, !overflow, end <= info.size else { throw .invalidArgument }
    let mode = try call { fcntl(file.rawValue, F_GETFL) } & O_ACCMODE
    guard mode == O_RDWR || (mode == O_RDONLY && !writable) else { throw .permissionDenied }

    let key = Key(device: info.device, inode: info.inode, writable: writable)
    return try mappings.withLock { mappings throws(Errno) in
      if let mapping = mappings[key]?.mapping, mapping.size >= end, !mapping.isPoisoned {
        return mapping
      }
      // Entries whose mapping went stay until the table has doubled since it was last cleaned.
      if mappings.count >= 64, mappings.count.nonzeroBitCount == 1 {
        mappings = mappings.filter { $0.value.mapping != nil }
      }
      do throws(Errno) {
        // A copy, and whoever unmaps, would wait for another process that may never answer.
        guard !isServedElsewhere(file) else { throw .invalidArgument }
        let mapping = try SharedMapping(file, size: info.size, writable: writable)
        mappings[key] = Weak(mapping: mapping)
        return mapping
      } catch {
        throw error == .notPermitted ? .permissionDenied : error  // sealed against writing
      }
    }
  }
}
