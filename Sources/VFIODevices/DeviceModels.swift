import VFIOCore
import VFIOPCI

/// The models that a configuration may name.
public enum DeviceModels {
  public static let names = ["doorbell", "edu", "scratch", "vfio-user-sample"]

  /// A device of `model`. Throws `OptionError` for a model or an option that isn't known or allowed,
  /// and what `memory` throws.
  public static func make(
    _ model: String, _ options: DeviceOptions, memory: @escaping MemoryFactory
  ) throws -> any DeviceOperations {
    switch model {
    case "doorbell":
      try options.allow(only: [])
      return try PCIFunction(DoorbellDevice(), memory: memory)
    case "edu":
      try options.allow(only: ["dma_mask"])
      var edu = Edu()
      if let mask = try options.integer("dma_mask") { edu.dmaMask = mask }
      return try PCIFunction(edu, memory: memory)
    case "scratch":
      try options.allow(only: [])
      return try PCIFunction(Scratch(), memory: memory)
    case "vfio-user-sample":
      try options.allow(only: [])
      return try PCIFunction(Sample(), memory: memory)
    default:
      throw OptionError(
        "model", "\"\(model)\" is unknown; allowed: \(names.joined(separator: ", "))")
    }
  }
}
