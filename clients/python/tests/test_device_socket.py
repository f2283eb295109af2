"""`devices/NAME.sock`: the whole way in one connection, as emulators go it."""

import errno
import os

import pytest
from conftest import Edu
from support import (
    EDU,
    EDU_BUFFER,
    EDU_DMA_INTERRUPTS,
    EDU_TO_MEMORY,
    FOREIGN,
    IOVA,
    PAGE,
    SCRATCH,
    STUB,
    TIMEOUT,
    Server,
    attach,
    bus_master,
    edu_load,
    edu_start,
    edu_store,
    expect_closed,
    expect_error,
    in_child,
    refused,
    version_message,
)

import vfiod
from vfiod import DMAFlags, wire
from vfiod.wire import IRQ, Command

# Who gets it


def test_only_devices_of_vfio_drivers_have_a_socket(server: Server) -> None:
    names = {path.name for path in (server.directory / "devices").iterdir()}
    assert f"{EDU}.sock" in names and f"{SCRATCH}.sock" in names
    assert f"{STUB}.sock" not in names and f"{FOREIGN}.sock" not in names


def test_a_second_client_is_told_that_the_device_is_busy(server: Server) -> None:
    with server.device(SCRATCH) as device, server.raw(SCRATCH) as second:
        second.send_raw(version_message())
        expect_error(second.receive().header, errno.EBUSY)
        expect_closed(second)
        assert device.info().argsz == 16


def test_a_second_client_gets_the_device_once_the_first_has_left(server: Server) -> None:
    for _ in range(50):
        with server.device(SCRATCH) as device:
            assert device.config.read16(0) == 0x1234


def test_a_client_that_has_not_sent_version_does_not_hold_the_device(server: Server) -> None:
    with server.raw(SCRATCH), server.device(SCRATCH) as device:
        assert device.config.read16(0) == 0x1234


def test_a_device_whose_group_is_open_elsewhere_is_busy(server: Server, root: vfiod.Root) -> None:
    with root.open_group(27), refused(errno.EBUSY):
        server.device(SCRATCH)
    server.device(SCRATCH).close()


def test_a_group_whose_device_is_in_use_by_its_socket_is_busy(
    server: Server, root: vfiod.Root
) -> None:
    with server.device(SCRATCH), refused(errno.EBUSY):
        root.open_group(27)
    root.open_group(27).close()


def test_a_device_whose_group_is_not_viable_cannot_be_used(server: Server) -> None:
    with pytest.raises(vfiod.VFIOError):
        server.device("0000:08:00.0")


def test_a_client_that_is_killed_frees_the_device(server: Server) -> None:
    def work() -> int:
        server.device(SCRATCH)
        os.kill(os.getpid(), 9)
        return 0

    assert in_child(work).status == -9
    server.device(SCRATCH).close()


# What stays and what goes


def test_a_new_client_finds_the_device_as_the_last_one_left_it(server: Server) -> None:
    with server.device(EDU) as device:
        device.region(0).write32(0x04, 0x1234)
        device.config.write16(4, 0x0006)
    with server.device(EDU) as device:
        assert device.region(0).read32(0x04) == 0xFFFF_EDCB
        assert device.config.read16(4) & 0x0006 == 0x0006


def test_a_client_through_the_group_finds_the_device_reset(server: Server, root: vfiod.Root) -> None:
    with server.device(EDU) as device:
        device.region(0).write32(0x04, 0x1234)
    with attach(root, EDU) as (_, group), group.open_device(EDU) as device:
        assert device.region(0).read32(0x04) != 0xFFFF_EDCB


def test_the_maps_of_the_last_client_are_gone(server: Server) -> None:
    with vfiod.Memory(PAGE) as memory:
        with server.device(EDU) as device:
            bus_master(device)
            device.map_dma(IOVA, PAGE, memory=memory)
            memory[0:4] = b"data"
            edu_load(device, IOVA, 4)
        memory[0:4] = b"keep"
        with server.device(EDU) as device:
            edu_store(device, IOVA, 4)
            assert memory[0:4] == b"keep"
            device.map_dma(IOVA, PAGE, memory=memory)
            edu_store(device, IOVA, 4)
            assert memory[0:4] == b"data"


