"""sPAPR TCE containers, and what devices see through their windows."""

import ctypes
import errno
import mmap
from collections.abc import Iterator

import pytest
from conftest import Edu
from support import (
    EDU,
    PAGE,
    SCRATCH,
    allow_server_to_read_us,
    attach,
    bus_master,
    edu_load,
    edu_store,
    refused,
)

import vfiod
from vfiod import DMAFlags, IOMMUType

SECOND_WINDOW = 1 << 59
BIG = 0x1_0000
# edu reaches 28 bits unless it is told otherwise.
WIDE = pytest.mark.vfiod(
    {
        "groups": [
            {
                "id": 26,
                "devices": [{"address": EDU, "model": "edu", "options": {"dma_mask": "0xffffffffffffffff"}}],
            }
        ]
    }
)


@pytest.fixture
def first(root: vfiod.Root) -> Iterator[Edu]:
    """An edu with version 1, enabled."""
    with attach(root, EDU, IOMMUType.SPAPR_TCE) as (container, group):
        with group.open_device(EDU) as device:
            container.enable()
            bus_master(device)
            yield Edu(container, group, device)


@pytest.fixture
def second(root: vfiod.Root) -> Iterator[Edu]:
    """An edu with version 2."""
    with attach(root, EDU, IOMMUType.SPAPR_TCE_v2) as (container, group):
        with group.open_device(EDU) as device:
            bus_master(device)
            yield Edu(container, group, device)


def test_version_1_tells_its_window(first: Edu) -> None:
    assert first.container.tce_info() == vfiod.TCEInfo(0, 0, 1 << 31, 0, 0, 0)


def test_version_2_tells_which_windows_can_be_made(second: Edu) -> None:
    sizes = 1 << 12 | 1 << 16 | 1 << 21 | 1 << 24 | 1 << 30
    assert second.container.tce_info() == vfiod.TCEInfo(1, 0, 1 << 31, sizes, 2, 5)


def test_a_device_reaches_what_version_1_maps_until_it_is_unmapped(first: Edu) -> None:
    with vfiod.Memory(2 * PAGE) as memory, first.container.map_dma(0x20_0000, 2 * PAGE, memory=memory):
        memory[PAGE - 2 : PAGE + 3] = b"hello"
        edu_load(first.device, 0x20_0000 + PAGE - 2, 5)
        edu_store(first.device, 0x20_0000, 5)
        assert memory[0:5] == b"hello"
        assert first.container.unmap_dma(0x20_0000, PAGE) == PAGE
        memory[0:5] = b"keep!"
        edu_store(first.device, 0x20_0000, 5)
        assert memory[0:5] == b"keep!"
        edu_store(first.device, 0x20_0000 + PAGE, 5)
        assert memory[PAGE : PAGE + 5] == b"hello"


def test_a_map_replaces_what_is_there(first: Edu) -> None:
    with vfiod.Memory(2 * PAGE) as memory:
        memory[0:3], memory[PAGE : PAGE + 3] = b"old", b"new"
        first.container.map_dma(0, PAGE, memory=memory)
        first.container.map_dma(0, PAGE, DMAFlags.READ, memory=memory, offset=PAGE)
        edu_load(first.device, 0, 3)
        first.container.map_dma(PAGE, PAGE, memory=memory)
        edu_store(first.device, 0, 3)
        edu_store(first.device, PAGE + 8, 3)
        assert memory[8:11] == b"new"
        assert memory[PAGE : PAGE + 3] == b"new"


def test_what_is_mapped_stays_while_version_1_is_disabled(first: Edu) -> None:
    with vfiod.Memory(PAGE) as memory:
        first.container.map_dma(0, PAGE, memory=memory)
        first.container.disable()
        memory[0:4] = b"stay"
        edu_load(first.device, 0, 4)
        edu_store(first.device, 8, 4)
        assert memory[8:12] == b"stay"
        with refused(errno.EPERM):
            first.container.unmap_dma(0, PAGE)
        with refused(errno.EPERM):
            first.container.map_dma(0, PAGE, memory=memory)


@pytest.mark.vfiod({"limits": {"locked_memory": (1 << 31) - 1}})
def test_the_window_may_be_more_than_may_be_locked(root: vfiod.Root) -> None:
    with attach(root, SCRATCH, IOMMUType.SPAPR_TCE) as (container, _), refused(errno.ENOMEM):
        container.enable()


def test_a_container_of_version_1_takes_one_group(root: vfiod.Root) -> None:
    with attach(root, EDU, IOMMUType.SPAPR_TCE) as (container, _), root.open_group(27) as other:
        with refused(errno.EBUSY):
            other.set_container(container)


def test_a_device_reaches_registered_memory_through_two_windows(root: vfiod.Root) -> None:
    with attach(root, SCRATCH, IOMMUType.SPAPR_TCE_v2) as (container, group):
        with vfiod.Memory(4 * BIG) as memory:
            container.register_memory(0, 4 * BIG, memory)
            assert container.create_window(16, 1 << 44) == SECOND_WINDOW
            container.map_dma(0, PAGE, memory=memory, offset=PAGE)
            container.map_dma(SECOND_WINDOW + (1 << 44) - BIG, BIG, memory=memory, offset=3 * BIG)
            with refused(errno.EINVAL):
                container.map_dma(SECOND_WINDOW, PAGE, memory=memory)
            with refused(errno.ENOSPC):
                container.create_window(16, 1 << 30)


