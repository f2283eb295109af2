import Glibc

/// The time of day: nanoseconds since 1970 (UTC).
public func timeOfDay() -> UInt64 {
  var time = timespec()
  // Sound: the call fills the structure given.
  unsafe clock_gettime(CLOCK_REALTIME, &time)
  return UInt64(clamping: time.tv_sec) &* 1_000_000_000 &+ UInt64(clamping: time.tv_nsec)
}