def test_the_eventfds_of_the_last_client_are_gone(server: Server) -> None:
    with vfiod.EventFD() as event:
        with server.device(SCRATCH) as device:
            device.set_triggers(IRQ.MSIX, [event])
        with server.device(SCRATCH) as device, vfiod.EventFD() as other:
            device.set_triggers(IRQ.MSIX, [other], start=1)
            device.set_irqs(IRQ.MSIX, wire.IRQSet.DATA_NONE | wire.IRQSet.TRIGGER, 1, 1)
            assert other.count() == 1
        assert event.count() == 0


def test_the_memory_that_the_last_client_mapped_is_not_the_next_ones(server: Server) -> None:
    with server.device(SCRATCH) as device:
        [old] = device.region(2).map()
    with old:
        old[0x1000:0x1004] = b"last"
        with server.device(SCRATCH) as device:
            device.region(2).write(0x1000, b"next")
            assert device.region(2).read(0x1000, 4) == b"next"
            assert old[0x1000:0x1004] == b"last"


def test_mappable_memory_keeps_its_content_for_the_next_client(server: Server) -> None:
    with server.device(SCRATCH) as device:
        device.region(2).write(0x2000, b"content")
    with server.device(SCRATCH) as device:
        assert device.region(2).read(0x2000, 7) == b"content"
        [area] = device.region(2).map()
        with area:
            assert area[0x2000:0x2007] == b"content"


# DMA


@pytest.mark.parametrize("iova", [0, 0xFEE0_0000, 1 << 48, (1 << 64) - PAGE])
def test_a_devices_own_socket_has_the_whole_address_space(server: Server, iova: int) -> None:
    with server.device(SCRATCH) as device, device.map_dma(iova, PAGE) as memory:
        with refused(errno.EEXIST):
            device.map_dma(iova, PAGE, memory=memory.memory)


def test_a_device_out_of_a_group_has_the_ranges_of_its_container(edu: Edu) -> None:
    for iova in (0xFEE0_0000, 1 << 48, (1 << 64) - PAGE):
        with refused(errno.EINVAL):
            edu.device.map_dma(iova, PAGE)


@pytest.mark.parametrize(
    "iova, size, flags, offset",
    [
        pytest.param(IOVA, 0, 3, 0, id="no size"),
        pytest.param(IOVA, PAGE, 0, 0, id="no permission"),
        pytest.param(IOVA, 2 * PAGE, 3, 0, id="more than the file has"),
        pytest.param(IOVA, PAGE, 3, PAGE, id="what begins at the file's end"),
    ],
)
def test_a_map_that_cannot_be_is_refused(
    server: Server, iova: int, size: int, flags: int, offset: int
) -> None:
    request = wire.USER_DMA_MAP.pack(32, flags, offset, iova, size)
    with server.device(SCRATCH) as device, vfiod.Memory(PAGE) as memory:
        with refused(errno.EINVAL):
            device.connection.call(Command.DMA_MAP, request, [memory])


def test_a_map_that_wraps_is_refused(server: Server) -> None:
    with server.device(SCRATCH) as device, vfiod.Memory(PAGE) as memory:
        for address, offset in (((1 << 64) - PAGE, 0), (IOVA, (1 << 64) - PAGE)):
            request = wire.USER_DMA_MAP.pack(32, 3, offset, address, 2 * PAGE)
            with refused(errno.EOVERFLOW):
                device.connection.call(Command.DMA_MAP, request, [memory])


def test_a_map_over_another_is_refused(server: Server) -> None:
    with server.device(SCRATCH) as device, device.map_dma(IOVA, 2 * PAGE):
        for iova, size in ((IOVA, 2 * PAGE), (IOVA + PAGE, PAGE), (IOVA - PAGE, 2 * PAGE)):
            with refused(errno.EEXIST):
                device.map_dma(iova, size)


