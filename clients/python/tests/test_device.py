"""A device's own operations: information, regions, interrupts. Most run on both kinds of socket."""

import errno
import os

import pytest
from conftest import Edu
from support import EDU, SCRATCH, Server, attach, refused

import vfiod
from vfiod import DeviceFlags, IRQFlags, IRQSet, wire
from vfiod.wire import IRQ, Command

NOTHING = IRQSet(0)


# Information


def test_a_device_describes_itself(scratch: vfiod.Device) -> None:
    info = scratch.info()
    assert info.flags == DeviceFlags.RESET | DeviceFlags.PCI
    assert info.regions >= 9
    assert info.interrupts >= 5
    assert info.argsz == 16


def test_an_information_request_that_is_too_short_is_refused(scratch: vfiod.Device) -> None:
    for command, layout in (
        (Command.DEVICE_GET_INFO, wire.DEVICE_INFO),
        (Command.DEVICE_GET_REGION_INFO, wire.REGION_INFO),
        (Command.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO),
    ):
        whole = bytes([layout.size]) + bytes(layout.size - 1)
        for payload in (b"", whole[:4], whole[:-1], bytes([layout.size - 1]) + whole[1:]):
            with refused(errno.EINVAL):
                scratch.connection.call(command, payload)


def test_a_region_or_an_interrupt_beyond_the_last_is_refused(scratch: vfiod.Device) -> None:
    info = scratch.info()
    for index in (info.regions, info.regions + 1, 0xFFFF_FFFF):
        with refused(errno.EINVAL):
            scratch.region_info(index)
    for index in (info.interrupts, info.interrupts + 1, 0xFFFF_FFFF):
        with refused(errno.EINVAL):
            scratch.irq_info(index)


def test_a_bar_that_the_device_has_not_got_has_no_size(scratch: vfiod.Device) -> None:
    for index in (1, 5):
        info = scratch.region_info(index)
        assert (info.size, info.areas) == (0, ())


def test_configuration_space_can_be_read_and_written(scratch: vfiod.Device) -> None:
    info = scratch.region_info(7)
    assert info.size in (256, 4096)
    assert info.flags == vfiod.RegionFlags.READ | vfiod.RegionFlags.WRITE
    assert len(scratch.config.read(0, info.size)) == info.size


def test_intx_masks_itself_and_msix_may_grow(scratch: vfiod.Device) -> None:
    intx = scratch.irq_info(IRQ.INTX)
    assert intx.count == 1
    assert intx.flags == IRQFlags.EVENTFD | IRQFlags.MASKABLE | IRQFlags.AUTOMASKED
    msix = scratch.irq_info(IRQ.MSIX)
    assert msix.count == 8
    assert msix.flags == IRQFlags.EVENTFD | IRQFlags.MASKABLE
    assert scratch.irq_info(IRQ.MSI).count == 0


def test_an_unknown_command_is_not_supported(scratch: vfiod.Device) -> None:
    for command in (0, 14, 19, 100, 0x3B6B, 0x4000, 0xFFFF):
        with refused(errno.ENOTSUP):
            scratch.connection.request(command, b"a body that must be skipped")
    assert scratch.info().argsz == 16


def test_a_feature_that_the_device_lacks_is_refused(scratch: vfiod.Device) -> None:
    probe = 1 << 18 | 1 << 16
    with refused(errno.EINVAL):
        scratch.connection.request(Command.DEVICE_FEATURE, wire.FEATURE.pack(8, probe | 0xFFFF))


def test_a_feature_request_that_is_too_short_is_refused(scratch: vfiod.Device) -> None:
    for payload in (b"", b"\x08\0\0\0"):
        with refused(errno.EINVAL):
            scratch.connection.request(Command.DEVICE_FEATURE, payload)


def test_migration_data_without_a_migration_is_refused(scratch: vfiod.Device) -> None:
    for command in (Command.MIG_DATA_READ, Command.MIG_DATA_WRITE):
        for payload in (b"", wire.GROUP_STATUS.pack(16, 8), wire.GROUP_STATUS.pack(16, 8) + bytes(8)):
            with refused(errno.EINVAL):
                scratch.connection.request(command, payload)


