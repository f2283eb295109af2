"""What programs written for the kernel's type1 do, over the wire."""

import errno
import os

import pytest
from support import EDU, PAGE, attach, refused

import vfiod
from vfiod import DMAFlags, wire
from vfiod.wire import IOMMUType, Operation

BOTH = DMAFlags.READ | DMAFlags.WRITE
HUGE = 2 << 20
ALL = wire.UNMAP_FLAG_ALL
VERSIONS = [IOMMUType.TYPE1, IOMMUType.TYPE1v2]


def map_page(container: vfiod.Container, iova: int, memory: vfiod.Memory, size: int = PAGE) -> None:
    container.ioctl(
        Operation.IOMMU_MAP_DMA, wire.MAP_DMA.pack(wire.MAP_DMA.size, BOTH, 0, iova, size), [memory]
    )


FORWARDS = range(0, HUGE, PAGE)
CHECKERS = [*range(0, HUGE, 2 * PAGE), *range(PAGE, HUGE, 2 * PAGE)]
ORDERS = [
    pytest.param(list(FORWARDS), id="forwards"),
    pytest.param(list(reversed(FORWARDS)), id="backwards"),
    pytest.param(CHECKERS, id="as a checkerboard"),
    pytest.param(list(reversed(CHECKERS)), id="as a checkerboard backwards"),
]


@pytest.mark.parametrize("type", VERSIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_2_mib_of_pages_are_mapped_and_unmapped_one_by_one(
    root: vfiod.Root, type: int, order: list[int]
) -> None:
    with attach(root, EDU, type) as (container, _), vfiod.Memory(PAGE) as memory:
        for iova in order:
            map_page(container, iova, memory)
        for iova in order[::16]:
            with refused(errno.EEXIST):
                map_page(container, iova, memory)
        assert [container.unmap_dma(iova, PAGE) for iova in order] == [PAGE] * len(order)
        assert [container.unmap_dma(iova, PAGE) for iova in order] == [0] * len(order)


def test_type1_probed_backwards_through_2_mib_gives_all_of_it_at_its_head(root: vfiod.Root) -> None:
    with attach(root, EDU, IOMMUType.TYPE1) as (container, _), vfiod.Memory(HUGE) as memory:
        map_page(container, 0, memory, HUGE)
        sizes = [container.unmap_dma(iova, PAGE) for iova in reversed(FORWARDS)]
        assert sizes == [0] * (len(FORWARDS) - 1) + [HUGE]


def test_type1v2_probed_backwards_through_2_mib_gives_nothing_of_it(iommu: vfiod.Container) -> None:
    with vfiod.Memory(HUGE) as memory:
        map_page(iommu, 0, memory, HUGE)
        for iova in reversed(FORWARDS):
            with refused(errno.EINVAL):
                iommu.unmap_dma(iova, PAGE)
        assert iommu.unmap_dma(0, HUGE) == HUGE


@pytest.mark.parametrize("type", VERSIONS)
def test_4_gib_are_mapped_again_and_again_up_to_1_tib_and_never_touched(
    root: vfiod.Root, type: int
) -> None:
    size = 4 << 30
    places = range(size, 1 << 40, size)
    with attach(root, EDU, type) as (container, _), vfiod.Memory(size) as memory:
        for iova in places:
            map_page(container, iova, memory, size)
        assert container.unmap_dma(places[3], 2 * size) == 2 * size
        assert container.unmap_dma(0, 0, ALL) == (len(places) - 2) * size
        assert container.unmap_dma(0, 0, ALL) == 0
        assert os.fstat(memory.fileno()).st_blocks == 0


def test_60000_pages_are_alive_and_go_at_once(iommu: vfiod.Container) -> None:
    with vfiod.Memory(PAGE) as memory:
        for number in range(60_000):
            request = wire.MAP_DMA.pack(wire.MAP_DMA.size, BOTH, 0, 2 * number * PAGE, PAGE)
            iommu.connection.post(Operation.IOMMU_MAP_DMA, request, [memory])
        assert iommu.iommu_info().dma_available == 65535 - 60_000
        assert iommu.unmap_dma(0, 2000 * PAGE) == 1000 * PAGE
        assert iommu.unmap_dma(0, 0, ALL) == 59_000 * PAGE
        assert iommu.iommu_info().dma_available == 65535


@pytest.mark.parametrize("type", VERSIONS)
def test_the_last_page_of_the_last_range_is_mapped_and_unmapped(root: vfiod.Root, type: int) -> None:
    with attach(root, EDU, type) as (container, _), vfiod.Memory(PAGE) as memory:
        page = container.iommu_info().iova_ranges[-1][1] + 1 - PAGE
        map_page(container, page, memory)
        assert container.unmap_dma(page, PAGE) == PAGE
        map_page(container, page, memory)
        assert container.unmap_dma(0, 0, ALL) == PAGE
        with refused(errno.EINVAL):
            map_page(container, page + PAGE, memory)


@pytest.mark.vfiod({"limits": {"apertures": [[0, 2**64 - 1]]}})
def test_the_last_page_of_64_bits_is_mapped_and_unmapped(iommu: vfiod.Container) -> None:
    page = 2**64 - PAGE
    with vfiod.Memory(PAGE) as memory:
        map_page(iommu, page, memory)
        assert iommu.unmap_dma(page, PAGE) == PAGE
        map_page(iommu, page, memory)
        assert iommu.unmap_dma(0, 0, ALL) == PAGE


@pytest.mark.parametrize("type", VERSIONS)
def test_a_range_that_goes_on_behind_64_bits_is_refused(root: vfiod.Root, type: int) -> None:
    with attach(root, EDU, type) as (container, _), vfiod.Memory(2 * PAGE) as memory:
        with refused(errno.EOVERFLOW):
            map_page(container, 2**64 - PAGE, memory, 2 * PAGE)
        with refused(errno.EOVERFLOW):
            container.unmap_dma(2**64 - PAGE, 2 * PAGE)


@pytest.mark.vfiod({"limits": {"locked_memory": 4 * PAGE}})
def test_no_more_is_mapped_than_may_be_locked(iommu: vfiod.Container) -> None:
    with vfiod.Memory(4 * PAGE) as memory:
        map_page(iommu, 0, memory, 3 * PAGE)
        with refused(errno.ENOMEM):
            map_page(iommu, 4 * PAGE, memory, 2 * PAGE)
        assert iommu.unmap_dma(0, 3 * PAGE) == 3 * PAGE
        map_page(iommu, 4 * PAGE, memory, 4 * PAGE)
