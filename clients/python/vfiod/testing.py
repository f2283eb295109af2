"""A server for tests, as pytest fixtures.

    def test_edu_names_itself(vfiod_server):
        with vfiod_server.device("0000:06:0d.0") as device:
            assert device.region(0).read32(0) == 0x010000ED

Installing this package is enough for pytest to find the fixtures; without installing it, say
`pytest_plugins = ["vfiod.testing"]` in conftest.py.

PYTEST_DONT_REWRITE: there are no assertions here, and whoever imports it first needs no warning.
"""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

import vfiod

TIMEOUT = 20.0
"""Seconds after which a wait has failed; far more than anything here takes."""

GRACE = 5
"""Seconds that the server has after a test to notice what was closed."""

HOW_TO_BUILD = (
    "`swift build -c release --product vfiod` in vfiod's repository makes .build/release/vfiod"
)


def find_server() -> Path:
    """The server's program: what `VFIOD` names, else `vfiod` on `PATH`."""
    named = os.environ.get("VFIOD")
    found = shutil.which(named or "vfiod")
    if found is None and named:
        pytest.fail(f"VFIOD is {named}, which is no program: {HOW_TO_BUILD}", pytrace=False)
    if found is None:
        pytest.fail(
            f"no vfiod: set VFIOD to its path, or put it on PATH; {HOW_TO_BUILD}", pytrace=False
        )
    return Path(found).absolute()


