"""Groups: status, container, devices."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import EDU, SCRATCH, SECOND_EDU, STUB, Server, attach, refused, unbind_foreign

import vfiod
from vfiod import wire
from vfiod.connection import HasFileno

# Status


def test_a_fresh_group_is_viable_and_has_no_container(group: vfiod.Group) -> None:
    assert group.status() == vfiod.GroupStatus.VIABLE


def test_a_driver_on_the_whitelist_leaves_the_group_viable(group: vfiod.Group) -> None:
    """Group 26 has a second function, bound to pci-stub."""
    assert group.status() & vfiod.GroupStatus.VIABLE


def test_a_foreign_driver_makes_the_group_not_viable(root: vfiod.Root) -> None:
    with root.open_group(28) as group:
        assert group.status() == 0


def test_a_group_is_viable_once_the_foreign_driver_is_unbound(root: vfiod.Root) -> None:
    with root.open_group(28) as group:
        unbind_foreign(root)
        assert group.status() == vfiod.GroupStatus.VIABLE


def test_the_status_tells_that_a_container_is_set(
    container: vfiod.Container, group: vfiod.Group
) -> None:
    group.set_container(container)
    both = vfiod.GroupStatus.VIABLE | vfiod.GroupStatus.CONTAINER_SET
    assert group.status() == both
    group.unset_container()
    assert group.status() == vfiod.GroupStatus.VIABLE


def test_a_status_request_with_a_short_argsz_is_refused(group: vfiod.Group) -> None:
    for argsz in (0, 4, 7):
        with refused(errno.EINVAL):
            group.ioctl(wire.Operation.GROUP_GET_STATUS, wire.GROUP_STATUS.pack(argsz, 0))


def test_a_status_request_that_is_too_short_is_refused(group: vfiod.Group) -> None:
    for payload in (b"", b"\x08\0\0\0", b"\x08\0\0\0\0\0\0"):
        with refused(errno.EINVAL):
            group.ioctl(wire.Operation.GROUP_GET_STATUS, payload)


def test_a_status_request_may_have_a_larger_argsz(group: vfiod.Group) -> None:
    request = wire.GROUP_STATUS.pack(64, 0xFFFF_FFFF)
    result = group.ioctl(wire.Operation.GROUP_GET_STATUS, request)
    assert result.value == 0
    assert wire.GROUP_STATUS.unpack(result.structure)[1] == vfiod.GroupStatus.VIABLE


# Setting and unsetting a container


def test_setting_a_container_without_a_descriptor_is_refused(group: vfiod.Group) -> None:
    with refused(errno.EBADF):
        group.ioctl(wire.Operation.GROUP_SET_CONTAINER)


@pytest.fixture
def foreign(root: vfiod.Root, group: vfiod.Group) -> Iterator[dict[str, HasFileno]]:
    with ExitStack() as stack:
        ours, theirs = socket.socketpair()
        listening = socket.socket(socket.AF_UNIX)
        stack.enter_context(listening)
        yield {
            "an eventfd": stack.enter_context(vfiod.EventFD()),
            "a file": stack.enter_context(open("/dev/null", "rb")),
            "a directory": stack.enter_context(vfiod.Descriptor(os.open("/", os.O_RDONLY))),
            "shared memory": stack.enter_context(vfiod.Memory(4096)),
            "a socket pair": stack.enter_context(ours),
            "its other end": stack.enter_context(theirs),
            "a socket that isn't connected": listening,
            "the group itself": group,
            "another group": stack.enter_context(root.open_group(27)),
            "the root socket": root,
        }


@pytest.mark.parametrize(
    "what",
    [
        "an eventfd",
        "a file",
        "a directory",
        "shared memory",
        "a socket pair",
        "its other end",
        "a socket that isn't connected",
        "the group itself",
        "another group",
        "the root socket",
    ],
)
def test_setting_a_container_that_is_none_is_refused(
    group: vfiod.Group, foreign: dict[str, HasFileno], what: str
) -> None:
    with refused(errno.EINVAL):
        group.set_container(foreign[what])
    assert group.status() == vfiod.GroupStatus.VIABLE


def test_setting_a_device_as_the_container_is_refused(root: vfiod.Root, group: vfiod.Group) -> None:
    with attach(root, SCRATCH) as (_, other), other.open_device(SCRATCH) as device:
        with refused(errno.EINVAL):
            group.set_container(device)


def test_setting_another_servers_container_is_refused(group: vfiod.Group, tmp_path: Path) -> None:
    other = Server(tmp_path / "other")
    try:
        with other.connect() as root, root.open_container() as container:
            with refused(errno.EINVAL):
                group.set_container(container)
        other.stop()
    finally:
        if other.process.poll() is None:
            other.kill()


def test_setting_a_container_twice_is_refused(
    root: vfiod.Root, container: vfiod.Container, group: vfiod.Group
) -> None:
    group.set_container(container)
    with refused(errno.EINVAL):
        group.set_container(container)
    with root.open_container() as another, refused(errno.EINVAL):
        group.set_container(another)


def test_a_copy_of_a_containers_descriptor_is_the_container(
    container: vfiod.Container, group: vfiod.Group
) -> None:
    with vfiod.Descriptor(os.dup(container.fileno())) as copy:
        group.set_container(copy)
    container.set_iommu(vfiod.IOMMUType.TYPE1v2)


def test_a_group_joins_a_container_that_has_an_iommu(root: vfiod.Root, iommu: vfiod.Container) -> None:
    with root.open_group(27) as second:
        second.set_container(iommu)
        with second.open_device(SCRATCH) as device:
            assert device.config.read16(0) == 0x1234


def test_unsetting_a_container_that_is_not_set_is_refused(group: vfiod.Group) -> None:
    with refused(errno.EINVAL):
        group.unset_container()


def test_a_container_may_be_set_again_after_it_was_unset(
    container: vfiod.Container, group: vfiod.Group
) -> None:
    for _ in range(3):
        group.set_container(container)
        group.unset_container()
    with refused(errno.EINVAL):
        group.unset_container()


def test_unsetting_a_container_is_refused_while_a_device_is_open(root: vfiod.Root) -> None:
    with attach(root, EDU) as (_, group):
        device = group.open_device(EDU)
        with refused(errno.EBUSY):
            group.unset_container()
        device.close()
        group.unset_container()


def test_the_last_group_out_releases_the_iommu(root: vfiod.Root) -> None:
    with attach(root, EDU) as (container, group):
        container.map_dma(0x1000, 0x1000).memory.close()
        group.unset_container()
        with refused(errno.EINVAL):
            container.unmap_dma(0x1000, 0x1000)
        with refused(errno.EINVAL):
            container.set_iommu(vfiod.IOMMUType.TYPE1v2)
        group.set_container(container)
        container.set_iommu(vfiod.IOMMUType.TYPE1)
        assert container.unmap_dma(0x1000, 0x1000) == 0


def test_the_iommu_stays_while_another_group_is_in_the_container(root: vfiod.Root) -> None:
    with attach(root, EDU) as (container, group), root.open_group(27) as second:
        second.set_container(container)
        container.map_dma(0x1000, 0x1000).memory.close()
        group.unset_container()
        assert container.unmap_dma(0x1000, 0x1000) == 0x1000


# Devices


def test_a_group_without_a_container_gives_no_device(group: vfiod.Group) -> None:
    with refused(errno.EINVAL):
        group.open_device(EDU)


def test_a_group_without_an_iommu_gives_no_device(
    container: vfiod.Container, group: vfiod.Group
) -> None:
    group.set_container(container)
    with refused(errno.EINVAL):
        group.open_device(EDU)


def test_a_group_that_is_not_viable_gives_no_device(root: vfiod.Root, iommu: vfiod.Container) -> None:
    with root.open_group(28) as group:
        group.set_container(iommu)
        with refused(errno.EINVAL):
            group.open_device(SECOND_EDU)


@pytest.mark.parametrize("name", ["0000:99:00.0", "", "edu", EDU.upper(), EDU + " ", STUB, SCRATCH])
def test_a_device_that_the_group_has_not_got_does_not_open(root: vfiod.Root, name: str) -> None:
    with attach(root, EDU) as (_, group), refused(errno.ENODEV):
        group.open_device(name)


def test_a_device_name_without_its_nul_is_refused(root: vfiod.Root) -> None:
    with attach(root, EDU) as (_, group):
        for payload in (b"", EDU.encode()):
            with refused(errno.EINVAL):
                group.connection.request(wire.Operation.GROUP_GET_DEVICE_FD, payload)


def test_a_device_opens_again_while_it_is_open_and_both_share_it(root: vfiod.Root) -> None:
    with attach(root, SCRATCH) as (_, group):
        with group.open_device(SCRATCH) as first, group.open_device(SCRATCH) as second:
            first.region(0).write32(0x100, 0x12345678)
            assert second.region(0).read32(0x100) == 0x12345678


def test_an_open_device_keeps_a_closed_group_busy(root: vfiod.Root) -> None:
    with attach(root, EDU) as (_, group):
        device = group.open_device(EDU)
    with refused(errno.EBUSY):
        root.open_group(26)
    assert device.region(0).read32(0) == 0x010000ED
    device.close()
    root.open_group(26).close()


@pytest.mark.parametrize("command", [1, 4, 0x3B64, 0x3B66, 0x3B6B, 0x3B71, 0x3BFF, 0x4000, 0xFFFF])
def test_an_operation_that_a_group_does_not_know_is_refused(group: vfiod.Group, command: int) -> None:
    with refused(errno.ENOTTY):
        group.connection.request(command, b"a body that must be skipped")
    assert group.status() == vfiod.GroupStatus.VIABLE
