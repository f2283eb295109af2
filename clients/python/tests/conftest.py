"""Every test that names `server` has one of its own, which must stop cleanly and leak nothing."""

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import EDU, SCRATCH, Server, attach, bus_master, warm_up

import vfiod


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):  # type: ignore[no-untyped-def]
    report = yield
    if report.when == "call":
        item.passed = report.passed
    return report


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    arguments: list[str] = []
    if marker := request.node.get_closest_marker("configuration"):
        file = tmp_path / "config.json"
        file.write_text(json.dumps(marker.args[0]))
        arguments = ["--config", str(file)]
    server = Server(tmp_path / "vfiod", *arguments)
    try:
        server.wait_until_ready()
        warm_up(server)
        server.mark()
        yield server
        if getattr(request.node, "passed", False):
            gc.collect()
            server.check_alive()
            server.check_level()
            server.stop()
            assert "Fatal error" not in server.output()
    finally:
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
