import CLinux
import Glibc
import SystemPackage

/// Makes a directory and those above it, unless it is there, and returns its absolute path.
///
/// It is open to all when root makes it, and to its user alone otherwise.
public func makeDirectory(_ path: String) throws(Errno) -> String {
  var made = path.hasPrefix("/") ? "/" : ""
  for name in path.split(separator: "/") {
    made += made.isEmpty || made == "/" ? name : "/" + name
    do throws(Errno) {
      // Sound: the path outlives the call.
      try call { unsafe mkdir(made, geteuid() == 0 ? 0o755 : 0o700) }
    } catch {
      guard error == .fileExists else { throw error }
    }
  }
  // Sound: realpath allocates the string that is freed here.
  guard let absolute = unsafe realpath(path, nil) else { throw Errno(rawValue: errno) }
  defer { unsafe free(absolute) }
  return unsafe String(cString: absolute)
}

/// Locks a directory for this process; `EWOULDBLOCK` when another one has.
public func lockDirectory(_ path: String) throws(Errno) -> Descriptor {
  // Sound: the path outlives the call.
  let directory = Descriptor(
    owning: try call { unsafe open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) })
  try call { flock(directory.rawValue, LOCK_EX | LOCK_NB) }
  return directory
}

/// Whether there is a socket at `path`: false when there is nothing, `EEXIST` for anything else.
public func isSocket(_ path: String) throws(Errno) -> Bool {
  var info = stat()
  do throws(Errno) {
    // Sound: the path outlives the call, which fills the structure.
    try call { unsafe lstat(path, &info) }
  } catch {
    guard error == .noSuchFileOrDirectory else { throw error }
    return false
  }
  guard info.st_mode & S_IFMT == S_IFSOCK else { throw .fileExists }
  return true
}

public func removeFile(_ path: String) throws(Errno) {
  // Sound: the path outlives the call.
  try call { unsafe unlink(path) }
}

/// Removes the sockets of a directory, and leaves everything else alone.
public func removeSockets(in directory: String) throws(Errno) {
  // Sound: the stream is closed below, and an entry is read before the next is asked for.
  guard let stream = unsafe opendir(directory) else { throw Errno(rawValue: errno) }
  defer { unsafe closedir(stream) }
  while let entry = unsafe readdir(stream) {
    let name = unsafe withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
      unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }
    let path = "\(directory)/\(name)"
    if (try? isSocket(path)) == true { try removeFile(path) }
  }
}

/// Reads a whole file of at most `limit` bytes; `EFBIG` beyond that.
public func readFile(_ path: String, limit: Int) throws(Errno) -> [UInt8] {
  // Sound: the path outlives the call.
  let file = Descriptor(owning: try call { unsafe open(path, O_RDONLY | O_CLOEXEC) })
  var bytes: [UInt8] = []
  var piece = [UInt8](repeating: 0, count: 4096)
  while true {
    // Sound: the kernel writes at most the array's size.
    let count = try call { unsafe read(file.rawValue, &piece, piece.count) }
    if count == 0 { return bytes }
    bytes += piece.prefix(count)
    guard bytes.count <= limit else { throw .fileTooLarge }
  }
}

/// Opens a file to read and write it.
public func openFile(_ path: String) throws(Errno) -> Descriptor {
  // Sound: the path outlives the call.
  Descriptor(owning: try call { unsafe open(path, O_RDWR | O_CLOEXEC) })
}

/// The uid of a user; nil when there is none of that name.
public func userID(named name: String) -> UInt32? {
  // Sound: the entry is read before any other call could reuse it; only used at start.
  unsafe getpwnam(name)?.pointee.pw_uid
}

public func effectiveUser() -> UInt32 { geteuid() }

public func effectiveGroup() -> UInt32 { getegid() }

extension Descriptor {
  /// Device and inode of the file: whether two descriptors are of the same one.
  public func fileNumbers() throws(Errno) -> (device: UInt64, inode: UInt64) {
    var info = clinux_file_status()
    // Sound: the call fills the structure given.
    try call { unsafe clinux_file_status(rawValue, &info) }
    return (info.device, info.inode)
  }

  /// `/dev/null`, as a descriptor to give up when there are no more.
  public static func null() throws(Errno) -> Descriptor {
    Descriptor(owning: try call { unsafe open("/dev/null", O_RDONLY | O_CLOEXEC) })
  }
}

/// A variable of the environment.
public func environment(_ name: String) -> String? {
  // Sound: the string is copied before anything could change the environment; only used at start.
  unsafe getenv(name).map { unsafe String(cString: $0) }
}

/// Writes a line to standard error.
public func complain(_ sentence: String) {
  let line = Array("\(sentence)\n".utf8)
  // Sound: the array outlives the call, which only reads it.
  _ = unsafe write(STDERR_FILENO, line, line.count)
}

/// The name of a user; nil when there is none of that number.
public func userName(of id: UInt32) -> String? {
  // Sound: the entry is read before any other call could reuse it; only used by a tool of one thread.
  unsafe getpwuid(id).map { unsafe String(cString: $0.pointee.pw_name) }
}

/// Writes what was printed, on all streams; false when that can't be done, such as on a full disk.
public func flushOutput() -> Bool {
  fflush(nil) == 0
}

/// Where a server has its sockets unless it is told; nil when `XDG_RUNTIME_DIR` would say, and isn't set.
public func defaultServerDirectory() -> String? {
  if effectiveUser() == 0 { return "/run/vfiod" }
  guard let runtime = environment("XDG_RUNTIME_DIR"), !runtime.isEmpty else { return nil }
  return "\(runtime)/vfiod"
}

/// Whether a file's system is served by another process or machine, so that reading it may wait for ever.
/// Asks only this process's own tables.
func isServedElsewhere(_ file: Descriptor) -> Bool {
  guard let info = try? readFile("/proc/self/fdinfo/\(file.rawValue)", limit: 1 << 16),
    let mount = String(decoding: info, as: UTF8.self).split(separator: "\n").first(where: {
      $0.hasPrefix("mnt_id:")
    })?
    .split(whereSeparator: { $0 == "\t" || $0 == " " }).last,
    let mounts = try? readFile("/proc/self/mountinfo", limit: 1 << 20),
    let line = String(decoding: mounts, as: UTF8.self).split(separator: "\n").first(where: {
      $0.hasPrefix("\(mount) ")
    }),
    let separator = line.firstRange(of: " - ")
  else { return false }  // shared memory has a mount of its own, which isn't listed
  let type = line[separator.upperBound...].prefix { $0 != " " }
  return type.hasPrefix("fuse") || type.hasPrefix("nfs")
    || ["virtiofs", "9p", "cifs", "smb3", "ceph", "afs"].contains(type)
}
