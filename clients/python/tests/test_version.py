"""VERSION: first, once, and as the specification has it."""

import errno
import json

import pytest
from support import (
    EDU,
    SCRATCH,
    Server,
    attach,
    exchange,
    expect_error,
    expect_success,
    message,
    read_request,
    version_message,
)

import vfiod
from vfiod import wire
from vfiod.wire import Command, Operation

ROOT_AND_DEVICE = pytest.mark.parametrize("name", [None, SCRATCH], ids=["root", "device"])


def first_request(name: str | None, id: int = 1) -> bytes:
    if name is None:
        return message(Operation.GET_TOPOLOGY, wire.GROUP_STATUS.pack(8, 0), id)
    return read_request(7, 0, 4, id)


def answer(connection: vfiod.Connection, data: bytes) -> wire.Version:
    connection.send_raw(data)
    reply = connection.receive()
    expect_success(reply.header, 1)
    return wire.Version.unpack(reply.payload)


@ROOT_AND_DEVICE
def test_a_client_that_names_no_capabilities_gets_the_defaults(server: Server, name: str | None) -> None:
    with server.raw(name) as connection:
        version = answer(connection, version_message())
        assert (version.major, version.minor) == (0, 0)
        assert version.capabilities == {}
        expect_success(exchange(connection, first_request(name)), 1)


@ROOT_AND_DEVICE
def test_the_answer_names_no_capability_that_was_not_proposed(server: Server, name: str | None) -> None:
    for proposal in ({}, {"max_msg_fds": 8}, {"max_data_xfer_size": 65536, "unheard_of": True}):
        with server.raw(name) as connection:
            version = answer(connection, version_message(proposal))
            assert set(version.capabilities) <= set(proposal) - {"unheard_of"}


@ROOT_AND_DEVICE
def test_the_answer_is_json_that_ends_with_its_nul(server: Server, name: str | None) -> None:
    with server.raw(name) as connection:
        connection.send_raw(version_message({"max_msg_fds": 8, "max_data_xfer_size": 1 << 20}))
        payload = connection.receive().payload
        assert payload[-1] == 0
        assert payload.count(0, 4) == 1
        capabilities = json.loads(payload[4:-1])["capabilities"]
        assert capabilities["max_msg_fds"] >= 1
        assert capabilities["max_data_xfer_size"] >= 1


def test_the_answer_fits_in_what_qemu_leaves_for_it(server: Server) -> None:
    """QEMU reads the reply into the buffer of its request."""
    proposal = {
        "max_msg_fds": 8,
        "max_data_xfer_size": 1048576,
        "pgsizes": 4096,
        "max_dma_maps": 65535,
        "migration": {"pgsize": 4096},
        "write_multiple": True,
    }
    request = version_message(proposal)
    with server.raw(SCRATCH) as connection:
        connection.send_raw(request)
        header = connection.receive().header
        expect_success(header, 1)
        assert header.size <= len(request)


@ROOT_AND_DEVICE
def test_the_answers_minor_version_is_not_above_the_proposed_one(
    server: Server, name: str | None
) -> None:
    for minor in (0, 1, 0xFFFF):
        with server.raw(name) as connection:
            assert answer(connection, version_message(minor=minor)).minor <= minor


@ROOT_AND_DEVICE
@pytest.mark.parametrize("major", [1, 2, 0xFFFF])
def test_another_major_version_is_refused(server: Server, name: str | None, major: int) -> None:
    with server.raw(name) as connection:
        expect_error(exchange(connection, version_message(major=major)), errno.EINVAL)
    with server.raw(name) as connection:
        answer(connection, version_message())


@ROOT_AND_DEVICE
def test_a_request_before_version_is_refused_and_the_stream_goes_on(
    server: Server, name: str | None
) -> None:
    with server.raw(name) as connection:
        expect_error(exchange(connection, first_request(name)), errno.EINVAL)
        answer(connection, version_message())
        expect_success(exchange(connection, first_request(name)), 1)


@ROOT_AND_DEVICE
def test_a_second_version_is_refused_and_the_stream_goes_on(server: Server, name: str | None) -> None:
    with server.raw(name) as connection:
        answer(connection, version_message())
        expect_error(exchange(connection, version_message()), errno.EINVAL)
        expect_success(exchange(connection, first_request(name)), 1)


