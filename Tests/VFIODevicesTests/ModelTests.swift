import SystemPackage
import Testing
import VFIOCore
import VFIODevices
import VFIOPCI

@Suite struct ModelTests {
  @Test func `every model that is named can be made`() throws {
    for name in DeviceModels.names {
      _ = try DeviceModels.make(name, DeviceOptions(), memory: Memory.make)
    }
  }

  @Test func `an unknown model is refused with those that are known`() {
    #expect(
      throws: OptionError(
        "model", "\"e1000\" is unknown; allowed: doorbell, edu, scratch, vfio-user-sample")
    ) {
      try DeviceModels.make("e1000", DeviceOptions(), memory: Memory.make)
    }
  }

  @Test func `an option that a model doesn't know is refused`() {
    #expect(throws: OptionError("mask", "unknown option; allowed: dma_mask")) {
      try DeviceModels.make("edu", DeviceOptions(["mask": .integer(1)]), memory: Memory.make)
    }
    #expect(throws: OptionError("size", "unknown option; the model has none")) {
      try DeviceModels.make("scratch", DeviceOptions(["size": .integer(1)]), memory: Memory.make)
    }
  }

  @Test func `a mask that isn't an integer is refused`() {
    #expect(throws: OptionError.self) {
      try DeviceModels.make("edu", DeviceOptions(["dma_mask": .bool(true)]), memory: Memory.make)
    }
  }

  @Test func `what the memory factory throws is the answer`() {
    #expect(throws: Errno.noMemory) {
      try DeviceModels.make("scratch", DeviceOptions()) { _ throws(Errno) in throw .noMemory }
    }
  }
}