def test_unmapping_must_name_a_map_exactly(server: Server) -> None:
    with server.device(SCRATCH) as device, device.map_dma(IOVA, 2 * PAGE):
        for iova, size in (
            (IOVA, PAGE),
            (IOVA + PAGE, PAGE),
            (IOVA, 3 * PAGE),
            (IOVA - PAGE, 4 * PAGE),
            (0, PAGE),
        ):
            with refused(errno.ENOENT):
                device.unmap_dma(iova, size)


def test_a_dma_request_that_is_too_short_is_refused(server: Server) -> None:
    with server.device(SCRATCH) as device:
        for command, size in ((Command.DMA_MAP, 32), (Command.DMA_UNMAP, 24)):
            for length in (0, 4, 8, size - 1):
                with refused(errno.EINVAL):
                    device.connection.call(command, (bytes([size]) + bytes(31))[:length])


def test_an_unmap_is_answered_with_its_entry(server: Server) -> None:
    with server.device(SCRATCH) as device, vfiod.Memory(PAGE) as memory:
        device.map_dma(IOVA, PAGE, memory=memory)
        request = wire.USER_DMA_UNMAP.pack(24, 0, IOVA, PAGE)
        assert device.connection.call(Command.DMA_UNMAP, request)[8:24] == request[8:24]


def test_a_device_out_of_a_group_maps_into_its_container(edu: Edu) -> None:
    with vfiod.Memory(PAGE) as memory:
        edu.device.map_dma(IOVA, PAGE, memory=memory)
        with refused(errno.EEXIST):
            edu.container.map_dma(IOVA, PAGE)
        assert edu.container.unmap_dma(IOVA, PAGE) == PAGE


def test_a_device_does_not_unmap_what_its_container_mapped(edu: Edu) -> None:
    with edu.container.map_dma(IOVA, PAGE):
        with refused(errno.ENOENT):
            edu.device.unmap_dma(IOVA, PAGE)


def test_what_a_device_mapped_goes_when_it_closes(root: vfiod.Root) -> None:
    with attach(root, EDU) as (container, group):
        with group.open_device(EDU) as device, vfiod.Memory(PAGE) as memory:
            device.map_dma(IOVA, PAGE, memory=memory)
        assert container.unmap_dma(IOVA, PAGE) == 0


def test_the_device_reads_and_writes_shared_memory(server: Server) -> None:
    with server.device(EDU) as device, device.map_dma(IOVA, 2 * PAGE) as memory:
        bus_master(device)
        data = os.urandom(PAGE)
        memory[0:PAGE] = data
        edu_load(device, IOVA, PAGE)
        edu_store(device, IOVA + PAGE, PAGE)
        assert memory[PAGE : 2 * PAGE] == data


def faults(server: Server) -> int:
    """Transfers of edu's that have met a fault, as the administrator sees them."""
    with server.connect() as root:
        devices = [device for group in root.topology()["groups"] for device in group["devices"]]
    [count] = [device["faults"] for device in devices if device["address"] == EDU]
    return int(count)


def test_the_device_reads_and_writes_memory_by_message(server: Server) -> None:
    before = faults(server)
    with server.device(EDU) as device:
        bus_master(device)
        memory = bytearray(2 * PAGE)
        memory[0:PAGE] = os.urandom(PAGE)
        device.map_dma_by_message(IOVA, memory)
        edu_load(device, IOVA, PAGE)
        edu_store(device, IOVA + PAGE, PAGE)
        assert memory[PAGE:] == memory[:PAGE]
        device.unmap_dma(IOVA, 2 * PAGE)
        edu_store(device, IOVA, PAGE)
    assert faults(server) == before + 1


