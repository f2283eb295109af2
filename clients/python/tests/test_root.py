"""The root socket: opening containers and groups, the topology, external users."""

import errno
import json
import os
import socket

import pytest
from support import (
    EDU,
    FOREIGN,
    SCRATCH,
    SECOND_EDU,
    STUB,
    Server,
    attach,
    exchange,
    expect_error,
    let_others_in,
    message,
    refused,
    version_message,
)

import vfiod
from vfiod import wire


def test_a_container_opens_as_often_as_wanted(root: vfiod.Root) -> None:
    with root.open_container() as first, root.open_container() as second:
        assert first.api_version() == second.api_version() == 0


def test_an_open_group_does_not_open_again(root: vfiod.Root) -> None:
    with root.open_group(26), refused(errno.EBUSY):
        root.open_group(26)


def test_a_group_opens_again_at_once_after_it_was_closed(root: vfiod.Root) -> None:
    for _ in range(200):
        root.open_group(26).close()


def test_a_group_that_does_not_exist_does_not_open(root: vfiod.Root) -> None:
    for id in (0, 25, 99, 0xFFFF_FFFF):
        with refused(errno.ENODEV):
            root.open_group(id)


def test_a_group_that_is_not_viable_opens_all_the_same(root: vfiod.Root) -> None:
    with root.open_group(28) as group:
        assert not group.status() & vfiod.GroupStatus.VIABLE


def test_a_group_id_that_is_too_short_is_refused(root: vfiod.Root) -> None:
    for payload in (b"", b"\x1a", b"\x1a\0\0"):
        with refused(errno.EINVAL):
            root.connection.request(wire.Operation.OPEN_GROUP, payload)


def test_two_root_connections_see_the_same_groups(server: Server, root: vfiod.Root) -> None:
    with server.connect() as other, other.open_group(27), refused(errno.EBUSY):
        root.open_group(27)


def test_what_was_opened_outlives_the_root_connection(server: Server) -> None:
    with server.connect() as root:
        container = root.open_container()
    with container:
        assert container.api_version() == 0


@pytest.mark.parametrize("command", [4, 9, 0x3B64, 0x3B67, 0x3BFF, 0x4004, 0x4022, 0x4FFF, 0xFFFF])
def test_an_operation_that_the_root_does_not_know_is_refused(root: vfiod.Root, command: int) -> None:
    with refused(errno.ENOTTY):
        root.connection.request(command)
    assert root.topology()


# The topology


def test_the_topology_names_every_device(root: vfiod.Root) -> None:
    text = json.dumps(root.topology())
    for name in (EDU, STUB, SCRATCH, SECOND_EDU, FOREIGN):
        assert name in text


def test_a_topology_that_does_not_fit_says_what_it_needs(root: vfiod.Root) -> None:
    reply = root.connection.call(wire.Operation.GET_TOPOLOGY, bytes([8, 0, 0, 0, 0, 0, 0, 0]))
    assert len(reply) == 8
    needed, _ = wire.GROUP_STATUS.unpack(reply)
    request = wire.GROUP_STATUS.pack(needed, 0)
    whole = root.connection.call(wire.Operation.GET_TOPOLOGY, request)
    assert len(whole) == needed
    assert whole[-1] == 0
    assert json.loads(whole[8:-1]) == root.topology()


def test_a_topology_request_with_a_short_argsz_is_refused(root: vfiod.Root) -> None:
    for argsz in (0, 4, 7):
        with refused(errno.EINVAL):
            root.connection.call(wire.Operation.GET_TOPOLOGY, wire.GROUP_STATUS.pack(argsz, 0))


def test_a_topology_request_that_is_too_short_is_refused(root: vfiod.Root) -> None:
    for payload in (b"", b"\0\x10\0\0"):
        with refused(errno.EINVAL):
            root.connection.call(wire.Operation.GET_TOPOLOGY, payload)


# External users


