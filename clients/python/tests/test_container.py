"""Containers: extensions, choosing an IOMMU, and operations that pass to it."""

import errno

import pytest
from support import EDU, attach, refused

import vfiod
from vfiod import wire
from vfiod.wire import IOMMUType


def test_the_api_version_is_0(container: vfiod.Container) -> None:
    assert container.api_version() == 0


# Extensions


def test_without_a_driver_every_registered_driver_is_asked(container: vfiod.Container) -> None:
    for type in (IOMMUType.TYPE1, IOMMUType.TYPE1v2):
        assert container.check_extension(type) == 1, type


@pytest.mark.parametrize("number", [0, 12345, 1 << 32, (1 << 64) - 1])
def test_an_extension_that_nobody_knows_is_0(
    container: vfiod.Container, group: vfiod.Group, number: int
) -> None:
    assert container.check_extension(number) == 0
    group.set_container(container)
    container.set_iommu(IOMMUType.TYPE1v2)
    assert container.check_extension(number) == 0


def test_with_a_driver_it_alone_is_asked(iommu: vfiod.Container) -> None:
    assert iommu.check_extension(IOMMUType.TYPE1v2) == 1
    assert iommu.check_extension(IOMMUType.SPAPR_TCE) == 0


def test_an_argument_that_is_too_short_is_refused(
    container: vfiod.Container, group: vfiod.Group
) -> None:
    group.set_container(container)
    for operation in (wire.Operation.CHECK_EXTENSION, wire.Operation.SET_IOMMU):
        for payload in (b"", b"\1\0\0\0", b"\1\0\0\0\0\0\0"):
            with refused(errno.EINVAL):
                container.ioctl(operation, payload)


# SET_IOMMU


def test_an_empty_container_gets_no_iommu(container: vfiod.Container) -> None:
    with refused(errno.EINVAL):
        container.set_iommu(IOMMUType.TYPE1v2)


def test_a_container_gets_one_iommu(iommu: vfiod.Container) -> None:
    for type in (IOMMUType.TYPE1v2, IOMMUType.TYPE1, 12345):
        with refused(errno.EINVAL):
            iommu.set_iommu(type)


def test_an_iommu_that_no_driver_has_is_refused(container: vfiod.Container, group: vfiod.Group) -> None:
    group.set_container(container)
    for type in (0, 12345, 1 << 32 | IOMMUType.TYPE1):
        with refused(errno.ENODEV):
            container.set_iommu(type)
    container.set_iommu(IOMMUType.TYPE1v2)


@pytest.mark.parametrize("type", [IOMMUType.TYPE1, IOMMUType.TYPE1v2])
def test_both_kinds_of_type1_are_set_and_give_devices(root: vfiod.Root, type: int) -> None:
    with attach(root, EDU, type) as (_, group), group.open_device(EDU) as device:
        assert device.region(0).read32(0) == 0x010000ED


def test_the_iommu_goes_with_the_group_that_closes(root: vfiod.Root) -> None:
    with root.open_container() as container:
        for type in (IOMMUType.TYPE1v2, IOMMUType.TYPE1):
            with root.open_group(26) as group:
                group.set_container(container)
                container.set_iommu(type)
            with refused(errno.EINVAL):
                container.iommu_info()


# Operations that pass to the driver

IOMMU_OPERATIONS = [0x3B70, 0x3B71, 0x3B72, 0x3B73, 0x3B75, 0x3BFF, 0x4000, 0x4023, 9, 0xFFFF]


@pytest.mark.parametrize("command", IOMMU_OPERATIONS)
def test_an_operation_for_the_driver_is_refused_without_one(
    container: vfiod.Container, group: vfiod.Group, command: int
) -> None:
    with refused(errno.EINVAL):
        container.connection.request(command, bytes(64))
    group.set_container(container)
    with refused(errno.EINVAL):
        container.connection.request(command, bytes(64))
    assert container.api_version() == 0


@pytest.mark.parametrize("command", [0x3B67, 0x3B73, 0x3B74, 0x3BFF])
def test_an_operation_that_the_driver_does_not_know_either_is_refused(
    iommu: vfiod.Container, command: int
) -> None:
    with refused(errno.ENOTTY):
        iommu.connection.request(command, bytes(64))
    assert iommu.api_version() == 0


def test_read_write_and_mmap_are_refused_without_a_driver(container: vfiod.Container) -> None:
    with refused(errno.EINVAL):
        container.read(0, 4)
    with refused(errno.EINVAL):
        container.write(0, b"data")
    with refused(errno.EINVAL):
        container.mmap(0, 4096)


def test_read_write_and_mmap_are_refused_by_type1(iommu: vfiod.Container) -> None:
    with refused(errno.EINVAL):
        iommu.read(0, 4)
    with refused(errno.EINVAL):
        iommu.write(0, b"data")
    with refused(errno.EINVAL):
        iommu.mmap(0, 4096)


# Information


def test_the_iommu_names_its_page_sizes_and_ranges(iommu: vfiod.Container) -> None:
    info = iommu.iommu_info()
    assert info.page_sizes & 0x1000
    assert not info.page_sizes & 0xFFF
    assert info.iova_ranges == ((0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 48) - 1))


def test_the_iommu_tells_how_many_mappings_are_left(iommu: vfiod.Container) -> None:
    assert iommu.iommu_info().dma_available == 65535
    with iommu.map_dma(0x1000, 0x1000):
        assert iommu.iommu_info().dma_available == 65534
    assert iommu.iommu_info().dma_available == 65535


def test_iommu_information_without_room_for_capabilities_says_what_it_needs(
    iommu: vfiod.Container,
) -> None:
    request = wire.IOMMU_INFO.pack(16, 0, 0, 0)[:16]
    structure = iommu.ioctl(wire.Operation.IOMMU_GET_INFO, request).structure
    assert len(structure) == 16
    argsz, _, page_sizes, _ = wire.IOMMU_INFO.unpack(structure.ljust(24, b"\0"))
    assert argsz > 24
    assert page_sizes & 0x1000


def test_an_information_request_that_is_too_short_is_refused(iommu: vfiod.Container) -> None:
    whole = wire.IOMMU_INFO.pack(15, 0, 0, 0)
    for payload in (b"", whole[:8], whole[:15], whole):
        with refused(errno.EINVAL):
            iommu.ioctl(wire.Operation.IOMMU_GET_INFO, payload)
