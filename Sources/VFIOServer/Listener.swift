import Dispatch
import LinuxIO
import Locks
import SystemPackage

/// A socket that clients connect to. Dispatch says when one does; nothing else goes through a
/// Dispatch source.
final class Listener: @unchecked Sendable {  // a source may be used from any thread
  let path: String
  private let source: any DispatchSourceRead
  private let closed = DispatchSemaphore(value: 0)

  /// Listens at `path`, replacing a socket that nobody serves any more.
  ///
  /// Throws a sentence that names the path when something else is there, or the directory refuses.
  init(
    at path: String, mode: UInt32, owner: UInt32?, on queue: DispatchQueue,
    connected: @escaping @Sendable (Socket) -> Void
  ) throws(ServerError) {
    self.path = path
    let socket: Socket
    do throws(Errno) {
      try Self.removeStaleSocket(path)
      socket = try Socket.listen(at: path, mode: mode, owner: owner)
    } catch {
      throw ServerError("\(path): \(Self.explain(error))")
    }
    let spare = Mutex<Descriptor?>(try? Descriptor.null())
    let source = DispatchSource.makeReadSource(
      fileDescriptor: socket.descriptor.rawValue, queue: queue)
    source.setEventHandler { @Sendable in
      do throws(Errno) {
        while let client = try socket.accept() { connected(client) }
      } catch {
        // Out of descriptors: give up the spare one to take the client off the queue and turn it away.
        // Without that the source would fire for ever.
        spare.withLock { spare in
          spare = nil
          _ = try? socket.accept()
          spare = try? Descriptor.null()
        }
      }
    }
    // The socket must stay open until Dispatch has let go of it.
    source.setCancelHandler { @Sendable [closed] in
      withExtendedLifetime(socket) {}
      closed.signal()
    }
    self.source = source
    source.activate()
  }

  /// Removes the socket and takes no more clients. Calls after the first do nothing.
  func close() {
    guard !source.isCancelled else { return }
    try? removeFile(path)
    source.cancel()
    closed.wait()
  }

  private static func removeStaleSocket(_ path: String) throws(Errno) {
    guard try isSocket(path) else { return }
    do throws(Errno) {
      _ = try Socket.connect(to: path)
    } catch {
      guard error == .connectionRefused else { throw error }
      return try removeFile(path)
    }
    throw .addressInUse
  }

  private static func explain(_ error: Errno) -> String {
    switch error {
    case .addressInUse: "another server is listening"
    case .fileExists: "there is a file that is not a socket"
    case .fileNameTooLong: "the path is longer than the 107 bytes that a socket's may have"
    default: "\(error)".lowercased()
    }
  }
}

/// Why a server cannot start, as a sentence.
public struct ServerError: Error, Sendable, CustomStringConvertible {
  public let description: String
  init(_ description: String) { self.description = description }
}
