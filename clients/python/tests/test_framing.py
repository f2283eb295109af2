"""Where messages begin and end, and what a bad one gets. The stream stays in step."""

import array
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from support import (
    EDU,
    SCRATCH,
    Server,
    attach,
    exchange,
    expect_closed,
    expect_error,
    expect_success,
    message,
    read_request,
    version_message,
)

import vfiod
from vfiod import wire
from vfiod.wire import Command, Operation

KINDS = ["root", "container", "group", "token", "device from a group", "device socket"]


@pytest.fixture(params=KINDS)
def stream(server: Server, request: pytest.FixtureRequest) -> Iterator[vfiod.Connection]:
    """A connection of each kind that is past VERSION."""
    if request.param == "device socket":
        with server.device(SCRATCH) as device:
            yield device.connection
        return
    with server.connect() as root:
        if request.param == "root":
            yield root.connection
            return
        with attach(root, EDU) as (container, group):
            if request.param == "container":
                yield container.connection
            elif request.param == "group":
                yield group.connection
            elif request.param == "token":
                with root.external_user(group) as token:
                    yield token.connection
            else:
                with group.open_device(EDU) as device:
                    yield device.connection


def good_request(kind_of: vfiod.Connection, request: pytest.FixtureRequest) -> bytes:
    """A request that succeeds on this kind of socket."""
    return {
        "root": message(Operation.GET_TOPOLOGY, wire.GROUP_STATUS.pack(8, 0), 77),
        "container": message(Operation.GET_API_VERSION, b"", 77),
        "group": message(Operation.GROUP_GET_STATUS, wire.GROUP_STATUS.pack(8, 0), 77),
        "token": message(Operation.TOKEN_CHECK_EXTENSION, wire.U64.pack(1), 77),
        "device from a group": read_request(7, 0, 4, 77),
        "device socket": read_request(7, 0, 4, 77),
    }[request.node.callspec.params["stream"]]


@pytest.fixture
def good(stream: vfiod.Connection, request: pytest.FixtureRequest) -> bytes:
    return good_request(stream, request)


# Pieces and lumps


def test_a_message_may_come_one_byte_at_a_time(stream: vfiod.Connection, good: bytes) -> None:
    for byte in good:
        stream.send_raw(bytes([byte]))
        time.sleep(0.0005)
    expect_success(stream.receive().header, 77)


def test_many_messages_may_come_in_one_piece(stream: vfiod.Connection, good: bytes) -> None:
    stream.send_raw(good * 200)
    for _ in range(200):
        expect_success(stream.receive().header, 77)


def test_a_piece_may_end_anywhere(stream: vfiod.Connection, good: bytes) -> None:
    data = good * 50
    step = 7
    for start in range(0, len(data), step):
        stream.send_raw(data[start : start + step])
    for _ in range(50):
        expect_success(stream.receive().header, 77)


def test_a_large_write_may_come_in_many_pieces(server: Server) -> None:
    with server.device(SCRATCH) as device:
        data = os.urandom(1 << 20)
        payload = wire.REGION_ACCESS.pack(0, 0, len(data)) + data
        request = message(Command.REGION_WRITE, payload, 9)
        for start in range(0, len(request), 100_000):
            device.connection.send_raw(request[start : start + 100_000])
        expect_success(device.connection.receive().header, 9)
        assert device.region(0).read(0, 1 << 20) == data


def test_a_reply_has_the_id_and_command_of_its_request(stream: vfiod.Connection, good: bytes) -> None:
    for id in (0, 1, 0x7FFF, 0xFFFF):
        header = exchange(stream, struct.pack("=H", id) + good[2:])
        expect_success(header, id)
        assert header.command == struct.unpack_from("=H", good, 2)[0]
        assert header.error == 0


def test_ids_may_be_used_again(stream: vfiod.Connection, good: bytes) -> None:
    stream.send_raw(good + good)
    expect_success(stream.receive().header, 77)
    expect_success(stream.receive().header, 77)


# Impossible sizes