def test_a_device_out_of_a_group_wants_version_first_too(server: Server) -> None:
    with server.connect() as root, attach(root, EDU) as (_, group):
        request = EDU.encode() + b"\0"
        reply = group.connection.request(Operation.GROUP_GET_DEVICE_FD, request)
        with vfiod.Connection.adopt(reply.take("GROUP_GET_DEVICE_FD"), 10) as connection:
            expect_error(exchange(connection, read_request(7, 0, 4)), errno.EINVAL)
            answer(connection, version_message())
            expect_success(exchange(connection, read_request(7, 0, 4)), 1)


def test_containers_groups_and_tokens_need_no_version(server: Server) -> None:
    with server.connect() as root, attach(root, EDU) as (container, group):
        assert container.api_version() == 0
        assert group.status()
        with root.external_user(group) as token:
            assert token.check_extension(1) == 1


DEEP = b"[" * 20_000 + b"]" * 20_000

BAD = {
    "no version at all": b"",
    "half a version": b"\0\0",
    "three bytes": b"\0\0\0",
    "JSON without its NUL": b'\0\0\0\0{"capabilities": {}}',
    "JSON that doesn't end": b'\0\0\0\0{"capabilities": {\0',
    "no JSON": b"\0\0\0\0hello\0",
    "an empty string": b"\0\0\0\0\0",
    "a second value": b'\0\0\0\0{"capabilities": {}} {}\0',
    "an array": b"\0\0\0\0[]\0",
    "a number": b"\0\0\0\x0042\0",
    "capabilities of the wrong type": b'\0\0\0\0{"capabilities": []}\0',
    "capabilities that are text": b'\0\0\0\0{"capabilities": "all"}\0',
    "a limit that is text": b'\0\0\0\0{"capabilities": {"max_msg_fds": "8"}}\0',
    "a limit that is a fraction": b'\0\0\0\0{"capabilities": {"max_msg_fds": 1.5}}\0',
    "a negative limit": b'\0\0\0\0{"capabilities": {"max_data_xfer_size": -1}}\0',
    "a limit beyond 64 bits": b'\0\0\0\0{"capabilities": {"max_dma_maps": 1e400}}\0',
    "a boolean that is a number": b'\0\0\0\0{"capabilities": {"write_multiple": 1}}\0',
    "bytes that are not UTF-8": b'\0\0\0\0{"capabilities": {"\xff\xfe": 1}}\0',
    "deep nesting": b'\0\0\0\0{"capabilities": ' + DEEP + b"}\0",
}


@ROOT_AND_DEVICE
@pytest.mark.parametrize("what", BAD)
def test_a_bad_version_is_refused(server: Server, name: str | None, what: str) -> None:
    with server.raw(name) as connection:
        expect_error(exchange(connection, message(Command.VERSION, BAD[what])), errno.EINVAL)
    with server.raw(name) as connection:
        answer(connection, version_message())


@ROOT_AND_DEVICE
def test_a_large_version_within_the_limit_is_accepted(server: Server, name: str | None) -> None:
    with server.raw(name) as connection:
        answer(connection, version_message({"x" * 30_000: 1}))


def test_without_a_limit_a_mebibyte_may_be_transferred(server: Server) -> None:
    with server.raw(SCRATCH) as connection:
        answer(connection, version_message())
        expect_success(exchange(connection, read_request(2, 0, 1 << 20)), 1)
        expect_error(exchange(connection, read_request(2, 0, (1 << 20) + 4)), errno.EINVAL)


def test_the_agreed_limit_is_kept(server: Server) -> None:
    with server.raw(SCRATCH) as connection:
        proposal = {"max_data_xfer_size": 1 << 20}
        limit = answer(connection, version_message(proposal)).capabilities["max_data_xfer_size"]
        expect_success(exchange(connection, read_request(2, 0, min(limit, 1 << 20))), 1)
        expect_error(exchange(connection, read_request(2, 0, limit + 1)), errno.EINVAL)


def test_a_twin_socket_is_not_offered_unless_asked_for(server: Server) -> None:
    with server.raw(SCRATCH) as connection:
        connection.send_raw(version_message({"max_msg_fds": 8}))
        reply = connection.receive()
        assert reply.descriptors == []
        assert "twin_socket" not in wire.Version.unpack(reply.payload).capabilities