def test_an_external_user_learns_the_group_and_asks_its_container(root: vfiod.Root) -> None:
    with attach(root, EDU) as (_, group), root.external_user(group) as token:
        assert token.group == 26
        assert token.check_extension(vfiod.IOMMUType.TYPE1v2) == 1
        assert token.check_extension(12345) == 0


def test_a_group_without_a_container_has_no_external_users(root: vfiod.Root) -> None:
    with root.open_group(26) as group, refused(errno.EINVAL):
        root.external_user(group)


def test_a_group_without_an_iommu_has_no_external_users(
    root: vfiod.Root, container: vfiod.Container, group: vfiod.Group
) -> None:
    group.set_container(container)
    with refused(errno.EINVAL):
        root.external_user(group)


def test_a_group_that_is_not_viable_has_no_external_users(root: vfiod.Root) -> None:
    with root.open_container() as container, root.open_group(26) as good:
        with root.open_group(28) as bad:
            good.set_container(container)
            bad.set_container(container)
            container.set_iommu(vfiod.IOMMUType.TYPE1v2)
            with refused(errno.EINVAL):
                root.external_user(bad)


def test_an_external_user_of_something_else_is_refused(root: vfiod.Root) -> None:
    with root.open_container() as container, vfiod.EventFD() as event:
        for descriptor in (container, event, root):
            with refused(errno.EINVAL):
                root.external_user(descriptor)


def test_an_external_user_without_a_descriptor_is_refused(root: vfiod.Root) -> None:
    with refused(errno.EBADF):
        root.connection.request(wire.Operation.GET_EXTERNAL_USER)


def test_an_external_user_keeps_the_group_in_its_container(root: vfiod.Root) -> None:
    with attach(root, EDU) as (_, group):
        token = root.external_user(group)
        with refused(errno.EBUSY):
            group.unset_container()
        token.close()
        group.unset_container()


def test_an_external_user_keeps_a_closed_group_busy(root: vfiod.Root) -> None:
    with attach(root, EDU) as (_, group):
        token = root.external_user(group)
    with refused(errno.EBUSY):
        root.open_group(26)
    assert token.check_extension(vfiod.IOMMUType.TYPE1v2) == 1
    token.close()
    root.open_group(26).close()


def test_a_group_may_have_several_external_users(root: vfiod.Root) -> None:
    with attach(root, EDU) as (_, group):
        with root.external_user(group), root.external_user(group) as second:
            assert second.group == 26


@pytest.mark.parametrize("command", [1, 9, 0x3B64, 0x3B65, 0x3B68, 0x4000, 0x4003, 0xFFFF])
def test_an_operation_that_a_token_does_not_know_is_refused(root: vfiod.Root, command: int) -> None:
    with attach(root, EDU) as (_, group), root.external_user(group) as token:
        with refused(errno.ENOTTY):
            token.connection.request(command)
        assert token.check_extension(vfiod.IOMMUType.TYPE1) == 1


def test_an_extension_that_is_too_short_is_refused_by_a_token(root: vfiod.Root) -> None:
    with attach(root, EDU) as (_, group), root.external_user(group) as token:
        with refused(errno.EINVAL):
            token.connection.request(wire.Operation.TOKEN_CHECK_EXTENSION, b"\0\0\0\0")


# Who may


@pytest.mark.vfiod
def test_other_users_may_not_open_a_group(server: Server) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    let_others_in(server)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            with server.connect() as root:
                root.open_container().close()
                try:
                    root.open_group(26).close()
                    theirs.send(b"0")
                except vfiod.VFIOError as error:
                    theirs.send(str(error.errno).encode())
        except BaseException as error:
            theirs.send(repr(error).encode())
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        assert ours.recv(1000).decode() == str(errno.EACCES)
    os.waitpid(pid, 0)


def test_an_error_does_not_end_the_connection(server: Server) -> None:
    with server.raw() as connection:
        connection.send_raw(version_message())
        connection.receive()
        expect_error(exchange(connection, message(0x4FFF, b"some body", id=5)), errno.ENOTTY)
        expect_error(exchange(connection, message(0x4001, b"\x63\0\0\0", id=6)), errno.ENODEV)
