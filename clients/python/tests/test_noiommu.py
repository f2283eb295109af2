"""Groups without an IOMMU: who gets them, and what their devices reach."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Edu
from support import (
    EDU,
    PAGE,
    SCRATCH,
    SECOND_EDU,
    Server,
    bus_master,
    edu_load,
    edu_store,
    in_child,
    let_others_in,
    refused,
)
from test_vfioctl import ls, run

import vfiod
from vfiod import GroupStatus, IOMMUType

BARE: dict[str, Any] = {
    "iommu_drivers": ["type1", "spapr-tce", "noiommu"],
    "groups": [
        {"id": 27, "devices": [{"address": SCRATCH, "model": "scratch"}]},
        {"id": 40, "mode": "0666", "iommu": "none", "devices": [{"address": EDU, "model": "edu"}]},
        {"id": 41, "iommu": "none", "devices": [{"address": SECOND_EDU, "model": "edu"}]},
    ],
}
pytestmark = pytest.mark.vfiod(BARE)


@pytest.fixture
def bare(root: vfiod.Root) -> Iterator[Edu]:
    with root.open_container() as container, root.open_group(40) as group:
        group.set_container(container)
        container.set_iommu(IOMMUType.NOIOMMU)
        with group.open_device(EDU) as device:
            bus_master(device)
            yield Edu(container, group, device)


def test_a_group_without_an_iommu_has_the_status_of_any(root: vfiod.Root) -> None:
    with root.open_container() as container, root.open_group(40) as group:
        assert group.status() == GroupStatus.VIABLE
        group.set_container(container)
        assert group.status() == GroupStatus.VIABLE | GroupStatus.CONTAINER_SET


def test_only_an_administrator_opens_it(server: Server) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    let_others_in(server)

    def work() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with server.connect() as root, refused(errno.EPERM):
            root.open_group(40)
        with server.connect() as root, refused(errno.EACCES):
            root.open_group(41)

    status, value = in_child(work)
    assert status == 0, value


def test_extensions_are_those_of_the_containers_kind(root: vfiod.Root) -> None:
    def extensions(container: vfiod.Container) -> list[int]:
        return [number for number in IOMMUType if container.check_extension(number) > 0]

    with root.open_container() as container, root.open_container() as other:
        assert extensions(container) == [1, 2, 3, 7, 8, 9]
        with root.open_group(40) as group, root.open_group(27) as real:
            group.set_container(container)
            real.set_container(other)
            assert extensions(container) == [8]
            assert extensions(other) == [1, 2, 3, 7, 9]
            for type in (IOMMUType.TYPE1, IOMMUType.TYPE1v2, IOMMUType.SPAPR_TCE_v2):
                with refused(errno.ENODEV):
                    container.set_iommu(type)
            with refused(errno.ENODEV):
                other.set_iommu(IOMMUType.NOIOMMU)


def test_groups_of_both_kinds_never_share_a_container(root: vfiod.Root) -> None:
    with root.open_container() as container, root.open_group(27) as real:
        with root.open_group(40) as one, root.open_group(41) as other:
            one.set_container(container)
            with refused(errno.EPERM):
                real.set_container(container)
            other.set_container(container)
            container.set_iommu(IOMMUType.NOIOMMU)
            with refused(errno.EPERM):
                real.set_container(container)


def test_nothing_is_mapped_and_dma_is_off(bare: Edu) -> None:
    with refused(errno.ENOTTY):
        bare.container.map_dma(0, PAGE)
    with refused(errno.ENOTTY):
        bare.container.unmap_dma(0, PAGE)
    with refused(errno.ENOTTY):
        bare.container.iommu_info()
    with refused(errno.ENOTTY):
        bare.device.map_dma(0, PAGE)
    # The device meets faults, and lives on.
    edu_load(bare.device, 0, 16)
    edu_store(bare.device, 0, 16)
    assert bare.bar.read32(0) == 0x010000ED


def test_no_token_holds_its_group(bare: Edu, root: vfiod.Root) -> None:
    with refused(errno.EPERM):
        root.external_user(bare.group)


def test_its_devices_have_no_sockets(server: Server, root: vfiod.Root) -> None:
    groups = {group["id"]: group for group in root.topology()["groups"]}
    assert groups[40]["iommu"] == "none" and groups[27]["iommu"] is None
    assert groups[40]["devices"][0]["socket"] is None
    assert sorted(path.name for path in server.device_socket(SCRATCH).parent.iterdir()) == [f"{SCRATCH}.sock"]


def test_vfioctl_names_it_as_the_kernel_does(server: Server) -> None:
    assert [row[0] for row in ls(server)[1:]] == ["27", "noiommu-40", "noiommu-41"]
    assert run("info", EDU, "--directory", server.directory).startswith(f"{EDU}  1234:11e8  group 40\n")


def test_devices_reach_the_physical_memory_that_the_operator_named(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    with path.open("w+b") as memory:
        memory.truncate(4 * PAGE)
        with vfiod.testing.Server(topology={**BARE, "physical_memory": str(path)}) as server:
            with server.connect() as root, root.open_container() as container:
                with root.open_group(40) as group:
                    group.set_container(container)
                    container.set_iommu(IOMMUType.NOIOMMU)
                    with group.open_device(EDU) as device:
                        bus_master(device)
                        os.pwrite(memory.fileno(), b"physical", 3 * PAGE)
                        edu_load(device, 3 * PAGE, 8)
                        edu_store(device, PAGE + 5, 8)
                        assert os.pread(memory.fileno(), 8, PAGE + 5) == b"physical"
                        edu_store(device, 4 * PAGE, 8)
                        assert os.fstat(memory.fileno()).st_size == 4 * PAGE