# Region accesses


@pytest.mark.parametrize(
    "region, offset, count",
    [
        pytest.param(0, 1 << 20, 4, id="at the end"),
        pytest.param(0, (1 << 20) - 2, 4, id="across the end"),
        pytest.param(0, (1 << 64) - 1, 4, id="an offset that wraps"),
        pytest.param(0, (1 << 64) - 4, 4, id="an end of 2^64"),
        pytest.param(0, 1 << 63, 4, id="a negative offset"),
        pytest.param(3, 0, 4, id="a BAR that isn't there"),
        pytest.param(9, 0, 4, id="a region beyond the last"),
        pytest.param(0xFFFF_FFFF, 0, 4, id="the region -1"),
        pytest.param(7, 4096, 4, id="beyond configuration space"),
    ],
)
def test_an_access_outside_is_refused(
    scratch: vfiod.Device, region: int, offset: int, count: int
) -> None:
    with refused(errno.EINVAL):
        scratch.region(region).submit_read(offset, count).result()
    with refused(errno.EINVAL):
        scratch.region(region).submit_write(offset, bytes(count)).result()
    assert scratch.config.read16(0) == 0x1234


def test_an_access_larger_than_agreed_is_refused(scratch: vfiod.Device) -> None:
    limit = scratch.version.capabilities.get("max_data_xfer_size", 1 << 20)
    for count in (limit + 1, 0x7FFF_FFFF, 0xFFFF_FFFF):
        with refused(errno.EINVAL):
            scratch.region(2).submit_read(0, count).result()
    assert scratch.info().argsz == 16


def test_a_write_whose_data_is_not_as_long_as_its_count_is_refused(scratch: vfiod.Device) -> None:
    for count, data in ((8, b"1234"), (0xFFFF_FFFF, b"1234"), (1, b"")):
        request = wire.REGION_ACCESS.pack(0, 0, count) + data
        with refused(errno.EINVAL):
            scratch.connection.call(Command.REGION_WRITE, request)


def test_an_access_request_that_is_too_short_is_refused(scratch: vfiod.Device) -> None:
    whole = wire.REGION_ACCESS.pack(0, 0, 4)
    for command in (Command.REGION_READ, Command.REGION_WRITE):
        for length in (0, 8, 15):
            with refused(errno.EINVAL):
                scratch.connection.call(command, whole[:length])


def test_a_reply_repeats_the_access(scratch: vfiod.Device) -> None:
    request = wire.REGION_ACCESS.pack(0x10, 0, 8)
    reply = scratch.connection.call(Command.REGION_READ, request)
    assert reply[:16] == request
    assert len(reply) == 24
    assert scratch.connection.call(Command.REGION_WRITE, request + bytes(8)) == request


def test_pipelined_requests_keep_their_order(scratch: vfiod.Device) -> None:
    bar = scratch.region(0)
    pending: list[vfiod.Pending[bytes]] = []
    for number in range(1000):
        bar.submit_write(0, number.to_bytes(4, "little"))
        pending.append(bar.submit_read(0, 4))
    assert [int.from_bytes(each.result(), "little") for each in pending] == list(range(1000))


def test_a_posted_write_is_done_before_what_is_asked_next(scratch: vfiod.Device) -> None:
    bar = scratch.region(0)
    for number in range(1000):
        bar.post_write(0x40, number.to_bytes(4, "little"))
    assert bar.read32(0x40) == 999


def test_several_writes_go_in_one_message(scratch: vfiod.Device) -> None:
    writes = [(0, 0x100, b"ab"), (0, 0x102, b"c"), (0, 0x103, b"12345678")]
    assert scratch.write_multi(writes) == 3
    assert scratch.region(0).read(0x100, 11) == b"abc12345678"


