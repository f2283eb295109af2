"""What the administrator does: drivers bound and unbound, devices removed, live groups protected."""

import errno
import os

import pytest
from support import (
    FOREIGN,
    IOVA,
    PAGE,
    SCRATCH,
    SECOND_EDU,
    STUB,
    Server,
    administer,
    attach,
    bus_master,
    edu_load,
    edu_store,
    refused,
    unbind_foreign,
)

import vfiod
from vfiod.wire import IRQ, Operation


def bind(root: vfiod.Root, name: str, driver: str, force: bool = False) -> None:
    arguments = {"name": name, "driver": driver, **({"force": True} if force else {})}
    administer(root, Operation.BIND_DRIVER, **arguments)


# Drivers


def test_a_foreign_driver_bound_to_an_idle_group_takes_its_viability(root: vfiod.Root) -> None:
    unbind_foreign(root)
    with root.open_group(28) as group:
        assert group.status() & vfiod.GroupStatus.VIABLE
    bind(root, FOREIGN, "e1000")
    with root.open_group(28) as group:
        assert not group.status() & vfiod.GroupStatus.VIABLE


def test_a_foreign_driver_is_not_bound_in_a_live_group(root: vfiod.Root) -> None:
    unbind_foreign(root)
    with attach(root, SECOND_EDU) as (_, group), group.open_device(SECOND_EDU) as device:
        with refused(errno.EBUSY):
            bind(root, FOREIGN, "e1000")
        assert group.status() & vfiod.GroupStatus.VIABLE
        assert device.region(0).read32(0) == 0x010000ED
    bind(root, FOREIGN, "e1000")


def test_a_whitelisted_driver_may_be_bound_in_a_live_group(root: vfiod.Root) -> None:
    unbind_foreign(root)
    with attach(root, SECOND_EDU) as (_, group):
        bind(root, FOREIGN, "pci-stub")
        assert group.status() & vfiod.GroupStatus.VIABLE


def test_a_foreign_driver_forced_into_a_live_group_quarantines_it(server: Server, root: vfiod.Root) -> None:
    unbind_foreign(root)
    with attach(root, SECOND_EDU) as (container, group), group.open_device(SECOND_EDU) as device:
        bus_master(device)
        with container.map_dma(IOVA, PAGE) as memory:
            memory[0:4] = b"data"
            edu_load(device, IOVA, 4)
            bind(root, FOREIGN, "e1000", force=True)
            memory[0:4] = b"keep"
            edu_store(device, IOVA, 4)
            assert memory[0:4] == b"keep"
        assert not group.status() & vfiod.GroupStatus.VIABLE
        with refused(errno.EINVAL):
            group.open_device(SECOND_EDU)
    server.check_alive()


def test_an_unbound_device_is_bound_to_its_vfio_driver_again(server: Server, root: vfiod.Root) -> None:
    administer(root, Operation.UNBIND_DRIVER, name=SCRATCH, driver="vfio-pci")
    with refused(errno.ENODEV):
        root.open_group(27)
    assert not server.device_socket(SCRATCH).exists()
    bind(root, SCRATCH, "vfio-pci")
    root.open_group(27).close()
    with server.device(SCRATCH) as device:
        assert device.config.read16(0) == 0x1234


# Removal


def test_a_removed_device_takes_its_group_and_socket_along(server: Server, root: vfiod.Root) -> None:
    administer(root, Operation.REMOVE_DEVICE, name=SCRATCH, timeout=1)
    with refused(errno.ENODEV):
        root.open_group(27)
    assert not server.device_socket(SCRATCH).exists()


def test_removing_an_open_device_times_out_and_leaves_it_as_it_was(root: vfiod.Root) -> None:
    with attach(root, SCRATCH) as (_, group), group.open_device(SCRATCH) as device:
        with refused(errno.ETIMEDOUT):
            administer(root, Operation.REMOVE_DEVICE, name=SCRATCH, timeout=1)
        assert device.config.read16(0) == 0x1234
        group.open_device(SCRATCH).close()


