"""Devices that move from one server to another, and the log of what they write."""

import errno
import itertools
import os
import threading
import time
from collections.abc import Iterator

import pytest
from support import (
    DOORBELL,
    DOORBELL_ONLY,
    EDU,
    IOVA,
    PAGE,
    SCRATCH,
    Server,
    attach,
    bus_master,
    edu_load,
    edu_store,
    refused,
    until,
)

import vfiod
from vfiod import IRQ, Memory, MigrationState

SAMPLE = "0000:01:00.0"
SAMPLE_ONLY = {"groups": [{"id": 1, "devices": [{"address": SAMPLE, "model": "vfio-user-sample"}]}]}


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A second server, which serves the same devices."""
    server = Server(tmp_path_factory.mktemp("other") / "vfiod")
    yield server
    server.stop()


def read_all(device: vfiod.Device, size: int = 1 << 16) -> bytes:
    """What there is to be read for now."""
    data = b""
    while True:
        piece = device.read_migration_data(size)
        data += piece
        if len(piece) < size:
            return data


def resume(device: vfiod.Device, data: bytes, size: int = 1 << 16) -> None:
    device.migration_state = MigrationState.RESUMING
    for start in range(0, len(data), size):
        device.write_migration_data(data[start : start + size])
    device.migration_state = MigrationState.RUNNING


def move(source: vfiod.Device, destination: vfiod.Device, size: int = 1 << 16) -> None:
    """With a pre-copy, as emulators do."""
    source.migration_state = MigrationState.PRE_COPY
    data = read_all(source, size)
    source.migration_state = MigrationState.STOP_COPY
    data += read_all(source, size)
    source.migration_state = MigrationState.STOP
    resume(destination, data, size)


# Between two servers


@pytest.mark.parametrize("size", [17, 1000, 1 << 20])
def test_edu_moves_with_its_registers_and_its_buffer(server: Server, other: Server, size: int) -> None:
    content = os.urandom(4096)
    with Memory(PAGE) as memory:
        memory[0:PAGE] = content
        with server.device(EDU) as source, source.map_dma(IOVA, PAGE, memory=memory):
            bus_master(source)
            source.region(0).write32(0x04, 0x1234)
            source.region(0).write32(0x60, 0x30)
            edu_load(source, IOVA, PAGE)
            with other.device(EDU) as destination:
                move(source, destination, size)
                assert destination.region(0).read32(0x04) == 0xFFFF_FFFF ^ 0x1234
                assert destination.region(0).read32(0x24) == 0x30
                assert destination.config.read16(4) & 4
                with destination.map_dma(IOVA, PAGE) as fresh:
                    edu_store(destination, IOVA, PAGE)
                    assert fresh[0:PAGE] == content
            source.reset()


def test_an_interrupt_that_is_asserted_comes_at_the_destination(server: Server, other: Server) -> None:
    with server.device(EDU) as source, other.device(EDU) as destination, vfiod.EventFD() as event:
        source.region(0).write32(0x60, 1)
        destination.set_triggers(IRQ.INTX, [event])
        move(source, destination)
        assert event.wait(20)
        destination.region(0).write32(0x64, 1)
        source.reset()


def test_scratch_moves_under_load_and_nothing_is_lost(server: Server, other: Server) -> None:
    """One client writes by message and into the mapping, as fast as it can, until it's told that the
    device has stopped; a write that it was promised must be at the destination."""
    with server.device(SCRATCH) as source, other.device(SCRATCH) as destination:
        written: dict[tuple[int, int], int] = {}
        turn = threading.Lock()  # a client's messages go one after the other
        stopped = threading.Event()
        bar, mappable = source.region(0), source.region(2)
        (area,) = mappable.map()
        with area:

            def write() -> None:
                for number in itertools.count(1):
                    place = number * 4 % (1 << 20)
                    with turn:
                        try:
                            bar.write32(place, number)
                        except vfiod.VFIOError as error:
                            assert error.errno == errno.EINVAL
                            stopped.set()
                            return
                        written[0, place] = number
                        area[0x1000 + place : 0x1004 + place] = number.to_bytes(4, "little")
                        written[2, 0x1000 + place] = number

            thread = threading.Thread(target=write)
            thread.start()
            data = b""
            with turn:
                source.migration_state = MigrationState.PRE_COPY
            for _ in range(60):
                with turn:
                    data += source.read_migration_data(1 << 16)
            with turn:
                source.migration_state = MigrationState.STOP_COPY
            assert stopped.wait(20)
            thread.join()
            data += read_all(source)
        resume(destination, data)
        assert len(written) > 10
        for index, size in ((0, 1 << 20), (2, 2 << 20)):
            found = b"".join(
                destination.region(index).read(start, 1 << 18) for start in range(0, size, 1 << 18)
            )
            lost = [
                place
                for (region, place), number in written.items()
                if region == index and found[place : place + 4] != number.to_bytes(4, "little")
            ]
            assert not lost, f"BAR {index}: {len(lost)} of {len(written)} writes lost"
        source.reset()


def test_edu_moves_to_and_fro_under_load_and_no_copy_is_lost(server: Server, other: Server) -> None:
    """A copy is started right before each move, and what it should do is done."""
    with Memory(PAGE) as memory, server.device(EDU) as one, other.device(EDU) as two:
        with one.map_dma(IOVA, PAGE, memory=memory), two.map_dma(IOVA, PAGE, memory=memory):
            bus_master(one)
            source, destination = one, two
            for round in range(20):
                content = bytes([round + 1]) * PAGE
                memory[0:PAGE] = content
                registers = source.region(0)
                registers.write64(0x80, IOVA)
                registers.write64(0x88, 0x40000)
                registers.write64(0x90, PAGE)
                registers.write64(0x98, 1)
                move(source, destination)
                memory[0:PAGE] = bytes(PAGE)
                assert destination.region(0).read64(0x98) & 1 == 0
                edu_store(destination, IOVA, PAGE)
                assert memory[0:PAGE] == content, f"round {round}"
                source, destination = destination, source
        one.reset()
        two.reset()


@pytest.mark.vfiod(DOORBELL_ONLY)
def test_a_doorbell_that_was_rung_before_the_stop_moves(server: Server) -> None:
    with Server(topology=DOORBELL_ONLY) as other:
        for _ in range(5):
            with server.device(DOORBELL) as source, other.device(DOORBELL) as destination:
                before = source.region(0).read32(0)
                doorbells = source.region(0).doorbells()
                doorbells[0].ring()
                source.migration_state = MigrationState.STOP_COPY
                resume(destination, read_all(source, 1 << 20), 1 << 20)
                assert destination.region(0).read32(0) == before + 1
                for bell in doorbells:
                    bell.close()
                source.reset()
                destination.reset()


def test_a_state_of_another_model_is_refused(server: Server, other: Server) -> None:
    with server.device(EDU) as source, other.device(SCRATCH) as destination:
        source.migration_state = MigrationState.STOP_COPY
        data = read_all(source)
        source.reset()
        destination.region(0).write(0, b"as before")
        destination.migration_state = MigrationState.RESUMING
        with refused(errno.EINVAL):
            destination.write_migration_data(data)
        with refused(errno.EINVAL):
            destination.migration_state = MigrationState.STOP
        assert destination.migration_state == MigrationState.ERROR
        assert destination.region(0).read(0, 9) == b"as before"
        destination.reset()
        destination.region(0).write(0, b"and again")


def test_a_state_that_ends_early_is_refused(server: Server) -> None:
    with server.device(EDU) as device:
        device.migration_state = MigrationState.STOP_COPY
        data = read_all(device)
        for length in (1, 16, 17, 100, len(data) - 1):
            with refused(errno.EINVAL):
                resume(device, data[:length])
            assert device.migration_state == MigrationState.ERROR
            device.reset()


def test_a_client_that_dies_leaves_the_state_to_the_next(server: Server) -> None:
    with server.device(EDU) as device:
        device.migration_state = MigrationState.STOP_COPY
        device.read_migration_data(10)
    with server.device(EDU) as device:
        assert device.migration_state == MigrationState.STOP_COPY
        device.reset()


def test_a_device_out_of_its_group_migrates_too(server: Server, other: Server) -> None:
    with server.connect() as root, attach(root, SCRATCH) as (_, group):
        with group.open_device(SCRATCH) as source, other.device(SCRATCH) as destination:
            source.region(0).write(5, b"moved")
            move(source, destination)
            assert destination.region(0).read(5, 5) == b"moved"
            source.reset()


def test_a_copy_by_message_is_finished_before_the_device_stops(server: Server) -> None:
    content = bytearray(os.urandom(PAGE))
    with server.device(EDU) as device:
        bus_master(device)
        device.map_dma_by_message(IOVA, content)
        registers = device.region(0)
        registers.write64(0x80, IOVA)
        registers.write64(0x88, 0x40000)
        registers.write64(0x90, PAGE)
        registers.write64(0x98, 1)
        device.migration_state = MigrationState.STOP
        device.migration_state = MigrationState.RUNNING
        back = bytearray(PAGE)
        device.unmap_dma(IOVA, PAGE)
        device.map_dma_by_message(IOVA, back)
        edu_store(device, IOVA, PAGE)
        assert back == content


# The log of a device's DMA


def test_the_log_has_the_pages_that_the_device_has_written(server: Server) -> None:
    with server.device(EDU) as device, device.map_dma(IOVA, 8 * PAGE):
        bus_master(device)
        edu_store(device, IOVA, 16)
        assert device.start_dma_log() == PAGE
        assert device.dma_log(IOVA, 8 * PAGE) == set()
        edu_load(device, IOVA, 16)
        assert device.dma_log(IOVA, 8 * PAGE) == set()
        edu_store(device, IOVA + 2 * PAGE - 8, 16)
        assert device.dma_log(IOVA, 8 * PAGE) == {1, 2}
        assert device.dma_log(IOVA, 8 * PAGE) == set()
        edu_store(device, IOVA + 3 * PAGE, 16)
        assert device.dma_log(IOVA, 8 * PAGE, PAGE // 2) == {6, 7}
        edu_store(device, IOVA + 3 * PAGE, 16)
        assert device.dma_log(IOVA, 8 * PAGE, 2 * PAGE) == {1}
        device.stop_dma_log()
        with refused(errno.EINVAL):
            device.dma_log(IOVA, 8 * PAGE)


def test_only_the_ranges_given_are_logged(server: Server) -> None:
    with server.device(EDU) as device, device.map_dma(IOVA, 4 * PAGE):
        bus_master(device)
        device.start_dma_log(PAGE, [(IOVA + PAGE, PAGE)])
        edu_store(device, IOVA, 16)
        edu_store(device, IOVA + PAGE, 16)
        assert device.dma_log(IOVA, 4 * PAGE) == {1}


def test_the_log_ends_with_the_last_client(server: Server) -> None:
    with server.device(EDU) as device:
        device.start_dma_log()
    with server.device(EDU) as device, refused(errno.EINVAL):
        device.dma_log(0, PAGE)


# The sample


@pytest.mark.vfiod(SAMPLE_ONLY)
def test_the_samples_timer_interrupts_and_copies(server: Server) -> None:
    content = bytearray(PAGE)
    with server.device(SAMPLE) as device, vfiod.EventFD() as event, device.map_dma(PAGE, PAGE) as memory:
        device.map_dma_by_message(0, content)
        device.set_triggers(IRQ.INTX, [event])
        device.start_dma_log()
        device.region(0).write64(0, int(time.time()))
        assert event.wait(20)
        letters = b"".join(bytes([letter]) * 1024 for letter in b"ABCD")
        until(lambda: device.region(0).read64(0) > 0 and content == letters, "the copy by message")
        assert memory[0:PAGE] == letters
        assert device.dma_log(0, 2 * PAGE) == {0, 1}


@pytest.mark.vfiod(SAMPLE_ONLY)
def test_the_sample_has_its_ids_and_three_pages_of_memory(server: Server) -> None:
    with server.device(SAMPLE) as device:
        assert device.config.read(0, 4) == bytes.fromhex("adde efbe")
        assert device.config.read(0x2C, 4) == bytes.fromhex("feca beba")
        assert device.info().regions == 9
        info = device.region_info(1)
        info.close()
        assert info.size == 0x3000
        assert info.areas == ((0, 0x1000), (0x2000, 0x1000))
        device.region(1).write(0, bytes(range(256)) * 48)
        assert device.region(1).read(0, 0x3000) == bytes(range(256)) * 48
