"""What the administrator does: drivers bound and unbound, devices removed, live groups protected."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support import (
    FOREIGN,
    IOVA,
    PAGE,
    SCRATCH,
    SECOND_EDU,
    STUB,
    TIMEOUT,
    Server,
    attach,
    bus_master,
    edu_load,
    edu_store,
    in_child,
    let_others_in,
    refused,
    unbind_foreign,
)

import vfiod
from vfiod.wire import IRQ, Operation

NEW = "0000:0a:00.0"
Call = Callable[[vfiod.Root], None]


# Drivers


def test_a_foreign_driver_bound_to_an_idle_group_takes_its_viability(root: vfiod.Root) -> None:
    unbind_foreign(root)
    with root.open_group(28) as group:
        assert group.status() & vfiod.GroupStatus.VIABLE
    root.bind_driver(FOREIGN, "e1000")
    with root.open_group(28) as group:
        assert not group.status() & vfiod.GroupStatus.VIABLE


def test_a_foreign_driver_is_not_bound_in_a_live_group(root: vfiod.Root) -> None:
    unbind_foreign(root)
    with attach(root, SECOND_EDU) as (_, group), group.open_device(SECOND_EDU) as device:
        with refused(errno.EBUSY):
            root.bind_driver(FOREIGN, "e1000")
        assert group.status() & vfiod.GroupStatus.VIABLE
        assert device.region(0).read32(0) == 0x010000ED
    root.bind_driver(FOREIGN, "e1000")


def test_a_whitelisted_driver_may_be_bound_in_a_live_group(root: vfiod.Root) -> None:
    unbind_foreign(root)
    with attach(root, SECOND_EDU) as (_, group):
        root.bind_driver(FOREIGN, "pci-stub")
        assert group.status() & vfiod.GroupStatus.VIABLE


def test_a_foreign_driver_forced_into_a_live_group_quarantines_it(server: Server, root: vfiod.Root) -> None:
    unbind_foreign(root)
    with attach(root, SECOND_EDU) as (container, group), group.open_device(SECOND_EDU) as device:
        bus_master(device)
        with container.map_dma(IOVA, PAGE) as memory:
            memory[0:4] = b"data"
            edu_load(device, IOVA, 4)
            root.bind_driver(FOREIGN, "e1000", force=True)
            memory[0:4] = b"keep"
            edu_store(device, IOVA, 4)
            assert memory[0:4] == b"keep"
        assert not group.status() & vfiod.GroupStatus.VIABLE
        with refused(errno.EINVAL):
            group.open_device(SECOND_EDU)
    server.check_alive()


def test_an_unbound_device_is_bound_to_its_vfio_driver_again(server: Server, root: vfiod.Root) -> None:
    root.unbind_driver(SCRATCH, "vfio-pci")
    with refused(errno.ENODEV):
        root.open_group(27)
    assert not server.device_socket(SCRATCH).exists()
    root.bind_driver(SCRATCH, "vfio-pci")
    root.open_group(27).close()
    with server.device(SCRATCH) as device:
        assert device.config.read16(0) == 0x1234


# Devices that come


def test_an_added_device_brings_its_group_and_socket(server: Server, root: vfiod.Root) -> None:
    root.add_device(30, {"address": NEW, "model": "edu", "options": {"dma_mask": "0xffff"}})
    with server.device(NEW) as device:
        assert device.region(0).read32(0) == 0x010000ED
    with root.open_group(30) as group:
        assert group.status() == vfiod.GroupStatus.VIABLE


def test_an_added_device_may_join_a_group_and_have_its_socket_elsewhere(
    root: vfiod.Root, tmp_path: Path
) -> None:
    path = tmp_path / "edu.sock"
    root.add_device(27, {"address": NEW, "model": "edu", "socket": str(path)})
    with vfiod.Device.connect(path, TIMEOUT) as device:
        assert device.region(0).read32(0) == 0x010000ED
        with refused(errno.EBUSY):
            root.open_group(27)


def test_a_device_is_not_added_at_an_address_that_is_taken(root: vfiod.Root) -> None:
    with refused(errno.EBUSY):
        root.add_device(30, {"address": SCRATCH, "model": "edu"})
    with refused(errno.ENODEV):
        root.open_group(30)


@pytest.mark.parametrize(
    "device",
    [
        {},
        {"address": "06:0d.0", "model": "edu"},
        {"address": NEW, "model": "no such model"},
        {"address": NEW, "driver": "vfio-pci"},
        {"address": NEW, "model": "edu", "options": {"no such option": 1}},
        {"address": NEW, "model": "edu", "socket": "/no such directory/edu.sock"},
        {"address": NEW, "model": "edu", "no such field": 1},
    ],
)
def test_a_device_that_cannot_be_is_not_added(root: vfiod.Root, device: dict[str, object]) -> None:
    with refused(errno.EINVAL):
        root.add_device(30, device)
    assert NEW not in str(root.topology())


def test_an_added_device_is_removed_and_added_again(server: Server, root: vfiod.Root) -> None:
    for _ in range(3):
        root.add_device(30, {"address": NEW, "model": "scratch"})
        server.device(NEW).close()
        root.remove_device(NEW)
        assert not server.device_socket(NEW).exists()


# Removal


def test_a_removed_device_takes_its_group_and_socket_along(server: Server, root: vfiod.Root) -> None:
    root.remove_device(SCRATCH, timeout=1)
    with refused(errno.ENODEV):
        root.open_group(27)
    assert not server.device_socket(SCRATCH).exists()


def test_removing_an_open_device_times_out_and_leaves_it_as_it_was(root: vfiod.Root) -> None:
    with attach(root, SCRATCH) as (_, group), group.open_device(SCRATCH) as device:
        with refused(errno.ETIMEDOUT):
            root.remove_device(SCRATCH, timeout=1)
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


def test_a_removal_without_a_limit_ends_when_the_user_lets_go(server: Server) -> None:
    with vfiod.connect(server.directory) as root, attach(root, SCRATCH) as (_, group):
        device = group.open_device(SCRATCH)
        with vfiod.EventFD() as request:
            device.set_triggers(IRQ.REQ, [request])

            def let_go() -> None:
                request.wait(TIMEOUT)
                device.close()

            thread = threading.Thread(target=let_go)
            thread.start()
            root.remove_device(SCRATCH, timeout=20)
            thread.join()
    assert not server.device_socket(SCRATCH).exists()


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
    "call",
    [
        pytest.param(lambda root: root.remove_device("0000:99:00.0"), id="remove"),
        pytest.param(lambda root: root.bind_driver("0000:99:00.0", "e1000"), id="bind"),
        pytest.param(lambda root: root.unbind_driver("0000:99:00.0"), id="unbind"),
    ],
)
def test_a_device_that_does_not_exist_is_refused(root: vfiod.Root, call: Call) -> None:
    with refused(errno.ENODEV):
        call(root)


def test_a_driver_is_not_bound_to_a_device_that_has_one(root: vfiod.Root) -> None:
    with refused(errno.EBUSY):
        root.bind_driver(STUB, "e1000")


def test_a_vfio_driver_is_not_bound_to_a_device_without_a_model(root: vfiod.Root) -> None:
    root.unbind_driver(STUB)
    with refused(errno.EINVAL):
        root.bind_driver(STUB, "vfio-pci")


def test_only_the_driver_that_was_named_is_unbound(root: vfiod.Root) -> None:
    with refused(errno.EINVAL):
        root.unbind_driver(STUB, "e1000")
    root.unbind_driver(STUB, "pci-stub")
    with refused(errno.ENODEV):
        root.unbind_driver(STUB)


@pytest.mark.vfiod
def test_only_the_administrator_may(server: Server) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    let_others_in(server)

    def work() -> list[int | None]:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        answers = []
        with server.connect() as root:
            calls: list[Call] = [
                lambda root: root.add_device(30, {"address": NEW, "model": "edu"}),
                lambda root: root.remove_device(STUB),
                lambda root: root.bind_driver(STUB, "vfio-pci"),
                lambda root: root.unbind_driver(STUB),
                lambda root: root.trace(SCRATCH).close(),
                lambda root: root.device(SCRATCH),
            ]
            for call in calls:
                with pytest.raises(vfiod.VFIOError) as caught:
                    call(root)
                answers.append(caught.value.errno)
        return answers

    assert in_child(work) == (0, [errno.EPERM] * 6)


def test_a_quarantined_group_lives_again_once_it_was_closed(root: vfiod.Root) -> None:
    unbind_foreign(root)
    with attach(root, SECOND_EDU):
        root.bind_driver(FOREIGN, "e1000", force=True)
    unbind_foreign(root)
    with attach(root, SECOND_EDU) as (container, group), group.open_device(SECOND_EDU) as device:
        bus_master(device)
        with container.map_dma(IOVA, PAGE) as memory:
            memory[0:4] = b"data"
            edu_load(device, IOVA, 4)
            edu_store(device, IOVA + 8, 4)
            assert memory[8:12] == b"data"