def test_removing_an_open_device_asks_its_user_and_waits(server: Server, root: vfiod.Root) -> None:
    with attach(root, SCRATCH) as (_, group):
        with group.open_device(SCRATCH) as device, vfiod.EventFD() as request:
            device.set_triggers(IRQ.REQ, [request])
            body = b'{"name": "0000:07:00.0", "timeout": 30}\0'
            pending = root.connection.submit(Operation.REMOVE_DEVICE, body, (), lambda reply: reply)
            assert request.wait(10) >= 1
            with refused(errno.ENODEV):
                group.open_device(SCRATCH)
            assert device.config.read16(0) == 0x1234
            assert pending.reply is None
        pending.result()
        with refused(errno.ENODEV):
            group.open_device(SCRATCH)


def test_a_removal_that_waits_does_not_delay_other_clients(server: Server, root: vfiod.Root) -> None:
    with attach(root, SCRATCH) as (_, group):
        with group.open_device(SCRATCH), server.connect() as other:
            body = b'{"name": "0000:07:00.0", "timeout": 30}\0'
            pending = root.connection.submit(Operation.REMOVE_DEVICE, body, (), lambda reply: reply)
            assert other.topology()
            server.check_alive()
        pending.result()


def test_a_client_that_leaves_during_its_removal_request_harms_nobody(
    server: Server, root: vfiod.Root
) -> None:
    with attach(root, SCRATCH) as (_, group), group.open_device(SCRATCH):
        with server.connect() as other:
            body = b'{"name": "0000:07:00.0", "timeout": 30}\0'
            other.connection.submit(Operation.REMOVE_DEVICE, body, (), lambda reply: reply)
        server.check_alive()


# Bad requests


@pytest.mark.parametrize("operation", range(0x4010, 0x4014))
@pytest.mark.parametrize(
    "body", [b"", b"\0", b"{", b"{\0", b"[]\0", b"{}\0", b'{"name": 1}\0', b'{"name": "\xff"}\0']
)
def test_a_bad_request_is_refused(root: vfiod.Root, operation: int, body: bytes) -> None:
    with refused(errno.EINVAL):
        root.connection.request(operation, body)
    assert root.topology()


@pytest.mark.parametrize(
    "operation, arguments",
    [
        (Operation.REMOVE_DEVICE, {"timeout": 1}),
        (Operation.BIND_DRIVER, {"driver": "e1000"}),
        (Operation.UNBIND_DRIVER, {"driver": "e1000"}),
    ],
)
def test_a_device_that_does_not_exist_is_refused(
    root: vfiod.Root, operation: int, arguments: dict[str, object]
) -> None:
    with refused(errno.ENODEV):
        administer(root, operation, name="0000:99:00.0", **arguments)


def test_only_the_administrator_may(server: Server) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    os.chmod(server.directory, 0o755)
    for path in [*server.directory.parents][:3]:
        os.chmod(path, os.stat(path).st_mode | 0o011)
    os.chmod(server.root_socket, 0o777)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        answers = []
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            with server.connect() as root:
                for operation in range(0x4010, 0x4014):
                    try:
                        administer(root, operation, name=STUB, driver="pci-stub", timeout=1)
                        answers.append(0)
                    except vfiod.VFIOError as error:
                        answers.append(error.errno or 0)
        finally:
            os.write(writing, bytes(answers))
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answers = list(pipe.read())
    os.waitpid(pid, 0)
    assert len(answers) == 4
    assert all(answer in (errno.EPERM, errno.EACCES) for answer in answers)


def test_a_quarantined_group_lives_again_once_it_was_closed(root: vfiod.Root) -> None:
    unbind_foreign(root)
    with attach(root, SECOND_EDU):
        bind(root, FOREIGN, "e1000", force=True)
    unbind_foreign(root)
    with attach(root, SECOND_EDU) as (container, group), group.open_device(SECOND_EDU) as device:
        bus_master(device)
        with container.map_dma(IOVA, PAGE) as memory:
            memory[0:4] = b"data"
            edu_load(device, IOVA, 4)
            edu_store(device, IOVA + 8, 4)
            assert memory[8:12] == b"data"