def until(condition: Callable[[], bool], what: str, timeout: float = TIMEOUT) -> None:
    """Waits until `condition` holds; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain for {what}")
        time.sleep(0.002)


class Server:
    """A running server with `topology`, on `directory` or a temporary one; nobody else uses it.

    A topology is what the server's `--config` file holds, limits included; None is the built-in one.
    `arguments` are further options of the server's, such as "--log-level", "trace".

    At the end of `with` the server stops, and that must go well; after an exception it is killed.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *arguments: str,
        topology: Mapping[str, Any] | None = None,
    ) -> None:
        program = find_server()
        self._temporary: str | None = None
        if directory is None:
            # Not pytest's tmp_path: a socket's path has at most 107 bytes.
            self._temporary = tempfile.mkdtemp(prefix="vfiod-")
            directory = Path(self._temporary) / "vfiod"
        self.directory = directory
        self.root_socket = directory / "vfio.sock"
        self.log = directory.with_suffix(".log")
        command = [os.fspath(program), "--directory", os.fspath(directory), *arguments]
        if topology is not None:
            file = directory.with_suffix(".json")
            file.write_text(json.dumps(topology))
            command += ["--config", os.fspath(file)]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            until(self._accepts, "the server's root socket")
            self.reset_devices()
            self._devices = self._vfio_devices()
            self.level = self.descriptors()
        except BaseException:
            self.kill()
            self._clean_up()
            raise

    def _accepts(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"the server ended: {self.output()}", pytrace=False)
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(os.fspath(self.root_socket))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            return True

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        """What the server has logged so far."""
        return self.log.read_text(errors="replace")

    # Clients

    def connect(self) -> vfiod.Root:
        return vfiod.connect(self.directory, TIMEOUT)

    def device(self, name: str) -> vfiod.Device:
        """A client of the device's own socket."""
        return vfiod.Device.connect(self.device_socket(name), TIMEOUT)

    def device_socket(self, name: str) -> Path:
        return self.directory / "devices" / f"{name}.sock"

    def raw(self, name: str | None = None) -> vfiod.Connection:
        """A connection that has not sent VERSION: to the root, or to a device's socket."""
        path = self.root_socket if name is None else self.device_socket(name)
        return vfiod.Connection.open(path, TIMEOUT)

    def reset_devices(self) -> None:
        """Opens each device that can be used out of its group, which resets it.

        So what the server makes for a device's first client is there before descriptors are counted.
        """
        with self.connect() as root:
            for group in root.topology()["groups"]:
                names = [each["address"] for each in group["devices"] if each["driver"] == "vfio-pci"]
                if not names or not group["viable"]:
                    continue
                try:
                    with root.open_group(group["id"]) as opened, root.open_container() as container:
                        opened.set_container(container)
                        container.set_iommu(vfiod.IOMMUType.TYPE1v2)
                        for name in names:
                            opened.open_device(name).close()
                except vfiod.VFIOError:
                    continue  # another's group, or a server without this IOMMU

    # What must be in order

    def check_alive(self) -> None:
        """The server runs, and serves."""
        if (status := self.process.poll()) is not None:
            pytest.fail(f"the server ended with status {status}: {self.output()}", pytrace=False)
        with self.connect() as root:
            root.open_container().close()

    def _vfio_devices(self) -> set[str]:
        with self.connect() as root:
            groups = root.topology()["groups"]
            return {each["address"] for group in groups for each in group["devices"] if each["socket"]}

    def check_unused(self) -> None:
        """As after a test: the server runs and serves, and holds nothing of its clients'.

        Takes off the devices that were added, which have descriptors of their own.
        """
        self.check_alive()
        for name in sorted(self._vfio_devices() - self._devices):
            with self.connect() as root:
                try:
                    root.remove_device(name, timeout=GRACE)
                except vfiod.VFIOError as error:
                    pytest.fail(f"{name} was added, and not closed: {error}", pytrace=False)
        self.check_descriptors()

    def descriptors(self) -> Counter[str]:
        """What the server has open, by kind, after it has noticed which connections are closed."""
        with self.connect() as root:
            root.topology()
            kinds = Counter[str]()
            for entry in os.scandir(f"/proc/{self.pid}/fd"):
                try:
                    link = os.readlink(entry.path)
                except FileNotFoundError:
                    continue
                kinds["socket" if link.startswith("socket:") else link] += 1
            return kinds

    def check_descriptors(self, level: Counter[str] | None = None) -> None:
        """The server holds no more descriptors than at its start, or than `level`."""
        deadline = time.monotonic() + GRACE
        while held := self.descriptors() - (self.level if level is None else level):
            gc.collect()  # a client's object may wait for it
            if time.monotonic() > deadline:
                what = ", ".join(f"{count} × {kind}" for kind, count in sorted(held.items()))
                pytest.fail(
                    f"the server still holds descriptors: {what}; was everything closed?",
                    pytrace=False,
                )
            time.sleep(0.002)

    # The end

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Signals the server; it must end with status 0 and leave no sockets behind."""
        self.process.send_signal(number)
        try:
            status = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the server didn't stop in {TIMEOUT:.0f} s", pytrace=False)
        if status != 0:
            pytest.fail(f"the server ended with status {status}: {self.output()}", pytrace=False)
        if left := [path.name for path in self.directory.rglob("*.sock")]:
            pytest.fail(f"the server left sockets behind: {left}", pytrace=False)

    def kill(self) -> None:
        """Ends the server, if it still runs, without giving it a chance to clean up."""
        self.process.kill()
        self.process.wait()

    def _clean_up(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self.process.returncode is None:
                self.stop()
        finally:
            self.kill()
            self._clean_up()


# Fixtures ----------------------------------------------------------------------------------------

_passed = pytest.StashKey[bool]()


def has_passed(item: pytest.Item) -> bool:
    """Whether the test has run and passed; a fixture's end may ask."""
    return item.stash.get(_passed, False)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vfiod(topology): what the test's vfiod_server serves")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, None]:
    outcome = yield
    if call.when == "call":
        item.stash[_passed] = outcome.get_result().passed


@pytest.fixture
def vfiod_topology() -> Mapping[str, Any] | None:
    """What `vfiod_server` serves unless the test is marked; override it. None is the built-in one."""
    return None


@pytest.fixture
def vfiod_server(
    request: pytest.FixtureRequest, vfiod_topology: Mapping[str, Any] | None
) -> Iterator[Server]:
    """The test's own server, which must still run after the test, hold nothing and stop cleanly.

    `@pytest.mark.vfiod(topology)` chooses what it serves. After a failed test nothing is checked, and
    its log is printed.
    """
    marker = request.node.get_closest_marker("vfiod")
    topology = marker.args[0] if marker and marker.args else vfiod_topology
    with Server(topology=topology) as server:
        try:
            yield server
            # Not when the test has ended it.
            if has_passed(request.node) and server.process.returncode is None:
                server.check_unused()
                server.stop()
        finally:
            server.kill()
            print(server.output())


@pytest.fixture
def vfio(vfiod_server: Server) -> Iterator[vfiod.Root]:
    """A connection to the test's own server."""
    with vfiod_server.connect() as root:
        yield root