def test_several_writes_that_lie_about_their_number_are_refused(scratch: vfiod.Device) -> None:
    entry = wire.REGION_WRITE_MULTI.pack(0, 0, 4, b"data")
    for number in (2, 0xFFFF_FFFF, (1 << 64) - 1, 0x0AAA_AAAA_AAAA_AAAB):
        with refused(errno.EINVAL):
            scratch.connection.call(Command.REGION_WRITE_MULTI, wire.U64.pack(number) + entry)
    for payload in (b"", bytes(4)):
        with refused(errno.EINVAL):
            scratch.connection.call(Command.REGION_WRITE_MULTI, payload)


def test_a_write_of_more_than_8_bytes_among_several_is_refused(scratch: vfiod.Device) -> None:
    for count in (9, 0xFFFF_FFFF):
        entry = wire.REGION_WRITE_MULTI.pack(0, 0, count, b"data")
        with refused(errno.EINVAL):
            scratch.connection.call(Command.REGION_WRITE_MULTI, wire.U64.pack(1) + entry)


# Interrupts


@pytest.mark.parametrize(
    "index, flags, start, count",
    [
        pytest.param(IRQ.MSIX, NOTHING, 0, 1, id="neither data nor action"),
        pytest.param(IRQ.MSIX, IRQSet.DATA_NONE, 0, 1, id="no action"),
        pytest.param(IRQ.MSIX, IRQSet.TRIGGER, 0, 1, id="no data"),
        pytest.param(IRQ.MSIX, IRQSet.DATA_NONE | IRQSet.MASK | IRQSet.TRIGGER, 0, 1, id="two actions"),
        pytest.param(
            IRQ.MSIX, IRQSet.DATA_NONE | IRQSet.DATA_BOOL | IRQSet.TRIGGER, 0, 1, id="two kinds of data"
        ),
        pytest.param(IRQ.MSIX, IRQSet.DATA_NONE | IRQSet.TRIGGER | 1 << 6, 0, 1, id="an unknown flag"),
        pytest.param(IRQ.MSIX, IRQSet.DATA_NONE | IRQSet.TRIGGER, 8, 1, id="a start beyond the last"),
        pytest.param(IRQ.MSIX, IRQSet.DATA_NONE | IRQSet.TRIGGER, 7, 2, id="a range across the last"),
        pytest.param(IRQ.MSIX, IRQSet.DATA_NONE | IRQSet.TRIGGER, 0xFFFF_FFFF, 1, id="the start -1"),
        pytest.param(IRQ.MSIX, IRQSet.DATA_NONE | IRQSet.TRIGGER, 1, 0xFFFF_FFFF, id="a range that wraps"),
        pytest.param(IRQ.MSIX, IRQSet.DATA_NONE | IRQSet.TRIGGER, 0, 0xFFFF_FFFF, id="the count -1"),
        pytest.param(IRQ.MSIX, IRQSet.DATA_BOOL | IRQSet.TRIGGER, 0, 2, id="bools without data"),
        pytest.param(IRQ.INTX, IRQSet.DATA_NONE | IRQSet.TRIGGER, 1, 1, id="a second INTx"),
        pytest.param(IRQ.MSI, IRQSet.DATA_NONE | IRQSet.TRIGGER, 0, 1, id="MSI on a device without"),
        pytest.param(5, IRQSet.DATA_NONE | IRQSet.TRIGGER, 0, 1, id="an index beyond the last"),
        pytest.param(0xFFFF_FFFF, IRQSet.DATA_NONE | IRQSet.TRIGGER, 0, 0, id="the index -1"),
    ],
)
def test_interrupts_that_cannot_be_set_are_refused(
    scratch: vfiod.Device, index: int, flags: int, start: int, count: int
) -> None:
    with refused(errno.EINVAL):
        scratch.set_irqs(index, flags, start, count)
    assert scratch.info().argsz == 16