def test_an_interrupt_after_dma_by_message_can_be_waited_for(server: Server) -> None:
    with server.device(EDU) as device, vfiod.EventFD() as event:
        bus_master(device)
        device.set_triggers(IRQ.MSI, [event])
        memory = bytearray(b"interrupt" * 10 + bytes(PAGE - 90))
        device.map_dma_by_message(IOVA, memory)
        edu_start(device, IOVA, EDU_BUFFER, 90, EDU_DMA_INTERRUPTS)
        assert device.wait(event, TIMEOUT) == 1
        edu_start(device, EDU_BUFFER, IOVA + 1000, 90, EDU_TO_MEMORY | EDU_DMA_INTERRUPTS)
        assert device.wait(event, TIMEOUT) == 1
        assert memory[1000:1090] == b"interrupt" * 10
        assert device.wait(event, 0.01) == 0


def test_memory_by_message_is_refused_where_it_may_not_be_written(server: Server) -> None:
    before = faults(server)
    with server.device(EDU) as device:
        bus_master(device)
        memory = bytearray(b"\1" * PAGE)
        device.map_dma_by_message(IOVA, memory, DMAFlags.READ)
        edu_load(device, IOVA, 4)
        edu_store(device, IOVA + 8, 4, at=100)
        assert memory == b"\1" * PAGE
    assert faults(server) == before + 1


def test_a_client_that_refuses_a_dma_message_causes_a_fault_only(server: Server) -> None:
    before = faults(server)
    with server.device(EDU) as device:
        bus_master(device)
        memory = bytearray(PAGE)
        device.map_dma_by_message(IOVA, memory)
        device.connection.on_command = lambda message: device.connection.reply(message, error=5)
        edu_load(device, IOVA, 64)
        edu_store(device, IOVA, 64)
        assert device.region(0).read32(0) == 0x010000ED
    assert faults(server) == before + 2


def test_a_client_that_leaves_during_a_dma_message_frees_the_device(server: Server) -> None:
    for _ in range(20):
        with server.device(EDU) as device:
            bus_master(device)
            device.map_dma_by_message(IOVA, bytearray(PAGE))
            bar = device.region(0)
            for register, value in ((0x80, IOVA), (0x88, 0x40000), (0x90, 64), (0x98, 1)):
                bar.write64(register, value)
    server.device(EDU).close()


def test_a_dma_message_that_is_answered_with_too_little_is_a_fault_only(server: Server) -> None:
    with server.device(EDU) as device:
        bus_master(device)
        device.map_dma_by_message(IOVA, bytearray(PAGE), DMAFlags.READ)
        device.connection.on_command = lambda message: device.connection.reply(
            message, wire.DMA_ACCESS.pack(IOVA, 1 << 40) + b"short"
        )
        edu_load(device, IOVA, 64)
        assert device.region(0).read32(0) == 0x010000ED


def test_a_descriptor_belongs_to_the_map_it_was_sent_with(server: Server) -> None:
    """A map without a descriptor, then one with, sent back to back; one after it without."""
    with server.device(EDU) as device, vfiod.Memory(PAGE) as shared:
        bus_master(device)
        for _ in range(50):
            shared[0:4] = os.urandom(4)
            pending = [
                device.connection.submit(
                    Command.DMA_MAP,
                    wire.USER_DMA_MAP.pack(32, 3, 0, iova, PAGE),
                    descriptors,
                    lambda reply: reply.close(),
                )
                for iova, descriptors in (
                    (IOVA, []),
                    (IOVA + PAGE, [shared]),
                    (IOVA + 2 * PAGE, []),
                )
            ]
            for each in pending:
                each.result()
            edu_load(device, IOVA + PAGE, 4)
            # Without a descriptor the memory is the client's own, which no page of the file is.
            edu_load(device, IOVA, 4)
            edu_load(device, IOVA + 2 * PAGE, 4)
            edu_store(device, IOVA + PAGE + 64, 4)
            assert shared[64:68] == shared[0:4]
            for page in range(3):
                device.unmap_dma(IOVA + page * PAGE, PAGE)