import Glibc
import SystemPackage
import Testing

@testable import LinuxIO

@Suite struct FileTests {
  private let directory: Directory
  private let path: String

  init() throws {
    directory = try Directory()
    path = directory.path
  }

  private func mode(_ path: String) throws -> mode_t {
    var info = stat()
    try call { unsafe lstat(path, &info) }
    return info.st_mode
  }

  private func write(_ bytes: [UInt8], to name: String) throws -> String {
    let file = try openFile("\(path)/\(name)", O_WRONLY | O_CREAT)
    #expect(unsafe Glibc.write(file.rawValue, bytes, bytes.count) == bytes.count)
    return "\(path)/\(name)"
  }

  // MARK: directories

  @Test func `a directory is made with those above it, and its absolute path returned`() throws {
    let made = try makeDirectory("\(path)/a/b//c/")
    defer { for name in ["a/b/c", "a/b"] { _ = unsafe rmdir("\(path)/\(name)") } }
    #expect(made == "\(path)/a/b/c")
    #expect(try mode(made) & S_IFMT == S_IFDIR)
    #expect(try mode(made) & 0o777 == (geteuid() == 0 ? 0o755 : 0o700))
  }

  @Test func `a directory that is there is as good as one that is made`() throws {
    try call { unsafe chmod(path, 0o750) }
    #expect(try makeDirectory(path) == path)
    #expect(try mode(path) & 0o777 == 0o750)
    #expect(try makeDirectory("\(path)/../\(path.split(separator: "/").last ?? "")") == path)
  }

  @Test func `no directory can be made in a file or without a name`() throws {
    let file = try write([], to: "file")
    #expect(throws: Errno.notDirectory) { try makeDirectory("\(file)/below") }
    #expect(throws: Errno.noSuchFileOrDirectory) { try makeDirectory("") }
  }

  @Test func `a directory is locked for one owner until it lets go`() throws {
    var lock: Descriptor? = try lockDirectory(path)
    #expect(throws: Errno.wouldBlock) { try lockDirectory(path) }
    #expect(lock != nil)
    lock = nil
    _ = try lockDirectory(path)
  }

  @Test func `only a directory can be locked`() throws {
    let file = try write([], to: "file")
    #expect(throws: Errno.notDirectory) { try lockDirectory(file) }
    #expect(throws: Errno.noSuchFileOrDirectory) { try lockDirectory("\(path)/none") }
  }

  // MARK: sockets

  @Test func `a socket is told from nothing, and anything else fails with EEXIST`() throws {
    #expect(try !isSocket("\(path)/s"))
    let listener = try Socket.listen(at: "\(path)/s", mode: 0o600, owner: nil)
    #expect(try isSocket("\(path)/s"))
    let file = try write([], to: "file")
    #expect(unsafe symlink("\(path)/s", "\(path)/link") == 0)
    for other in [file, path, "\(path)/link"] {
      #expect(throws: Errno.fileExists) { try isSocket(other) }
    }
    _ = listener
  }

  @Test func `removing a directory's sockets leaves everything else`() throws {
    for name in ["a", "b.sock"] {
      _ = try Socket.listen(at: "\(path)/\(name)", mode: 0o600, owner: nil)
    }
    let file = try write([1], to: "file.sock")
    #expect(unsafe symlink(file, "\(path)/link") == 0)
    #expect(unsafe mkdir("\(path)/directory", 0o700) == 0)
    try removeSockets(in: path)
    for name in ["file.sock", "link", "directory"] { _ = try mode("\(path)/\(name)") }
    for name in ["a", "b.sock"] { #expect(try !isSocket("\(path)/\(name)")) }
    #expect(throws: Errno.noSuchFileOrDirectory) { try removeSockets(in: "\(path)/none") }
  }

  @Test func `removing a file that isn't there fails with ENOENT`() throws {
    let file = try write([], to: "file")
    try removeFile(file)
    #expect(throws: Errno.noSuchFileOrDirectory) { try removeFile(file) }
  }

  // MARK: contents

  @Test(arguments: [0, 1, 4095, 4096, 4097, 10_000])
  func `a file of at most the limit is read whole`(size: Int) throws {
    let bytes = (0..<size).map { UInt8(truncatingIfNeeded: $0 &* 31) }
    #expect(try readFile(try write(bytes, to: "file"), limit: size) == bytes)
  }

  @Test func `a file beyond the limit fails with EFBIG, an endless one too`() throws {
    let file = try write([UInt8](repeating: 1, count: 5000), to: "file")
    #expect(throws: Errno.fileTooLarge) { try readFile(file, limit: 4999) }
    #expect(throws: Errno.fileTooLarge) { try readFile("/dev/zero", limit: 1 << 20) }
  }

  @Test func `a file that isn't there fails with ENOENT, a directory with EISDIR`() {
    #expect(throws: Errno.noSuchFileOrDirectory) { try readFile("\(path)/none", limit: 1) }
    #expect(throws: Errno.isDirectory) { try readFile(path, limit: 1) }
  }

  // MARK: surroundings

  @Test func `users are known by name`() {
    #expect(userID(named: "root") == 0)
    #expect(userID(named: "no such user") == nil)
    #expect(effectiveUser() == geteuid())
  }

  @Test func `a variable of the environment is read, and one that isn't set is nil`() {
    #expect(environment("PATH")?.contains("/bin") == true)
    #expect(environment("VFIOD_NO_SUCH_VARIABLE") == nil)
  }
}
