import Testing
import VFIOCore

@Test func `placeholder`() { #expect(DMAAccess.read.rawValue == 1) }