@WIDE
def test_edu_copies_between_two_windows(root: vfiod.Root) -> None:
    with attach(root, EDU, IOMMUType.SPAPR_TCE_v2) as (container, group):
        with group.open_device(EDU) as device, vfiod.Memory(4 * BIG) as memory:
            bus_master(device)
            container.register_memory(0, 4 * BIG, memory)
            container.create_window(16, 1 << 44)
            container.map_dma(0, PAGE, memory=memory, offset=PAGE)
            container.map_dma(SECOND_WINDOW + 7 * BIG, BIG, memory=memory, offset=3 * BIG)
            memory[PAGE : PAGE + 5] = b"table"
            edu_load(device, 0, 5)
            edu_store(device, SECOND_WINDOW + 7 * BIG + 9, 5)
            assert memory[3 * BIG + 9 : 3 * BIG + 14] == b"table"
            container.remove_window(SECOND_WINDOW)
            memory[3 * BIG + 9 : 3 * BIG + 14] = b"stays"
            edu_store(device, SECOND_WINDOW + 7 * BIG + 9, 5)
            assert memory[3 * BIG + 9 : 3 * BIG + 14] == b"stays"


def test_memory_is_mapped_once_it_is_registered_and_unregistered_once_it_is_unmapped(second: Edu) -> None:
    with vfiod.Memory(4 * PAGE) as memory:
        with refused(errno.EPERM):
            second.container.map_dma(0, PAGE, memory=memory)
        second.container.register_memory(0, 2 * PAGE, memory)
        with refused(errno.EINVAL):
            second.container.map_dma(0, 4 * PAGE, memory=memory)
        with refused(errno.EBUSY):
            second.container.register_memory(0, 2 * PAGE, memory)
        with refused(errno.EINVAL):
            second.container.register_memory(PAGE, 2 * PAGE, memory)
        mapping = second.container.map_dma(0, PAGE, memory=memory, offset=PAGE)
        with refused(errno.EBUSY):
            second.container.unregister_memory(0, 2 * PAGE, memory)
        mapping.unmap()
        second.container.unregister_memory(0, 2 * PAGE, memory)
        with refused(errno.ENOENT):
            second.container.unregister_memory(0, 2 * PAGE, memory)


def test_a_process_registers_and_maps_its_own_memory(second: Edu) -> None:
    allow_server_to_read_us()
    with mmap.mmap(-1, 2 * PAGE) as own:
        buffer = (ctypes.c_char * len(own)).from_buffer(own)
        address = ctypes.addressof(buffer)
        second.container.register_memory(address, 2 * PAGE)
        second.container.map_dma_address(0, PAGE, address + PAGE)
        own[PAGE : PAGE + 4] = b"mine"
        edu_load(second.device, 0, 4)
        edu_store(second.device, 8, 4)
        assert own[PAGE + 8 : PAGE + 12] == b"mine"
        with refused(errno.EINVAL):
            second.container.map_dma_address(0, 2 * PAGE, address + PAGE)
        second.container.unmap_dma(0, PAGE)
        second.container.unregister_memory(address, 2 * PAGE)
        del buffer


@pytest.mark.vfiod({"limits": {"locked_memory": 8 * PAGE, "mappings": 2}})
def test_locked_memory_counts_what_is_registered_and_tables(root: vfiod.Root) -> None:
    with attach(root, SCRATCH, IOMMUType.SPAPR_TCE_v2) as (container, _), vfiod.Memory(1 << 20) as memory:
        container.register_memory(0, 4 * PAGE, memory)
        with refused(errno.ENOMEM):
            container.register_memory(4 * PAGE, 5 * PAGE, memory)
        with refused(errno.ENOMEM):
            container.map_dma(0, PAGE, memory=memory)
        container.remove_window(0)
        with refused(errno.ENOMEM):
            container.create_window(12, 1 << 24)
        assert container.create_window(12, 1 << 20) == 0
        container.map_dma(0, PAGE, memory=memory)
        container.map_dma(64 * PAGE, PAGE, memory=memory)
        with refused(errno.ENOSPC):
            container.map_dma(128 * PAGE, PAGE, memory=memory)


@pytest.mark.vfiod({"iommu_drivers": ["spapr-tce"]})
def test_a_server_may_have_spapr_tce_alone(root: vfiod.Root) -> None:
    with root.open_container() as container:
        assert [container.check_extension(number) for number in IOMMUType] == [0, 1, 0, 0, 0, 1, 0, 0]
    with attach(root, SCRATCH, IOMMUType.SPAPR_TCE_v2) as (container, _):
        container.tce_info()


def test_eeh_is_not_there(first: Edu) -> None:
    assert first.container.check_extension(IOMMUType.EEH) == 0
    with refused(errno.ENOTTY):
        first.container.ioctl(vfiod.Operation.EEH_PE_OP)
