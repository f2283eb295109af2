"""The server that the tests use, and objects out of it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import EDU, SCRATCH, Server, attach, bus_master

import vfiod
from vfiod.testing import has_passed

pytest_plugins = ["vfiod.testing", "pytester"]

BUILD = Path(__file__).resolve().parents[3] / ".build" / "debug" / "vfiod"
if BUILD.exists():
    os.environ.setdefault("VFIOD", str(BUILD))


@pytest.fixture(scope="session")
def pool() -> Iterator[list[Server]]:
    """Up to one server that serves the built-in topology and that no test has harmed."""
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.stop()


def topology_of(server: Server) -> Any:
    """What a test may not change; a device's faults it may."""
    with server.connect() as root:
        topology = root.topology()
    for group in topology["groups"]:
        for device in group["devices"]:
            del device["faults"]
    return topology


@pytest.fixture
def server(
    request: pytest.FixtureRequest, pool: list[Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """With the mark `vfiod` the test's own server, else one that many tests use, each after the other.

    Either must be as before after the test: alive, and with no descriptor more. A server whose
    topology the test has changed isn't used again.
    """
    if request.node.get_closest_marker("vfiod"):
        yield request.getfixturevalue("vfiod_server")
        return
    server = pool.pop() if pool else Server(tmp_path_factory.mktemp("shared") / "vfiod")
    topology = topology_of(server)
    try:
        yield server
        if has_passed(request.node):
            server.check_unused()
            server.reset_devices()
            if topology_of(server) == topology:
                pool.append(server)
            else:
                server.stop()
    finally:
        if server not in pool:
            server.kill()
            print(server.output())


@pytest.fixture
def root(server: Server) -> Iterator[vfiod.Root]:
    with server.connect() as root:
        yield root


@pytest.fixture
def container(root: vfiod.Root) -> Iterator[vfiod.Container]:
    """A container with nothing in it."""
    with root.open_container() as container:
        yield container


@pytest.fixture
def group(root: vfiod.Root) -> Iterator[vfiod.Group]:
    """Group 26, in no container."""
    with root.open_group(26) as group:
        yield group


@pytest.fixture
def iommu(root: vfiod.Root) -> Iterator[vfiod.Container]:
    """A container with group 26 in it and the IOMMU type1 v2."""
    with attach(root, EDU) as (container, _):
        yield container


class Edu:
    """The edu device out of its group, allowed to do DMA; and the objects on the way to it."""

    def __init__(self, container: vfiod.Container, group: vfiod.Group, device: vfiod.Device) -> None:
        self.container = container
        self.group = group
        self.device = device
        self.bar = device.region(0)


@pytest.fixture
def edu(root: vfiod.Root) -> Iterator[Edu]:
    with attach(root, EDU) as (container, group), group.open_device(EDU) as device:
        bus_master(device)
        yield Edu(container, group, device)


@pytest.fixture(params=["a group", "its own socket"])
def scratch(server: Server, request: pytest.FixtureRequest) -> Iterator[vfiod.Device]:
    """The scratch device, out of its group and then by its own socket."""
    if request.param == "its own socket":
        with server.device(SCRATCH) as device:
            yield device
    else:
        with server.connect() as root, attach(root, SCRATCH) as (_, group):
            with group.open_device(SCRATCH) as device:
                yield device