def test_an_interrupt_request_that_is_too_short_is_refused(scratch: vfiod.Device) -> None:
    whole = wire.IRQ_SET.pack(20, IRQSet.DATA_NONE | IRQSet.TRIGGER, IRQ.MSIX, 0, 1)
    short = wire.IRQ_SET.pack(19, IRQSet.DATA_NONE | IRQSet.TRIGGER, IRQ.MSIX, 0, 1)
    for payload in (b"", whole[:8], whole[:19], short):
        with refused(errno.EINVAL):
            scratch.connection.call(Command.DEVICE_SET_IRQS, payload)


def test_a_descriptor_that_is_no_eventfd_is_refused(scratch: vfiod.Device) -> None:
    reading, writing = os.pipe()
    with vfiod.Descriptor(reading), vfiod.Descriptor(writing) as pipe, vfiod.Memory(4096) as memory:
        with open("/dev/null", "r+b") as null:
            for descriptor in (pipe, memory, null, scratch):
                with refused(errno.EINVAL):
                    scratch.set_triggers(IRQ.MSIX, [descriptor])


def test_fewer_or_more_eventfds_than_interrupts_are_refused(scratch: vfiod.Device) -> None:
    flags = IRQSet.DATA_EVENTFD | IRQSet.TRIGGER
    with vfiod.EventFD() as first, vfiod.EventFD() as second:
        with refused(errno.EINVAL):
            scratch.set_irqs(IRQ.MSIX, flags, 0, 2, descriptors=[first])
        with refused(errno.EINVAL):
            scratch.set_irqs(IRQ.MSIX, flags, 0, 1, descriptors=[first, second])
        with refused(errno.EINVAL):
            scratch.set_irqs(IRQ.MSIX, flags, 7, 2, descriptors=[first, second])


def test_an_interrupt_signals_its_own_eventfd(scratch: vfiod.Device) -> None:
    events = [vfiod.EventFD() for _ in range(8)]
    try:
        scratch.set_triggers(IRQ.MSIX, events)
        scratch.trigger_irqs(IRQ.MSIX, 3)
        scratch.trigger_irqs(IRQ.MSIX, 6, 2)
        assert [event.count() for event in events] == [0, 0, 0, 1, 0, 0, 1, 1]
    finally:
        for event in events:
            event.close()


def test_bools_choose_which_interrupts_are_raised(scratch: vfiod.Device) -> None:
    with vfiod.EventFD() as first, vfiod.EventFD() as second, vfiod.EventFD() as third:
        events = [first, second, third]
        scratch.set_triggers(IRQ.MSIX, events)
        scratch.set_irqs(IRQ.MSIX, IRQSet.DATA_BOOL | IRQSet.TRIGGER, 0, 3, data=b"\1\0\1")
        assert [event.count() for event in events] == [1, 0, 1]


def test_an_eventfd_can_be_replaced(scratch: vfiod.Device) -> None:
    with vfiod.EventFD() as old, vfiod.EventFD() as new:
        scratch.set_triggers(IRQ.MSIX, [old])
        scratch.set_triggers(IRQ.MSIX, [new])
        scratch.trigger_irqs(IRQ.MSIX)
        assert (old.count(), new.count()) == (0, 1)


def test_a_vector_without_a_descriptor_has_no_eventfd(scratch: vfiod.Device) -> None:
    flags = IRQSet.DATA_EVENTFD | IRQSet.TRIGGER
    scratch.set_irqs(IRQ.MSIX, flags, 0, 1)
    with vfiod.EventFD() as event, vfiod.EventFD() as other:
        scratch.set_triggers(IRQ.MSIX, [event, other])
        scratch.set_irqs(IRQ.MSIX, flags, 0, 1)
        scratch.set_irqs(IRQ.MSIX, IRQSet.DATA_NONE | IRQSet.TRIGGER, 1, 1)
        assert (event.count(), other.count()) == (0, 1)


