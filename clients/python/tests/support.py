"""What the tests share: the way to a device, raw messages, and other processes."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import vfiod
from vfiod import wire
from vfiod.testing import TIMEOUT as TIMEOUT
from vfiod.testing import Server as Server
from vfiod.testing import find_server
from vfiod.testing import until as until

EDU = "0000:06:0d.0"
STUB = "0000:06:0d.1"
SCRATCH = "0000:07:00.0"
SECOND_EDU = "0000:08:00.0"
FOREIGN = "0000:08:00.1"
GROUP_OF = {EDU: 26, SCRATCH: 27, SECOND_EDU: 28}

DOORBELL = "0000:09:00.0"
DOORBELL_ONLY = {"groups": [{"id": 29, "devices": [{"address": DOORBELL, "model": "doorbell"}]}]}
"""A topology of a server's own: a device with doorbells."""

PAGE = 0x1000
IOVA = 0x10_0000


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs a server that is expected to end by itself."""
    return subprocess.run(
        [os.fspath(find_server()), *arguments], capture_output=True, text=True, timeout=TIMEOUT
    )


def expect_sentence(result: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """The server refused to start: a status that is no success and no signal, one sentence, no trace."""
    assert 0 < result.returncode < 128, f"status {result.returncode}: {result.stderr}"
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0], lines[0]


def resident(server: Server) -> int:
    """The server's resident memory in bytes."""
    pages = Path(f"/proc/{server.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def let_others_in(server: Server) -> None:
    """Other users may reach the root socket; whether they may do anything there is another matter."""
    for path in (server.directory, server.directory.parent):
        path.chmod(0o755)
    server.root_socket.chmod(0o777)


@contextlib.contextmanager
def attach(
    root: vfiod.Root, name: str, iommu: int = vfiod.IOMMUType.TYPE1v2
) -> Iterator[tuple[vfiod.Container, vfiod.Group]]:
    """A container with the device's group in it and its IOMMU set."""
    with root.open_container() as container, root.open_group(GROUP_OF[name]) as group:
        group.set_container(container)
        container.set_iommu(iommu)
        yield container, group


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    """The operation must fail with this errno."""
    with pytest.raises(vfiod.VFIOError) as caught:
        yield
    assert caught.value.errno == number, f"{caught.value} instead of {os.strerror(number)}"


def bus_master(device: vfiod.Device, on: bool = True) -> None:
    command = device.config.read16(4)
    device.config.write16(4, command | 4 if on else command & ~4)


def unbind_foreign(root: vfiod.Root) -> None:
    """Makes group 28 viable: takes the foreign driver off its second function."""
    root.unbind_driver(FOREIGN, "e1000")


# Raw messages ------------------------------------------------------------------------------------


def message(
    command: int, payload: bytes = b"", id: int = 1, flags: int = 0, size: int | None = None
) -> bytes:
    """A message as bytes; `size` may lie."""
    length = 16 + len(payload) if size is None else size
    return wire.HEADER.pack(id, command, length, flags, 0) + payload


def version_message(capabilities: Any = None, major: int = 0, minor: int = 0, id: int = 1) -> bytes:
    data = b"" if capabilities is None else json.dumps({"capabilities": capabilities}).encode() + b"\0"
    return message(wire.Command.VERSION, wire.VERSION.pack(major, minor) + data, id)


def exchange(connection: vfiod.Connection, data: bytes) -> wire.Header:
    """Sends bytes and returns the header of what comes back."""
    connection.send_raw(data)
    reply = connection.receive()
    reply.close()
    return reply.header


def expect_error(header: wire.Header, number: int) -> None:
    """An error reply is a header alone, with a positive errno."""
    assert header.flags & wire.TYPE_MASK == wire.TYPE_REPLY
    assert header.flags & wire.FLAG_ERROR, "succeeded"
    assert header.error == number, os.strerror(header.error)
    assert header.size == wire.HEADER.size


def expect_success(header: wire.Header, id: int) -> None:
    assert not header.flags & wire.FLAG_ERROR, os.strerror(header.error)
    assert header.id == id
    assert header.flags & wire.TYPE_MASK == wire.TYPE_REPLY


def expect_closed(connection: vfiod.Connection) -> None:
    """Nothing more comes but the stream's end."""
    with pytest.raises(vfiod.Disconnected):
        connection.receive()


def read_request(region: int, offset: int, count: int, id: int = 1) -> bytes:
    return message(wire.Command.REGION_READ, wire.REGION_ACCESS.pack(offset, region, count), id)


# Processes ---------------------------------------------------------------------------------------


class Holder:
    """A child process that holds the descriptors it is given, until it is killed."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            number = theirs.fileno()
            os.closerange(3, number)
            os.closerange(number + 1, 65536)
            while True:
                data, held, _, _ = socket.recv_fds(theirs, 1, 16)
                if not data:
                    os._exit(0)
                theirs.send(b"k")
                del held
        theirs.close()

    def give(self, handle: vfiod.connection.HasFileno) -> None:
        """Hands a copy over, and closes ours."""
        socket.send_fds(self._control, [b"f"], [handle.fileno()])
        assert self._control.recv(1) == b"k"
        handle.close()  # type: ignore[attr-defined]

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._control.close()


class ChildResult(NamedTuple):
    status: int
    value: Any


def in_child(work: Callable[[], Any]) -> ChildResult:
    """Runs `work` in a forked process; returns its exit status and what it returned, as JSON."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.write(writing, json.dumps(work()).encode())
            status = 0
        except BaseException as error:
            os.write(writing, json.dumps(repr(error)).encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    return ChildResult(os.waitstatus_to_exitcode(status), json.loads(data) if data else None)


def allow_server_to_read_us() -> None:
    """Where Yama restricts ptrace, a client must allow the server to reach its memory."""
    pr_set_ptracer, anyone = 0x59616D61, ctypes.c_ulong(-1)
    ctypes.CDLL(None).prctl(pr_set_ptracer, anyone, 0, 0, 0)


# edu ---------------------------------------------------------------------------------------------


class EduRegister:
    IDENTIFICATION = 0x00
    LIVENESS = 0x04
    FACTORIAL = 0x08
    STATUS = 0x20
    INTERRUPT_STATUS = 0x24
    INTERRUPT_RAISE = 0x60
    INTERRUPT_ACKNOWLEDGE = 0x64
    DMA_SOURCE = 0x80
    DMA_DESTINATION = 0x88
    DMA_COUNT = 0x90
    DMA_COMMAND = 0x98


EDU_BUFFER = 0x40000
EDU_COMPUTING = 0x01
EDU_FACTORIAL_INTERRUPTS = 0x80
EDU_DMA_RUNNING = 0x01
EDU_TO_MEMORY = 0x02
EDU_DMA_INTERRUPTS = 0x04
EDU_DMA_CAUSE = 0x100
EDU_FACTORIAL_CAUSE = 0x01


def edu_start(device: vfiod.Device, source: int, destination: int, count: int, command: int) -> None:
    bar = device.region(0)
    bar.write64(EduRegister.DMA_SOURCE, source)
    bar.write64(EduRegister.DMA_DESTINATION, destination)
    bar.write64(EduRegister.DMA_COUNT, count)
    bar.write64(EduRegister.DMA_COMMAND, command | EDU_DMA_RUNNING)


def edu_wait(device: vfiod.Device) -> None:
    bar = device.region(0)
    until(lambda: not bar.read32(EduRegister.DMA_COMMAND) & EDU_DMA_RUNNING, "edu's copy to end")


def edu_load(device: vfiod.Device, iova: int, count: int, at: int = 0) -> None:
    """Copies client memory to edu's buffer."""
    edu_start(device, iova, EDU_BUFFER + at, count, 0)
    edu_wait(device)


def edu_store(device: vfiod.Device, iova: int, count: int, at: int = 0) -> None:
    """Copies edu's buffer to client memory."""
    edu_start(device, EDU_BUFFER + at, iova, count, EDU_TO_MEMORY)
    edu_wait(device)
