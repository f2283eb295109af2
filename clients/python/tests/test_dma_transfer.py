"""What devices see of mapped memory: shared files, a process's own memory, dirty pages."""

import ctypes
import errno
import mmap
import os

import pytest
from conftest import Edu
from support import (
    EDU,
    IOVA,
    PAGE,
    SECOND_EDU,
    Server,
    allow_server_to_read_us,
    attach,
    bus_master,
    edu_load,
    edu_store,
    refused,
)

import vfiod
from vfiod import DMAFlags, wire
from vfiod.wire import Operation

BOTH = DMAFlags.READ | DMAFlags.WRITE


def test_a_device_reads_and_writes_mapped_memory(edu: Edu) -> None:
    with edu.container.map_dma(IOVA, 2 * PAGE) as memory:
        data = os.urandom(PAGE)
        memory[0:PAGE] = data
        edu_load(edu.device, IOVA, PAGE)
        edu_store(edu.device, IOVA + PAGE, PAGE)
        assert memory[PAGE : 2 * PAGE] == data


def test_the_offset_chooses_the_place_in_the_file(edu: Edu) -> None:
    with vfiod.Memory(4 * PAGE) as memory:
        memory[3 * PAGE : 3 * PAGE + 5] = b"hello"
        with edu.container.map_dma(IOVA, PAGE, memory=memory, offset=3 * PAGE):
            edu_load(edu.device, IOVA, 5)
        with edu.container.map_dma(IOVA, PAGE, memory=memory):
            edu_store(edu.device, IOVA, 5)
        assert memory[0:5] == b"hello"


def test_a_transfer_may_cross_maps_that_touch(edu: Edu) -> None:
    with edu.container.map_dma(IOVA, PAGE) as low, edu.container.map_dma(IOVA + PAGE, PAGE) as high:
        low[PAGE - 3 : PAGE] = b"abc"
        high[0:3] = b"def"
        edu_load(edu.device, IOVA + PAGE - 3, 6)
        edu_store(edu.device, IOVA, 6)
        assert low[0:6] == b"abcdef"


def test_unmapped_memory_is_out_of_a_devices_reach(edu: Edu) -> None:
    with edu.container.map_dma(IOVA, PAGE) as memory:
        memory[0:4] = b"old!"
        edu_load(edu.device, IOVA, 4)
        memory[0:4] = b"new!"
        memory.unmap()
        edu_store(edu.device, IOVA, 4)
        assert memory[0:4] == b"new!"


def test_memory_mapped_for_reading_only_is_not_written(edu: Edu) -> None:
    with edu.container.map_dma(IOVA, PAGE, DMAFlags.READ) as memory:
        memory[0:4] = b"data"
        edu_load(edu.device, IOVA, 4)
        memory[0:4] = b"keep"
        edu_store(edu.device, IOVA, 4)
        assert memory[0:4] == b"keep"


def test_memory_mapped_for_writing_only_is_not_read(edu: Edu) -> None:
    with edu.container.map_dma(IOVA, PAGE, DMAFlags.WRITE) as secret:
        with edu.container.map_dma(IOVA + PAGE, PAGE) as memory:
            memory[0:4] = b"open"
            edu_load(edu.device, IOVA + PAGE, 4)
            secret[0:4] = b"hide"
            edu_load(edu.device, IOVA, 4)
            edu_store(edu.device, IOVA + PAGE, 4)
            assert memory[0:4] != b"hide"


TWO_EDUS = pytest.mark.vfiod(
    {
        "groups": [
            {"id": 26, "devices": [{"address": EDU, "model": "edu"}]},
            {"id": 28, "devices": [{"address": SECOND_EDU, "model": "edu"}]},
        ]
    }
)


@TWO_EDUS
def test_two_containers_do_not_see_each_others_memory(root: vfiod.Root) -> None:
    with attach(root, EDU) as (mine, my_group), attach(root, SECOND_EDU) as (other, other_group):
        with my_group.open_device(EDU) as my_edu, other_group.open_device(SECOND_EDU) as other_edu:
            bus_master(my_edu)
            bus_master(other_edu)
            with mine.map_dma(IOVA, PAGE) as my_memory, other.map_dma(IOVA, PAGE) as other_memory:
                my_memory[0:4] = b"mine"
                other_memory[0:4] = b"thei"
                edu_load(my_edu, IOVA, 4)
                edu_load(other_edu, IOVA, 4)
                edu_store(my_edu, IOVA + 8, 4)
                edu_store(other_edu, IOVA + 8, 4)
                assert my_memory[8:12] == b"mine"
                assert other_memory[8:12] == b"thei"
                other_memory.unmap()
                edu_store(other_edu, IOVA, 4)
                assert my_memory[0:4] == b"mine"


@TWO_EDUS
def test_two_groups_in_one_container_see_the_same_memory(root: vfiod.Root) -> None:
    with attach(root, EDU) as (container, group), root.open_group(28) as second:
        second.set_container(container)
        with group.open_device(EDU) as one, second.open_device(SECOND_EDU) as two:
            bus_master(one)
            bus_master(two)
            with container.map_dma(IOVA, PAGE) as memory:
                memory[0:4] = b"once"
                edu_load(one, IOVA, 4)
                edu_store(one, IOVA + 16, 4)
                edu_load(two, IOVA + 16, 4)
                edu_store(two, IOVA + 32, 4)
                assert memory[32:36] == b"once"


