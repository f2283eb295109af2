"""The scratch device: memory by message and by mapping, MSI-X, BAR decoding."""

import errno
import os

import pytest
from support import refused

import vfiod
from vfiod import RegionFlags
from vfiod.wire import IRQ

MIB = 1 << 20
COMMAND = 4
MEMORY_DECODING = 2


def test_bar_0_is_1_mib_of_memory_by_message(scratch: vfiod.Device) -> None:
    info = scratch.region_info(0)
    assert info.size == MIB
    assert info.flags == RegionFlags.READ | RegionFlags.WRITE
    assert info.descriptor is None


def test_bar_0_holds_what_is_written_with_any_size_and_alignment(scratch: vfiod.Device) -> None:
    bar = scratch.region(0)
    for offset, count in ((0, 1), (1, 2), (3, 4), (5, 8), (100, 4096), (0x1FFF, 12345), (MIB - 1, 1)):
        data = os.urandom(count)
        bar.write(offset, data)
        assert bar.read(offset, count) == data


def test_all_of_bar_0_goes_in_one_message(scratch: vfiod.Device) -> None:
    data = os.urandom(MIB)
    scratch.region(0).write(0, data)
    assert scratch.region(0).read(0, MIB) == data


def test_typed_accesses_are_little_endian(scratch: vfiod.Device) -> None:
    bar = scratch.region(0)
    bar.write64(0, 0x0123_4567_89AB_CDEF)
    assert bar.read8(0) == 0xEF
    assert bar.read16(0) == 0xCDEF
    assert bar.read32(4) == 0x0123_4567
    bar.write8(7, 0xFF)
    bar.write16(0, 0xAAAA)
    bar.write32(2, 0xBBBB_BBBB)
    assert bar.read64(0) == 0xFF23_BBBB_BBBB_AAAA


def test_bar_2_is_2_mib_with_all_but_its_first_page_mappable(scratch: vfiod.Device) -> None:
    info = scratch.region_info(2)
    try:
        assert info.size == 2 * MIB
        assert info.flags & RegionFlags.MMAP
        assert info.flags & RegionFlags.CAPS
        assert info.areas == ((0x1000, 2 * MIB - 0x1000),)
        assert info.descriptor is not None
    finally:
        info.close()


def test_region_information_without_room_brings_no_descriptor(scratch: vfiod.Device) -> None:
    request = vfiod.wire.REGION_INFO.pack(32, 0, 2, 0, 0, 0)
    reply = scratch.connection.request(vfiod.Command.DEVICE_GET_REGION_INFO, request)
    try:
        assert len(reply.payload) == 32
        assert reply.descriptors == []
        assert vfiod.wire.RawRegionInfo(*vfiod.wire.REGION_INFO.unpack(reply.payload)).argsz > 32
    finally:
        reply.close()


def test_mapping_and_messages_see_the_same_memory(scratch: vfiod.Device) -> None:
    bar = scratch.region(2)
    [area] = bar.map()
    with area:
        area[0x1000:0x1005] = b"hello"
        assert bar.read(0x1000, 5) == b"hello"
        bar.write(2 * MIB - 4, b"last")
        assert area[2 * MIB - 4 : 2 * MIB] == b"last"


def test_the_first_page_of_bar_2_is_memory_by_message(scratch: vfiod.Device) -> None:
    bar = scratch.region(2)
    bar.write(0, b"first")
    assert bar.read(0, 5) == b"first"
    bar.write(0xFFE, b"both")
    assert bar.read(0xFFE, 4) == b"both"


def test_a_client_cannot_change_the_size_of_the_mappable_memory(scratch: vfiod.Device) -> None:
    info = scratch.region_info(2)
    assert info.descriptor is not None
    try:
        for size in (0, 4 * MIB):
            with pytest.raises(PermissionError):
                os.ftruncate(info.descriptor.fileno(), size)
    finally:
        info.close()
    scratch.region(2).write(0x1000, b"safe")
    assert scratch.region(2).read(0x1000, 4) == b"safe"


def test_bar_2_has_64_bits(scratch: vfiod.Device) -> None:
    scratch.config.write32(0x18, 0xFFFF_FFFF)
    scratch.config.write32(0x1C, 0xFFFF_FFFF)
    assert scratch.config.read32(0x18) & 0xFFFF_FFF7 == 0xFFE0_0004
    assert scratch.config.read32(0x1C) == 0xFFFF_FFFF


def test_a_bar_whose_decoding_is_off_answers_with_an_io_error(scratch: vfiod.Device) -> None:
    scratch.region(0).write32(0, 0x1234_5678)
    command = scratch.config.read16(COMMAND)
    scratch.config.write16(COMMAND, command & ~MEMORY_DECODING)
    for region in (0, 2, 4):
        with refused(errno.EIO):
            scratch.region(region).read32(0)
        with refused(errno.EIO):
            scratch.region(region).write32(0, 0)
    assert scratch.config.read16(0) == 0x1234
    scratch.config.write16(COMMAND, command)
    assert scratch.region(0).read32(0) == 0x1234_5678


def test_a_reset_leaves_the_memory_alone(scratch: vfiod.Device) -> None:
    scratch.region(0).write(0, b"kept")
    scratch.region(2).write(0x1000, b"kept")
    scratch.reset()
    assert scratch.region(0).read(0, 4) == b"kept"
    assert scratch.region(2).read(0x1000, 4) == b"kept"


def test_the_msix_capability_points_into_bar_4(scratch: vfiod.Device) -> None:
    at = scratch.config.read8(0x34)
    while at and scratch.config.read8(at) != 0x11:
        at = scratch.config.read8(at + 1)
    assert at
    assert scratch.config.read16(at + 2) & 0x7FF == 7
    assert scratch.config.read32(at + 4) == 0x0000_0004
    assert scratch.config.read32(at + 8) == 0x0000_0804
    assert scratch.region_info(4).size >= 0x1000


def test_the_pin_of_intx_is_a(scratch: vfiod.Device) -> None:
    assert scratch.config.read8(0x3D) == 1


def test_its_interrupts_are_raised_by_hand(scratch: vfiod.Device) -> None:
    with vfiod.EventFD() as event:
        scratch.set_triggers(IRQ.MSIX, [event], start=5)
        scratch.trigger_irqs(IRQ.MSIX, 5)
        assert event.count() == 1
