// swift-tools-version: 6.2
import PackageDescription

let settings: [SwiftSetting] = [
  .swiftLanguageMode(.v6), .strictMemorySafety(), .treatAllWarnings(as: .error),
]
let system: Target.Dependency = .product(name: "SystemPackage", package: "swift-system")
let logging: Target.Dependency = .product(name: "Logging", package: "swift-log")
let arguments: Target.Dependency = .product(
  name: "ArgumentParser", package: "swift-argument-parser")

let package = Package(
  name: "vfiod",
  products: [
    .executable(name: "vfiod", targets: ["vfiod"]),
    .executable(name: "vfioctl", targets: ["vfioctl"]),
    .library(name: "VFIOClient", targets: ["VFIOClient"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
  ],
  targets: [
    .target(name: "CLinux"),
    .systemLibrary(
      name: "CJSONC", pkgConfig: "json-c", providers: [.apt(["libjson-c-dev"])]),
    .target(name: "Locks", swiftSettings: settings),
    .target(name: "LinuxIO", dependencies: ["CLinux", "Locks", system], swiftSettings: settings),
    .target(name: "JSON", dependencies: ["CJSONC"], swiftSettings: settings),
    .target(name: "VFIOCore", dependencies: ["Locks", system], swiftSettings: settings),
    .target(
      name: "VFIOIOMMU", dependencies: ["VFIOCore", "Locks", system], swiftSettings: settings),
    .target(name: "VFIOWire", swiftSettings: settings),
    .target(
      name: "VFIOStream", dependencies: ["VFIOWire", "LinuxIO"], swiftSettings: settings),
    .target(name: "VFIOPCI", dependencies: ["VFIOCore", "Locks", system], swiftSettings: settings),
    .target(
      name: "VFIODevices", dependencies: ["VFIOCore", "VFIOPCI"], swiftSettings: settings),
    .target(
      name: "VFIOServer",
      dependencies: [
        "LinuxIO", "JSON", "Locks", "VFIOCore", "VFIOIOMMU", "VFIOWire", "VFIOStream",
        "VFIOPCI", "VFIODevices", system, logging,
      ], swiftSettings: settings),
    .target(
      name: "VFIOClient",
      dependencies: ["LinuxIO", "JSON", "Locks", "VFIOWire", "VFIOStream", system],
      swiftSettings: settings),
    .executableTarget(
      name: "vfiod", dependencies: ["VFIOServer", "LinuxIO", system, logging, arguments],
      swiftSettings: settings),
    .executableTarget(
      name: "vfioctl", dependencies: ["VFIOClient", "LinuxIO", "JSON", arguments],
      swiftSettings: settings),

    .executableTarget(
      name: "benchmark", dependencies: ["VFIOIOMMU", "VFIOCore", system],
      path: "Tests/Benchmark", swiftSettings: settings),
    .executableTarget(
      name: "fuzzer",
      dependencies: [
        "VFIOServer", "VFIOCore", "VFIOStream", "VFIOWire", "LinuxIO", system, logging,
      ], path: "Tests/Fuzz", exclude: ["corpus", "generate", "run"], swiftSettings: settings),
    .testTarget(name: "LinuxIOTests", dependencies: ["LinuxIO"], swiftSettings: settings),
    .testTarget(name: "JSONTests", dependencies: ["JSON"], swiftSettings: settings),
    .testTarget(name: "VFIOCoreTests", dependencies: ["VFIOCore"], swiftSettings: settings),
    .testTarget(
      name: "VFIOIOMMUTests", dependencies: ["VFIOIOMMU", "VFIOCore"], swiftSettings: settings),
    .testTarget(
      name: "VFIOStreamTests", dependencies: ["VFIOStream", "VFIOWire", "LinuxIO"],
      swiftSettings: settings),
    .testTarget(
      name: "VFIOPCITests", dependencies: ["VFIOPCI", "VFIOCore"], swiftSettings: settings),
    .testTarget(
      name: "VFIODevicesTests", dependencies: ["VFIODevices", "VFIOPCI", "VFIOCore"],
      swiftSettings: settings),
    .testTarget(
      name: "VFIOServerTests", dependencies: ["VFIOServer", "VFIOStream", "VFIOWire", "LinuxIO"],
      swiftSettings: settings),
    .testTarget(
      name: "VFIOClientTests",
      dependencies: ["VFIOClient", "VFIOServer", "VFIOWire", "LinuxIO", "Locks", logging],
      swiftSettings: settings),
    .testTarget(
      name: "VFIOCtlTests", dependencies: ["vfioctl", "VFIOClient", "JSON"],
      swiftSettings: settings),
    .testTarget(
      name: "ProtocolTests",
      dependencies: [
        "VFIOServer", "VFIOCore", "VFIOStream", "VFIOWire", "LinuxIO", "JSON", system, logging,
      ], swiftSettings: settings),
  ]
)