def test_memory_that_was_truncated_is_a_fault_and_no_crash(server: Server, edu: Edu) -> None:
    with vfiod.Memory(PAGE) as memory, edu.container.map_dma(IOVA, PAGE, memory=memory):
        os.ftruncate(memory.fileno(), 0)
        edu_load(edu.device, IOVA, PAGE)
        edu_store(edu.device, IOVA, PAGE)
        server.check_alive()
    with edu.container.map_dma(IOVA, PAGE) as fresh:
        fresh[0:4] = b"good"
        edu_load(edu.device, IOVA, 4)
        edu_store(edu.device, IOVA + 8, 4)
        assert fresh[8:12] == b"good"


def test_memory_that_was_truncated_and_grown_again_can_be_mapped_anew(edu: Edu) -> None:
    with vfiod.Memory(PAGE) as memory:
        with edu.container.map_dma(IOVA, PAGE, memory=memory):
            os.ftruncate(memory.fileno(), 0)
            edu_load(edu.device, IOVA, PAGE)
        os.ftruncate(memory.fileno(), PAGE)
        with edu.container.map_dma(IOVA, PAGE, memory=memory):
            os.pwrite(memory.fileno(), b"again", 0)
            edu_load(edu.device, IOVA, 5)
            edu_store(edu.device, IOVA + 16, 5)
            assert os.pread(memory.fileno(), 5, 16) == b"again"


# Memory of the client's own process


class OwnMemory:
    """Anonymous memory of this process, with its address."""

    def __init__(self, size: int) -> None:
        self.view = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._anchor = ctypes.c_char.from_buffer(self.view)
        self.address = ctypes.addressof(self._anchor)


def test_a_device_reads_and_writes_a_processs_own_memory(edu: Edu) -> None:
    allow_server_to_read_us()
    own = OwnMemory(2 * PAGE)
    edu.container.map_dma_address(IOVA, 2 * PAGE, own.address)
    own.view[0:5] = b"hello"
    edu_load(edu.device, IOVA, 5)
    edu_store(edu.device, IOVA + PAGE, 5)
    assert own.view[PAGE : PAGE + 5] == b"hello"
    assert edu.container.unmap_dma(IOVA, 2 * PAGE) == 2 * PAGE


def test_an_address_that_the_process_has_not_got_is_refused(iommu: vfiod.Container) -> None:
    allow_server_to_read_us()
    with refused(errno.EFAULT):
        iommu.map_dma_address(IOVA, PAGE, 0x1000)


def test_an_unaligned_address_is_refused(iommu: vfiod.Container) -> None:
    own = OwnMemory(2 * PAGE)
    with refused(errno.EINVAL):
        iommu.map_dma_address(IOVA, PAGE, own.address + 1)


# Dirty pages


def test_dirty_pages_are_those_that_a_device_wrote(edu: Edu) -> None:
    start, stop, get = 1, 2, 4

    def bitmap() -> int:
        request = wire.GROUP_STATUS.pack(48, get) + wire.U64.pack(IOVA) + wire.U64.pack(4 * PAGE)
        request += wire.U64.pack(PAGE) + wire.U64.pack(8) + wire.U64.pack(0)
        structure = edu.container.ioctl(Operation.IOMMU_DIRTY_PAGES, request).structure
        return int.from_bytes(structure[-8:], "little")

    with edu.container.map_dma(IOVA, 4 * PAGE):
        with refused(errno.EINVAL):
            bitmap()
        edu.container.ioctl(Operation.IOMMU_DIRTY_PAGES, wire.GROUP_STATUS.pack(8, start))
        edu_load(edu.device, IOVA, PAGE)
        edu_store(edu.device, IOVA + 2 * PAGE, 4)
        assert bitmap() == 0b0100
        edu.container.ioctl(Operation.IOMMU_DIRTY_PAGES, wire.GROUP_STATUS.pack(8, stop))
        with refused(errno.EINVAL):
            bitmap()


# Descriptors that arrive glued to bytes before them


def test_a_descriptor_belongs_to_the_message_it_was_sent_with(edu: Edu) -> None:
    """A map of the process's own memory, then one of a memfd, sent back to back."""
    allow_server_to_read_us()
    own = OwnMemory(PAGE)
    own.view[0:4] = b"own."
    connection = edu.container.connection
    with vfiod.Memory(PAGE) as memory:
        memory[0:4] = b"memf"
        for _ in range(50):
            pending = []
            plain = wire.MAP_DMA.pack(32, BOTH, own.address, IOVA, PAGE)
            for payload, descriptors in (
                (plain, []),
                (wire.MAP_DMA.pack(32, BOTH, 0, IOVA + PAGE, PAGE), [memory]),
                (wire.MAP_DMA.pack(32, BOTH, own.address, IOVA + 2 * PAGE, PAGE), []),
            ):
                pending.append(
                    connection.submit(
                        Operation.IOMMU_MAP_DMA, payload, descriptors, lambda reply: reply.close()
                    )
                )
            for each in pending:
                each.result()
            for page, expected in ((0, b"own."), (1, b"memf"), (2, b"own.")):
                edu_load(edu.device, IOVA + page * PAGE, 4)
                edu_store(edu.device, IOVA + PAGE + 64, 4)
                assert memory[64:68] == expected
            assert edu.container.unmap_dma(IOVA, 3 * PAGE) == 3 * PAGE
