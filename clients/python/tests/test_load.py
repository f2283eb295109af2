"""Many connections, busy ones, and ones that don't read."""

import errno
import os
import resource
import socket
import time
from collections.abc import Iterator

import pytest
from support import (
    EDU,
    SCRATCH,
    Server,
    attach,
    expect_success,
    message,
    read_request,
    refused,
    resident,
    until,
    version_message,
)

import vfiod
from vfiod import wire
from vfiod.wire import Operation

pytestmark = pytest.mark.vfiod


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_root_connections_are_served_at_once(
    many_descriptors: None, server: Server
) -> None:
    roots = [server.connect() for _ in range(1000)]
    try:
        for root in roots:
            root.connection.send_raw(message(Operation.GET_TOPOLOGY, wire.GROUP_STATUS.pack(8, 0), 7))
        for root in roots:
            expect_success(root.connection.receive().header, 7)
    finally:
        for root in roots:
            root.close()


def test_a_thousand_containers_are_open_at_once(many_descriptors: None, server: Server) -> None:
    with server.connect() as root:
        containers = [root.open_container() for _ in range(1000)]
        try:
            for container in containers:
                assert container.api_version() == 0
        finally:
            for container in containers:
                container.close()


def test_hundreds_of_sessions_of_one_device_are_served_at_once(
    many_descriptors: None, server: Server
) -> None:
    with server.connect() as root, attach(root, SCRATCH) as (_, group):
        devices = [group.open_device(SCRATCH) for _ in range(300)]
        try:
            pending = [device.region(0).submit_read(0, 4) for device in devices]
            for each in pending:
                assert len(each.result()) == 4
            server.check_alive()
        finally:
            for device in devices:
                device.close()
        # The loops that served them may stay; they must not grow with the next ones.
        level = server.descriptors()
        for device in [group.open_device(SCRATCH) for _ in range(100)]:
            device.close()
        server.check_descriptors(level)
        server.level |= level


def connect_and_close(server: Server, times: int) -> None:
    path = os.fspath(server.root_socket)
    hello = version_message()
    for number in range(times):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            if number % 2:
                client.sendall(hello)
            if number % 4 == 3:
                client.recv(4096)


def test_ten_thousand_connections_leave_neither_memory_nor_descriptors(server: Server) -> None:
    connect_and_close(server, 2000)
    server.descriptors()
    before = resident(server)
    connect_and_close(server, 10_000)
    server.check_descriptors()
    grown = resident(server) - before
    assert grown < 4 << 20, f"the server grew by {grown >> 10} KiB"


def test_thousands_of_device_sessions_leave_neither_memory_nor_descriptors(server: Server) -> None:
    def churn(times: int) -> None:
        for number in range(times):
            with server.device(SCRATCH) as device:
                if number % 2:
                    device.map_dma(0x1000, 0x1000).memory.close()

    churn(300)
    before = resident(server)
    churn(1500)
    server.check_descriptors()
    grown = resident(server) - before
    assert grown < 4 << 20, f"the server grew by {grown >> 10} KiB"


def fill(connection: vfiod.Connection, data: bytes) -> int:
    """Sends until the server takes no more for a while; returns how many bytes it took."""
    with socket.socket(fileno=os.dup(connection.fileno())) as sock:
        sent, last = 0, time.monotonic()
        while time.monotonic() - last < 0.3 and sent < 64 << 20:
            try:
                sent += sock.send(data, socket.MSG_DONTWAIT)
                last = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
        return sent


def test_a_client_that_stops_reading_is_bounded_and_delays_nobody(server: Server) -> None:
    """Its requests ask for 4 KiB each: what the server would have to keep is 128 times the requests."""
    with server.device(SCRATCH) as lazy:
        before = resident(server)
        took = fill(lazy.connection, read_request(0, 0, 4096) * 64)
        assert took < 64 << 20, "the server takes requests without end"
        assert resident(server) - before < 64 << 20
        with server.device(EDU) as other:
            start = time.monotonic()
            for _ in range(100):
                assert other.region(0).read32(0) == 0x010000ED
            assert time.monotonic() - start < 5
        server.check_alive()


def test_a_root_client_that_stops_reading_delays_nobody(server: Server) -> None:
    with server.connect() as lazy:
        fill(lazy.connection, message(Operation.GET_TOPOLOGY, wire.GROUP_STATUS.pack(4096, 0)) * 64)
        server.check_alive()
        with server.device(SCRATCH) as device:
            assert device.config.read16(0) == 0x1234


def test_a_client_that_reads_again_gets_every_reply_in_order(server: Server) -> None:
    with server.device(SCRATCH) as device:
        requests = 3000
        pending = [device.region(0).submit_read(4 * number, 4096) for number in range(requests)]
        for each in pending:
            assert len(each.result()) == 4096


def test_a_client_that_leaves_with_replies_unread_frees_the_device(server: Server) -> None:
    for _ in range(2):
        with server.device(SCRATCH) as lazy:
            fill(lazy.connection, read_request(0, 0, 1 << 16) * 16)
    server.device(SCRATCH).close()


def test_a_server_out_of_descriptors_recovers(many_descriptors: None, server: Server) -> None:
    """EMFILE at accept neither spins nor stops the listener."""
    level = len(os.listdir(f"/proc/{server.pid}/fd"))
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (level + 20, 20_000))
    clients = []
    try:
        for _ in range(60):
            client = socket.socket(socket.AF_UNIX)
            clients.append(client)
            client.settimeout(10)
            client.connect(os.fspath(server.root_socket))
        ticks = cpu_ticks(server)
        time.sleep(0.5)
        assert cpu_ticks(server) - ticks < 25, "the server spins"
    finally:
        for client in clients:
            client.close()
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (8192, 20_000))

    def served() -> bool:
        server.check_alive()
        return True

    until(served, "the server to accept again")


def cpu_ticks(server: Server) -> int:
    """Processor time of the server, in hundredths of a second."""
    with open(f"/proc/{server.pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_an_idle_server_uses_no_processor_time(server: Server) -> None:
    with server.connect(), server.device(SCRATCH), server.device(EDU):
        ticks = cpu_ticks(server)
        time.sleep(1)
        assert cpu_ticks(server) - ticks <= 2


def test_a_container_request_without_room_for_its_descriptor_is_refused(server: Server) -> None:
    with server.connect() as root:
        soft = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)[0]
        level = len(os.listdir(f"/proc/{server.pid}/fd"))
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (level, soft))
        try:
            with refused(errno.EMFILE):
                root.open_container()
        finally:
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, soft))
        root.open_container().close()
