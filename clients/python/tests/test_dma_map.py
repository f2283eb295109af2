"""Mapping and unmapping for DMA: type1's rules and errno."""

import ctypes
import errno
import mmap
import os

import pytest
import vfiod
from conftest import Edu
from support import (
    EDU,
    EDU_BUFFER,
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
from vfiod import DMAFlags, wire
from vfiod.connection import HasFileno
from vfiod.wire import IOMMUType, Operation

BOTH = DMAFlags.READ | DMAFlags.WRITE
END = 1 << 64


def map_raw(
    container: vfiod.Container,
    iova: int,
    size: int,
    offset: int = 0,
    flags: int = BOTH,
    argsz: int = wire.MAP_DMA.size,
    descriptors: tuple[HasFileno, ...] = (),
) -> None:
    request = wire.MAP_DMA.pack(argsz, flags, offset, iova, size)
    container.ioctl(Operation.IOMMU_MAP_DMA, request, descriptors)


@pytest.fixture
def memory():  # type: ignore[no-untyped-def]
    with vfiod.Memory(16 * PAGE) as memory:
        yield memory


# Mapping


@pytest.mark.parametrize(
    "iova, size, offset",
    [
        pytest.param(IOVA + 1, PAGE, 0, id="an unaligned iova"),
        pytest.param(IOVA + 0x800, PAGE, 0, id="half a page of iova"),
        pytest.param(IOVA, PAGE + 1, 0, id="an unaligned size"),
        pytest.param(IOVA, 0x800, 0, id="half a page"),
        pytest.param(IOVA, PAGE, 1, id="an unaligned offset"),
        pytest.param(IOVA, 0, 0, id="no size"),
        pytest.param(IOVA, PAGE, END - PAGE, id="an offset at the end of all"),
        pytest.param(IOVA, 17 * PAGE, 0, id="more than the file has"),
        pytest.param(IOVA, PAGE, 16 * PAGE, id="what begins at the file's end"),
        pytest.param(0xFEE0_0000, PAGE, 0, id="the window of the MSI doorbells"),
        pytest.param(0xFEDF_F000, 2 * PAGE, 0, id="the edge of that window"),
        pytest.param(1 << 48, PAGE, 0, id="an iova of 49 bits"),
        pytest.param((1 << 48) - PAGE, 2 * PAGE, 0, id="the edge of 48 bits"),
    ],
)
def test_a_map_that_cannot_be_is_refused(
    iommu: vfiod.Container, memory: vfiod.Memory, iova: int, size: int, offset: int
) -> None:
    with refused(errno.EINVAL):
        map_raw(iommu, iova, size, offset, descriptors=(memory,))
    assert iommu.iommu_info().dma_available == 65535


@pytest.mark.parametrize(
    "iova, size, offset",
    [
        pytest.param(END - PAGE, 2 * PAGE, 0, id="an iova that wraps"),
        pytest.param(IOVA, END - PAGE, 0, id="nearly everything"),
        pytest.param(IOVA, 2 * PAGE, END - PAGE, id="an offset that wraps"),
    ],
)
def test_a_map_that_wraps_is_refused(
    iommu: vfiod.Container, memory: vfiod.Memory, iova: int, size: int, offset: int
) -> None:
    with refused(errno.EOVERFLOW):
        map_raw(iommu, iova, size, offset, descriptors=(memory,))
    assert iommu.iommu_info().dma_available == 65535


@pytest.mark.parametrize("flags", [0, 1 << 3, BOTH | 1 << 3, BOTH | 1 << 31, BOTH | 1 << 2])
def test_a_map_with_wrong_flags_is_refused(
    iommu: vfiod.Container, memory: vfiod.Memory, flags: int
) -> None:
    with refused(errno.EINVAL):
        map_raw(iommu, IOVA, PAGE, flags=flags, descriptors=(memory,))


def test_a_map_with_a_short_argsz_is_refused(iommu: vfiod.Container, memory: vfiod.Memory) -> None:
    for argsz in (0, 8, 31):
        with refused(errno.EINVAL):
            map_raw(iommu, IOVA, PAGE, argsz=argsz, descriptors=(memory,))


def test_a_map_request_that_is_too_short_is_refused(
    iommu: vfiod.Container, memory: vfiod.Memory
) -> None:
    whole = wire.MAP_DMA.pack(32, BOTH, 0, IOVA, PAGE)
    for length in (0, 4, 8, 31):
        with refused(errno.EINVAL):
            iommu.ioctl(Operation.IOMMU_MAP_DMA, whole[:length], [memory])


@pytest.mark.parametrize(
    "iova, size",
    [
        pytest.param(IOVA, 4 * PAGE, id="the same"),
        pytest.param(IOVA, PAGE, id="its first page"),
        pytest.param(IOVA + 3 * PAGE, PAGE, id="its last page"),
        pytest.param(IOVA + PAGE, PAGE, id="a page within"),
        pytest.param(IOVA - PAGE, 2 * PAGE, id="across its beginning"),
        pytest.param(IOVA + 3 * PAGE, 2 * PAGE, id="across its end"),
        pytest.param(IOVA - PAGE, 6 * PAGE, id="around it"),
    ],
)
def test_a_map_over_another_is_refused(
    iommu: vfiod.Container, memory: vfiod.Memory, iova: int, size: int
) -> None:
    with iommu.map_dma(IOVA, 4 * PAGE), refused(errno.EEXIST):
        map_raw(iommu, iova, size, descriptors=(memory,))


def test_maps_may_touch(iommu: vfiod.Container) -> None:
    with iommu.map_dma(IOVA, PAGE), iommu.map_dma(IOVA + PAGE, PAGE), iommu.map_dma(IOVA - PAGE, PAGE):
        assert iommu.iommu_info().dma_available == 65532


def test_maps_reach_to_the_edges_of_the_ranges(iommu: vfiod.Container, memory: vfiod.Memory) -> None:
    for iova in (0, 0xFEDF_F000, 0xFEF0_0000, (1 << 48) - PAGE):
        map_raw(iommu, iova, PAGE, descriptors=(memory,))


def test_one_file_may_be_mapped_many_times(iommu: vfiod.Container, memory: vfiod.Memory) -> None:
    for number in range(100):
        map_raw(iommu, IOVA + number * PAGE, PAGE, descriptors=(memory,))
    assert iommu.unmap_dma(IOVA, 100 * PAGE) == 100 * PAGE


def test_a_map_of_what_is_no_memory_is_refused(iommu: vfiod.Container) -> None:
    reading, writing = os.pipe()
    with vfiod.Descriptor(reading) as pipe, vfiod.Descriptor(writing):
        with open("/dev/zero", "r+b") as zero, vfiod.EventFD() as event:
            for descriptor in (pipe, zero, event, iommu):
                with refused(errno.EINVAL):
                    map_raw(iommu, IOVA, PAGE, descriptors=(descriptor,))


def test_a_file_that_is_read_only_cannot_be_mapped_for_writing(
    iommu: vfiod.Container, memory: vfiod.Memory
) -> None:
    number = os.open(f"/proc/self/fd/{memory.fileno()}", os.O_RDONLY)
    with vfiod.Descriptor(number) as read_only:
        for flags in (DMAFlags.WRITE, BOTH):
            with refused(errno.EACCES):
                map_raw(iommu, IOVA, PAGE, flags=flags, descriptors=(read_only,))
        map_raw(iommu, IOVA, PAGE, flags=DMAFlags.READ, descriptors=(read_only,))


def test_a_map_with_two_descriptors_is_refused(iommu: vfiod.Container, memory: vfiod.Memory) -> None:
    with refused(errno.EINVAL):
        map_raw(iommu, IOVA, PAGE, descriptors=(memory, memory))


def test_the_number_of_maps_is_limited(iommu: vfiod.Container, memory: vfiod.Memory) -> None:
    def submit(number: int) -> vfiod.Pending[None]:
        request = wire.MAP_DMA.pack(32, BOTH, 0, number * PAGE, PAGE)
        return iommu.connection.submit(
            Operation.IOMMU_MAP_DMA, request, [memory], lambda reply: reply.close()
        )

    for start in range(0, 65535, 64):
        for pending in [submit(number) for number in range(start, min(start + 64, 65535))]:
            pending.result()
    assert iommu.iommu_info().dma_available == 0
    with refused(errno.ENOSPC):
        submit(65535).result()
    assert iommu.unmap_dma(PAGE, PAGE) == PAGE
    submit(1).result()


# Unmapping


def test_unmapping_tells_how_much_was_mapped(iommu: vfiod.Container) -> None:
    iommu.map_dma(IOVA, 4 * PAGE).memory.close()
    assert iommu.unmap_dma(IOVA, 4 * PAGE) == 4 * PAGE
    assert iommu.unmap_dma(IOVA, 4 * PAGE) == 0


def test_unmapping_more_than_is_mapped_takes_all_maps_within(
    iommu: vfiod.Container, memory: vfiod.Memory
) -> None:
    map_raw(iommu, IOVA, PAGE, descriptors=(memory,))
    map_raw(iommu, IOVA + 4 * PAGE, 2 * PAGE, descriptors=(memory,))
    assert iommu.unmap_dma(IOVA - PAGE, 16 * PAGE) == 3 * PAGE


@pytest.mark.parametrize(
    "iova, size",
    [
        pytest.param(IOVA, PAGE, id="its head"),
        pytest.param(IOVA + 3 * PAGE, PAGE, id="its tail"),
        pytest.param(IOVA + PAGE, PAGE, id="its middle"),
        pytest.param(IOVA - PAGE, 2 * PAGE, id="its head and more"),
        pytest.param(IOVA + 3 * PAGE, 2 * PAGE, id="its tail and more"),
    ],
)
def test_unmapping_a_part_of_a_map_is_refused(iommu: vfiod.Container, iova: int, size: int) -> None:
    with iommu.map_dma(IOVA, 4 * PAGE):
        with refused(errno.EINVAL):
            iommu.unmap_dma(iova, size)
        assert iommu.unmap_dma(IOVA, 4 * PAGE) == 4 * PAGE


def test_the_first_type1_unmaps_all_of_a_map_by_its_head(root: vfiod.Root) -> None:
    with attach(root, EDU, IOMMUType.TYPE1) as (container, _):
        container.map_dma(IOVA, 4 * PAGE).memory.close()
        assert container.unmap_dma(IOVA + PAGE, PAGE) == 0
        assert container.unmap_dma(IOVA, PAGE) == 4 * PAGE


@pytest.mark.parametrize(
    "iova, size, flags",
    [
        pytest.param(IOVA + 1, PAGE, 0, id="an unaligned iova"),
        pytest.param(IOVA, PAGE + 1, 0, id="an unaligned size"),
        pytest.param(IOVA, 0, 0, id="no size"),
        pytest.param(IOVA, PAGE, 1 << 7, id="a flag that isn't known"),
        pytest.param(IOVA, PAGE, wire.UNMAP_FLAG_ALL, id="all, but in a range"),
        pytest.param(0, PAGE, wire.UNMAP_FLAG_ALL, id="all, but with a size"),
    ],
)
def test_an_unmap_that_cannot_be_is_refused(
    iommu: vfiod.Container, iova: int, size: int, flags: int
) -> None:
    with refused(errno.EINVAL):
        iommu.unmap_dma(iova, size, flags)


def test_an_unmap_that_wraps_is_refused(iommu: vfiod.Container) -> None:
    with refused(errno.EOVERFLOW):
        iommu.unmap_dma(END - PAGE, 2 * PAGE)


def test_an_unmap_request_that_is_too_short_is_refused(iommu: vfiod.Container) -> None:
    whole = wire.UNMAP_DMA.pack(23, 0, IOVA, PAGE)
    for payload in (b"", whole[:8], whole[:23], whole):
        with refused(errno.EINVAL):
            iommu.ioctl(Operation.IOMMU_UNMAP_DMA, payload)


def test_all_maps_go_at_once(iommu: vfiod.Container, memory: vfiod.Memory) -> None:
    for iova in (0, IOVA, (1 << 48) - PAGE):
        map_raw(iommu, iova, PAGE, descriptors=(memory,))
    assert iommu.check_extension(IOMMUType.UNMAP_ALL) == 1
    assert iommu.unmap_dma(0, 0, wire.UNMAP_FLAG_ALL) == 3 * PAGE
    assert iommu.unmap_dma(0, 0, wire.UNMAP_FLAG_ALL) == 0


# What devices see of it


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


TWO_EDUS = pytest.mark.configuration(
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
