// Messages of every kind to the server's sessions, in this process:
//
//     fuzzer FILE|DIRECTORY...    does what each input says, and fails where the server does what it mustn't
//
// Built by Tests/Fuzz/run it is libFuzzer, which makes inputs of its own. Input.swift has their format.

#if DEBUG || FUZZ
  import Foundation
  import Glibc
  import LinuxIO
  import VFIOWire

  /// Runs inputs, one after the other, against one server.
  final class Fuzzer {
    private var world: World
    private var count = 0
    /// Open descriptors when nobody is connected; known after the first inputs, since the libraries open
    /// some for good when they are first used.
    private var descriptors: Int?

    init() throws {
      raiseDescriptorLimit()
      world = try World()
    }

    func run(_ bytes: [UInt8]) throws {
      var input = Input(bytes)
      let administered = (0x10...0x13).contains { input.contains([$0, 0x40]) }
      // A device's socket would be made wherever the input says.
      if administered, input.contains(Array(#""socket""#.utf8)) { return }
      count += 1
      do {
        let situation = input.byte()
        let clients = Clients(world, answers: input.byte())
        try clients.begin(situation)
        while !input.isAtEnd { try clients.run(&input) }
        try clients.serve()
        try clients.checkAnswered()
      }
      if try !world.checkUnused(administered: administered) {
        world = try World()
      }
      if count % 64 == 0 { try checkDescriptors() }
    }

    /// Throws when there are more descriptors than after the first inputs.
    func checkDescriptors() throws {
      guard let descriptors else {
        if count >= 1000 { self.descriptors = openDescriptors() }
        return
      }
      // What closes on another thread takes a while.
      for _ in 0..<1000 where openDescriptors() > descriptors + 8 { usleep(1000) }
      let found = openDescriptors()
      guard found <= descriptors + 8 else {
        throw Failure("\(found) descriptors are open, were \(descriptors)")
      }
    }
  }

  /// A device that reaches this process's own memory as that of a client would break the fuzzer: the
  /// server finds that it may not write there. In place of the C library's.
  @_cdecl("pwrite") func refuseToWrite(
    _ file: CInt, _ bytes: UnsafeRawPointer?, _ count: Int, _ position: Int
  ) -> Int {
    errno = EPERM
    return -1
  }
#endif

#if FUZZ
  @_silgen_name("LLVMFuzzerRunDriver") private func runDriver(
    _ count: UnsafeMutablePointer<CInt>,
    _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>>,
    _ runInput: @convention(c) (UnsafePointer<UInt8>?, Int) -> CInt
  ) -> CInt

  // Sound: only libFuzzer's one thread uses it.
  nonisolated(unsafe) private var fuzzer: Fuzzer?

  @main struct Program {
    static func main() throws {
      unsafe fuzzer = try Fuzzer()
      var count = CommandLine.argc
      var arguments = unsafe CommandLine.unsafeArgv
      // Sound: libFuzzer gives as many bytes as it says, and reads its arguments only.
      let status = unsafe runDriver(&count, &arguments) { bytes, count in
        do {
          try unsafe fuzzer?.run(Array(UnsafeBufferPointer(start: bytes, count: count)))
        } catch {
          fatalError("\(error)")
        }
        return 0
      }
      exit(status)
    }
  }
#elseif DEBUG
  @main struct Program {
    static func main() throws { exit(try replay() ? 0 : 1) }

    /// False when an input failed. The server is gone when it returns, so that nothing counts as leaked.
    private static func replay() throws -> Bool {
      let fuzzer = try Fuzzer()
      var (inputs, failures) = (0, 0)
      let start = ContinuousClock.now
      for path in CommandLine.arguments.dropFirst() {
        for file in try files(path) {
          // Said before, so that a log ends with the one that ended this process.
          complain(file)
          inputs += 1
          do {
            try fuzzer.run(try readFile(file, limit: 1 << 20))
          } catch {
            failures += 1
            complain("error: \(file): \(error)")
          }
        }
      }
      try fuzzer.checkDescriptors()
      let time = ContinuousClock.now - start
      print("\(inputs - failures) passed, \(failures) failed in \(time.components.seconds) s")
      return failures == 0
    }

    private static func files(_ path: String) throws -> [String] {
      var isDirectory: ObjCBool = false
      // Sound: the call fills the boolean given.
      guard unsafe FileManager.default.fileExists(atPath: path, isDirectory: &isDirectory) else {
        throw Failure("\(path) isn't there")
      }
      guard isDirectory.boolValue else { return [path] }
      return try FileManager.default.contentsOfDirectory(atPath: path).sorted()
        .map { "\(path)/\($0)" }
    }
  }
#else
  @main struct Program {
    static func main() { print("It looks inside the server: build it for debugging.") }
  }
#endif