def test_disabling_takes_every_eventfd_of_the_index_away(scratch: vfiod.Device) -> None:
    with vfiod.EventFD() as event, vfiod.EventFD() as last:
        scratch.set_triggers(IRQ.MSIX, [event])
        scratch.set_triggers(IRQ.MSIX, [last], start=7)
        scratch.disable_irqs(IRQ.MSIX)
        scratch.set_triggers(IRQ.MSIX, [event], start=1)
        scratch.trigger_irqs(IRQ.MSIX, 1)
        assert (event.count(), last.count()) == (1, 0)


def test_kinds_of_interrupts_have_their_own_eventfds(scratch: vfiod.Device) -> None:
    with vfiod.EventFD() as error, vfiod.EventFD() as request, vfiod.EventFD() as vector:
        scratch.set_triggers(IRQ.ERR, [error])
        scratch.set_triggers(IRQ.REQ, [request])
        scratch.set_triggers(IRQ.MSIX, [vector])
        scratch.disable_irqs(IRQ.MSIX)
        scratch.trigger_irqs(IRQ.REQ)
        assert (error.count(), request.count(), vector.count()) == (0, 1, 0)


def test_intx_masks_itself_until_it_is_unmasked(scratch: vfiod.Device) -> None:
    with vfiod.EventFD() as event:
        scratch.set_triggers(IRQ.INTX, [event])
        scratch.trigger_irqs(IRQ.INTX)
        assert event.count() == 1
        scratch.unmask_irqs(IRQ.INTX)
        scratch.trigger_irqs(IRQ.INTX)
        assert event.count() == 1


def test_eventfds_may_change_while_they_are_signalled(server: Server, scratch: vfiod.Device) -> None:
    with vfiod.EventFD() as one, vfiod.EventFD() as other:
        for number in range(500):
            scratch.connection.post(
                Command.DEVICE_SET_IRQS,
                wire.IRQ_SET.pack(20, IRQSet.DATA_NONE | IRQSet.TRIGGER, IRQ.MSIX, 0, 1),
            )
            scratch.set_triggers(IRQ.MSIX, [one if number % 2 else other])
        assert one.count() + other.count() == 499
    server.check_alive()


# Reset and life


def test_a_reset_keeps_the_command_register(scratch: vfiod.Device) -> None:
    scratch.config.write16(4, 0x0006)
    scratch.reset()
    assert scratch.config.read16(4) & 0x0007 == 0x0006


def test_the_first_open_through_a_group_resets_and_enables_decoding_only(root: vfiod.Root) -> None:
    with attach(root, EDU) as (_, group):
        with group.open_device(EDU) as device:
            assert device.config.read16(4) & 0x0007 == 0x0003
            device.enable_bus_master()
            device.region(0).write32(0x04, 0x1234)
            with group.open_device(EDU) as second:
                assert second.config.read16(4) & 0x0004
                assert second.region(0).read32(0x04) == 0xFFFF_EDCB
        with group.open_device(EDU) as device:
            assert device.config.read16(4) & 0x0007 == 0x0003
            assert device.region(0).read32(0x04) != 0xFFFF_EDCB


def test_a_reset_clears_the_devices_registers(edu: Edu) -> None:
    edu.bar.write32(0x04, 0x1234)
    before = edu.bar.read32(0x04)
    edu.device.reset()
    assert edu.bar.read32(0x04) != before
    assert edu.device.config.read16(4) & 0x0004


def test_the_identity_is_in_configuration_space(scratch: vfiod.Device) -> None:
    assert scratch.config.read32(0) == 0x5C7A_1234
    scratch.config.write32(0, 0xFFFF_FFFF)
    assert scratch.config.read32(0) == 0x5C7A_1234


def test_two_sessions_of_a_device_have_their_own_streams(root: vfiod.Root) -> None:
    with attach(root, SCRATCH) as (_, group):
        with group.open_device(SCRATCH) as first, group.open_device(SCRATCH) as second:
            pending = [
                (one.region(0).submit_write(4 * number, bytes([number] * 4)), one)
                for number in range(100)
                for one in (first, second)
            ]
            for each, _ in pending:
                assert each.result() == 4
            assert second.region(0).read(4 * 99, 4) == bytes([99] * 4)
