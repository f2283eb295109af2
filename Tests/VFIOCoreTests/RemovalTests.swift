import Dispatch
import Locks
import SystemPackage
import Testing
import VFIOCore

@Suite struct `Removing a device` {
  /// What completions were called with, by name.
  let completed = Log()

  func remove(_ device: BusDevice, from world: World) throws -> Removal {
    try world.registry.removeDevice(device) { [completed] operations in
      completed.add((operations as? TestDevice)?.name ?? "?")
    }
  }

  @Test func `a device that isn't in use goes at once, with what it was added with`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let removal = try remove(device, from: world)
    #expect(completed.lines == ["edu"])
    #expect(world.log.lines.isEmpty)
    #expect(!removal.cancel())
  }

  @Test func `a device that isn't there fails with ENODEV`() throws {
    let world = try World()
    let stub = try world.plug("stub", driver: "pci-stub")
    #expect(throws: Errno.operationNotSupportedByDevice) { try remove(stub, from: world) }
    let device = try world.addDevice("edu")
    #expect(throws: Errno.operationNotSupportedByDevice) { try remove(stub, from: world) }
    _ = try remove(device, from: world)
    #expect(throws: Errno.operationNotSupportedByDevice) { try remove(device, from: world) }
    #expect(completed.lines == ["edu"])
  }

  @Test func `a device in use is asked for, and goes when its last descriptor closes`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let first = try group.openDevice("edu")
    let second = try group.openDevice("edu")
    world.log.clear()
    _ = try remove(device, from: world)
    #expect(world.log.lines == ["edu request"])
    first.release()
    #expect(completed.lines.isEmpty)
    #expect(world.registry.operations(of: device) != nil)
    second.release()
    #expect(completed.lines == ["edu"])
    #expect(world.registry.operations(of: device) == nil)
  }

  @Test func `the device has gone when the completion is called, and its group too`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let groups = Mutex<Int?>(nil)
    let (group, _) = try world.openLiveGroup()
    let open = try group.openDevice("edu")
    let registry = world.registry
    try registry.removeDevice(device) { _ in groups.withLock { $0 = registry.groups.count } }
    group.release()
    open.release()
    #expect(groups.withLock { $0 } == 0)
    #expect(world.log.lines.suffix(2) == ["type1 detach 26", "type1 release"])
  }

  @Test func `a completion may add the device again`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let registry = world.registry
    try registry.removeDevice(device) { operations in
      #expect(throws: Never.self) { try registry.addDevice(device, operations: operations) }
    }
    #expect(registry.operations(of: device) != nil)
  }

  @Test func `a device that is being removed cannot be opened, ENODEV`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let open = try group.openDevice("edu")
    _ = try remove(device, from: world)
    #expect(throws: Errno.operationNotSupportedByDevice) { try group.openDevice("edu") }
    open.release()
  }

  @Test func `a device that is being removed cannot be removed or added again, EBUSY`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let open = try group.openDevice("edu")
    _ = try remove(device, from: world)
    #expect(throws: Errno.resourceBusy) { try remove(device, from: world) }
    #expect(throws: Errno.resourceBusy) {
      try world.registry.addDevice(device, operations: TestDevice("twin", log: world.log))
    }
    open.release()
    #expect(completed.lines == ["edu"])
  }

  @Test func `a device that is being removed keeps its group viable until it has gone`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let open = try group.openDevice("edu")
    _ = try remove(device, from: world)
    #expect(group.status.contains(.viable))
    open.release()
    #expect(!group.status.contains(.viable))
  }

  @Test func `after a cancel the device is as before, and the completion is never called`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let first = try group.openDevice("edu")
    let removal = try remove(device, from: world)
    #expect(removal.cancel())
    let second = try group.openDevice("edu")
    first.release()
    second.release()
    #expect(completed.lines.isEmpty)
    let third = try group.openDevice("edu")
    third.release()
    #expect(world.registry.operations(of: device) != nil)
  }

  @Test func `a second cancel does nothing`() throws {
    let world = try World()
    let device = try world.addDevice("edu")
    let (group, _) = try world.openLiveGroup()
    let open = try group.openDevice("edu")
    let removal = try remove(device, from: world)
    #expect(removal.cancel())
    let again = try remove(device, from: world)
    #expect(!removal.cancel())
    open.release()
    #expect(completed.lines == ["edu"])
    #expect(!again.cancel())
  }

  @Test func `of a cancel and the last close, exactly one wins`() throws {
    let world = try World()
    for _ in 0..<200 {
      let device = try world.addDevice("edu")
      let (group, _) = try world.openLiveGroup()
      let open = try group.openDevice("edu")
      completed.clear()
      let removal = try remove(device, from: world)
      let isCancelled = Mutex(false)
      DispatchQueue.concurrentPerform(iterations: 2) { index in
        if index == 0 {
          open.release()
        } else {
          let cancelled = removal.cancel()
          isCancelled.withLock { $0 = cancelled }
        }
      }
      let cancelled = isCancelled.withLock { $0 }
      #expect(completed.lines == (cancelled ? [] : ["edu"]))
      #expect((world.registry.operations(of: device) != nil) == cancelled)
      group.release()
      if cancelled { _ = try remove(device, from: world) }
      try world.registry.unbind(device)
      try world.registry.unplug(device)
    }
  }
}
