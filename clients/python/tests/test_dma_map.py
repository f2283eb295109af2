"""Mapping and unmapping for DMA: type1's rules and errno."""

import errno
import os

import pytest
from support import EDU, IOVA, PAGE, attach, refused

import vfiod
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
    for number in range(65535):
        request = wire.MAP_DMA.pack(32, BOTH, 0, number * PAGE, PAGE)
        iommu.connection.post(Operation.IOMMU_MAP_DMA, request, [memory])
    assert iommu.iommu_info().dma_available == 0
    with refused(errno.ENOSPC):
        iommu.map_dma(65535 * PAGE, PAGE, memory=memory)
    assert iommu.unmap_dma(PAGE, PAGE) == PAGE
    iommu.map_dma(PAGE, PAGE, memory=memory)


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