@pytest.mark.parametrize("size", [0, 1, 15, 1 << 27, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_an_impossible_size_is_refused_and_the_connection_closed(
    server: Server, stream: vfiod.Connection, size: int
) -> None:
    stream.send_raw(message(Command.REGION_READ, bytes(16), 5, size=size))
    header = stream.receive().header
    expect_error(header, errno.EINVAL)
    assert header.id == 5
    expect_closed(stream)
    server.check_alive()


@pytest.mark.parametrize("size", [0, 15, 0xFFFF_FFFF])
def test_an_impossible_size_gets_no_reply_where_none_is_wanted(
    stream: vfiod.Connection, size: int
) -> None:
    stream.send_raw(message(Command.REGION_READ, b"", 5, wire.FLAG_NO_REPLY, size))
    expect_closed(stream)


@pytest.mark.parametrize("name", [None, SCRATCH])
@pytest.mark.parametrize("size", [0, 15, (1 << 16) + 17, 1 << 20, 0xFFFF_FFFF])
def test_an_impossible_size_before_version_is_refused_and_the_connection_closed(
    server: Server, name: str | None, size: int
) -> None:
    with server.raw(name) as connection:
        connection.send_raw(message(Command.VERSION, b"", 5, size=size))
        expect_error(connection.receive().header, errno.EINVAL)
        expect_closed(connection)


def test_what_was_asked_before_an_impossible_size_is_answered(
    stream: vfiod.Connection, good: bytes
) -> None:
    stream.send_raw(good + good + message(9, b"", 5, size=3))
    expect_success(stream.receive().header, 77)
    expect_success(stream.receive().header, 77)
    expect_error(stream.receive().header, errno.EINVAL)
    expect_closed(stream)


# Refusals that leave the stream in step


def test_an_unknown_command_leaves_the_stream_in_step(stream: vfiod.Connection, good: bytes) -> None:
    for length in (0, 1, 15, 16, 17, 4096, 60_000):
        stream.send_raw(message(0x7777, os.urandom(length), 5) + good)
        header = stream.receive().header
        assert header.flags & wire.FLAG_ERROR
        assert (header.id, header.command, header.size) == (5, 0x7777, 16)
        assert header.error in (errno.ENOTTY, errno.EINVAL, errno.ENOTSUP)
        expect_success(stream.receive().header, 77)


def test_an_empty_body_leaves_the_stream_in_step(stream: vfiod.Connection, good: bytes) -> None:
    """Every command there is, without its structure. Some succeed, as they need none."""
    commands = [*Command, *Operation, *range(0x4030, 0x4034)]
    for command in commands:
        if command in (Operation.GROUP_UNSET_CONTAINER, Command.VERSION):
            continue
        header = exchange(stream, message(command, b"", 5))
        assert (header.id, header.command) == (5, command)
    expect_success(exchange(stream, good), 77)


def test_random_bodies_leave_the_stream_in_step(stream: vfiod.Connection, good: bytes) -> None:
    commands = [c for c in [*Command, *Operation] if c not in (Operation.GROUP_UNSET_CONTAINER, 1)]
    for length in (1, 4, 7, 8, 16, 20, 24, 31, 32, 48, 64, 100):
        for command in commands:
            header = exchange(stream, message(command, os.urandom(length), 5))
            assert (header.id, header.command) == (5, command)
    expect_success(exchange(stream, good), 77)


def test_no_reply_suppresses_every_reply(stream: vfiod.Connection, good: bytes) -> None:
    quiet = wire.FLAG_NO_REPLY
    silent = good[:8] + struct.pack("=I", quiet) + good[12:]
    unknown = message(0x7777, b"body", 5, quiet)
    short = message(Command.REGION_READ, b"1", 6, quiet)
    stream.send_raw(silent + unknown + short + silent + good)
    expect_success(stream.receive().header, 77)


def test_a_reply_that_nobody_waits_for_leaves_the_stream_in_step(
    stream: vfiod.Connection, good: bytes
) -> None:
    stray = message(Command.DMA_READ, bytes(16), 5, wire.TYPE_REPLY)
    error = message(Command.DMA_WRITE, b"", 6, wire.TYPE_REPLY | wire.FLAG_ERROR)
    stream.send_raw(stray + error + good)
    while (header := stream.receive().header).id != 77:
        assert header.flags & wire.FLAG_ERROR
    expect_success(header, 77)


# Descriptors


def send_with(connection: vfiod.Connection, data: bytes, number: int, copies: int) -> None:
    connection.send_raw(data, [number] * copies)


@pytest.mark.parametrize("copies", [1, 2, 16, 17, 100, 253])
def test_descriptors_that_nobody_asked_for_are_closed(
    server: Server, stream: vfiod.Connection, good: bytes, copies: int
) -> None:
    level = server.descriptors()
    with open("/dev/null", "rb") as null:
        for _ in range(20):
            send_with(stream, good, null.fileno(), copies)
            header = stream.receive().header
            assert header.id == 77
            assert header.error in (0, errno.EINVAL)
        send_with(stream, message(0x7777, b"body", 5), null.fileno(), copies)
        stream.receive()
    expect_success(exchange(stream, good), 77)
    server.check_descriptors(level)


def test_descriptors_in_the_middle_of_a_message_are_closed(
    server: Server, stream: vfiod.Connection, good: bytes
) -> None:
    level = server.descriptors()
    with open("/dev/null", "rb") as null:
        for _ in range(20):
            stream.send_raw(good[:10])
            send_with(stream, good[10:], null.fileno(), 3)
            assert stream.receive().header.id == 77
    expect_success(exchange(stream, good), 77)
    server.check_descriptors(level)


def test_descriptors_of_a_message_that_never_ends_are_closed(server: Server) -> None:
    with open("/dev/null", "rb") as null:
        for _ in range(50):
            with server.raw() as connection:
                send_with(connection, version_message()[:12], null.fileno(), 4)


def test_every_descriptor_goes_to_its_own_message(server: Server) -> None:
    """Triggers of eight vectors, each with its eventfd, pipelined between plain requests."""
    with server.device(SCRATCH) as device:
        events = [vfiod.EventFD() for _ in range(8)]
        try:
            for vector, event in enumerate(events):
                flags = wire.IRQSet.DATA_EVENTFD | wire.IRQSet.TRIGGER
                request = wire.IRQ_SET.pack(20, flags, wire.IRQ.MSIX, vector, 1)
                device.connection.send_raw(read_request(7, 0, 4, 100 + vector))
                device.connection.send_raw(message(8, request, 200 + vector), [event])
                device.connection.send_raw(read_request(7, 0, 4, 300 + vector))
            for vector in range(8):
                for base in (100, 200, 300):
                    expect_success(device.connection.receive().header, base + vector)
            for vector in range(8):
                device.trigger_irqs(wire.IRQ.MSIX, vector)
                assert [event.count() for event in events] == [int(v == vector) for v in range(8)]
        finally:
            for event in events:
                event.close()


def test_two_devices_streams_do_not_mix(server: Server) -> None:
    with server.device(EDU) as edu, server.device(SCRATCH) as scratch:
        for _ in range(100):
            edu.connection.send_raw(read_request(7, 0, 4, 1)[:9])
            scratch.connection.send_raw(read_request(7, 0, 4, 2))
            assert scratch.connection.receive().payload[16:] == b"\x34\x12\x7a\x5c"
            edu.connection.send_raw(read_request(7, 0, 4, 1)[9:])
            assert edu.connection.receive().payload[16:] == b"\x34\x12\xe8\x11"


def test_an_unread_descriptor_of_a_closed_connection_is_closed(server: Server) -> None:
    """Container descriptors that the client never collects."""
    for _ in range(20):
        with server.connect() as root:
            for id in range(8):
                root.connection.send_raw(message(Operation.OPEN_CONTAINER, b"", id))


def test_descriptors_that_a_client_does_not_collect_are_bounded(server: Server) -> None:
    """Many requests for containers at once: others are still served with descriptors."""
    with server.connect() as hoarder:
        hoarder.connection.send_raw(message(Operation.OPEN_CONTAINER, b"", 1) * 1000)
        with server.connect() as root, root.open_container() as container:
            assert container.api_version() == 0


def test_a_credential_or_other_control_message_does_no_harm(server: Server) -> None:
    with server.connect() as root:
        raw = socket.socket(fileno=os.dup(root.fileno()))
        with raw:
            numbers = array.array("i", [0, 0])
            credentials = struct.pack("=iII", os.getpid(), os.getuid(), os.getgid())
            raw.sendmsg(
                [message(Operation.GET_TOPOLOGY, wire.GROUP_STATUS.pack(8, 0), 77)],
                [
                    (socket.SOL_SOCKET, 2, credentials),
                    (socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers.tobytes()),
                ],
            )
        header = root.connection.receive().header
        assert header.id == 77
        root.topology()
