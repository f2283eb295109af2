"""Container, group, device and external user close in any order, from any process."""

import errno
import os
import signal
import socket
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import pytest
from support import (
    EDU,
    IOVA,
    PAGE,
    SCRATCH,
    TIMEOUT,
    Holder,
    Server,
    attach,
    bus_master,
    edu_load,
    edu_store,
    in_child,
    refused,
)

import vfiod

KINDS = ("container", "group", "device", "token")
ORDERS = list(permutations(KINDS))
NAMES = [" then ".join(order) for order in ORDERS]


def open_all(root: vfiod.Root) -> dict[str, Any]:
    """One of each kind, on the way to edu, with memory mapped."""
    container, group = root.open_container(), root.open_group(26)
    group.set_container(container)
    container.set_iommu(vfiod.IOMMUType.TYPE1v2)
    container.map_dma(IOVA, PAGE).memory.close()
    device = group.open_device(EDU)
    return {
        "container": container,
        "group": group,
        "device": device,
        "token": root.external_user(group),
    }


def go_the_whole_way(root: vfiod.Root) -> None:
    with attach(root, EDU) as (container, group), group.open_device(EDU) as device:
        bus_master(device)
        with container.map_dma(IOVA, PAGE) as memory:
            memory[0:4] = b"data"
            edu_load(device, IOVA, 4)
            edu_store(device, IOVA + 8, 4)
            assert memory[8:12] == b"data"


@pytest.mark.parametrize("order", ORDERS, ids=NAMES)
def test_they_close_in_any_order(root: vfiod.Root, order: tuple[str, ...]) -> None:
    handles = open_all(root)
    for kind in order:
        handles[kind].close()
    go_the_whole_way(root)


@pytest.mark.parametrize("order", ORDERS, ids=NAMES)
def test_the_group_is_busy_until_all_but_the_container_are_closed(
    root: vfiod.Root, order: tuple[str, ...]
) -> None:
    handles = open_all(root)
    left = set(order)
    for kind in order:
        if left - {"container"}:
            with refused(errno.EBUSY):
                root.open_group(26)
        handles[kind].close()
        left.remove(kind)
    root.open_group(26).close()


@pytest.mark.parametrize("order", ORDERS, ids=NAMES)
def test_four_processes_that_hold_one_each_are_killed_in_any_order(
    root: vfiod.Root, order: tuple[str, ...]
) -> None:
    holders = {kind: Holder() for kind in KINDS}
    try:
        handles = open_all(root)
        for kind, holder in holders.items():
            holder.give(handles[kind])
        with refused(errno.EBUSY):
            root.open_group(26)
    finally:
        for kind in order:
            holders[kind].kill()
    go_the_whole_way(root)


def test_a_client_that_is_killed_leaves_nothing_behind(server: Server, root: vfiod.Root) -> None:
    for _ in range(10):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            with server.connect() as own_root:
                handles = open_all(own_root)
                theirs.send(b"r")
                signal.pause()
                del handles
        theirs.close()
        with ours:
            assert ours.recv(1) == b"r"
            with refused(errno.EBUSY):
                root.open_group(26)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            root.open_group(26).close()


def test_the_last_copy_of_a_descriptor_closes_the_object(root: vfiod.Root) -> None:
    group = root.open_group(26)
    copy = vfiod.Descriptor(os.dup(group.fileno()))
    group.close()
    with refused(errno.EBUSY):
        root.open_group(26)
    copy.close()
    root.open_group(26).close()


def test_a_copy_in_another_process_keeps_the_group_open(root: vfiod.Root) -> None:
    holder = Holder()
    holder.give(root.open_group(26))
    with refused(errno.EBUSY):
        root.open_group(26)
    holder.kill()
    root.open_group(26).close()


def test_a_group_handed_to_another_process_works_there(server: Server, root: vfiod.Root) -> None:
    with attach(root, SCRATCH) as (_, group), group.open_device(SCRATCH) as device:
        device.region(0).write32(0x200, 0xCAFE)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            socket.send_fds(ours, [b"g"], [group.fileno()])

            def work() -> int:
                _, numbers, _, _ = socket.recv_fds(theirs, 1, 1)
                with vfiod.Group.adopt(numbers[0], TIMEOUT) as handed:
                    with handed.open_device(SCRATCH) as same:
                        return same.region(0).read32(0x200)

            result = in_child(work)
            assert result == (0, 0xCAFE)
    root.open_group(27).close()


def test_a_container_handed_to_another_process_works_there(root: vfiod.Root) -> None:
    with attach(root, EDU) as (container, _):

        def work() -> int:
            with vfiod.Container.adopt(os.dup(container.fileno()), TIMEOUT) as handed:
                handed.map_dma(IOVA, PAGE).memory.close()
            return 0

        assert in_child(work).status == 0
        assert container.unmap_dma(IOVA, PAGE) == PAGE


def test_the_memory_of_a_closed_mapping_stays_with_the_container(root: vfiod.Root) -> None:
    with attach(root, EDU) as (container, group), group.open_device(EDU) as device:
        bus_master(device)
        with vfiod.Memory(PAGE) as memory:
            container.map_dma(IOVA, PAGE, memory=memory)
            memory[0:4] = b"kept"
        edu_load(device, IOVA, 4)
        edu_store(device, IOVA + 8, 4)
        with container.map_dma(IOVA + PAGE, PAGE) as fresh:
            edu_store(device, fresh.iova, 4)
            assert fresh[0:4] == b"kept"


def test_a_device_outlives_its_container_and_group(root: vfiod.Root) -> None:
    handles = open_all(root)
    for kind in ("container", "group", "token"):
        handles[kind].close()
    with handles["device"] as device:
        assert device.region(0).read32(0) == 0x010000ED


@pytest.fixture
def busy_processes(server: Server) -> Iterator[list[int]]:
    """Processes that open and close all the way without a pause."""
    pids = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for turn in range(60):
                    with server.connect() as own_root:
                        try:
                            handles = open_all(own_root)
                        except vfiod.VFIOError as error:
                            if error.errno != errno.EBUSY:
                                raise
                            continue
                        for kind in ORDERS[(number * 60 + turn) % len(ORDERS)]:
                            handles[kind].close()
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    yield pids


def test_processes_that_race_for_a_group_never_wedge_it(
    root: vfiod.Root, busy_processes: list[int]
) -> None:
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in busy_processes]
    assert statuses == [0, 0, 0, 0]
    go_the_whole_way(root)
