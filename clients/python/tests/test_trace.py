"""A live log of a device's messages, and the description of a device that is in use."""

import errno

import pytest
import vfiod
from support import (
    EDU,
    IOVA,
    PAGE,
    SCRATCH,
    STUB,
    Server,
    attach,
    bus_master,
    edu_load,
    refused,
)
from vfiod.trace import TraceEvent, TraceRecord
from vfiod.wire import Command


def test_a_trace_shows_requests_and_replies_and_the_end_of_a_connection(
    server: Server, root: vfiod.Root
) -> None:
    with root.trace(EDU) as trace:
        with server.device(EDU) as device:
            assert device.region(0).read32(0) == 0x010000ED
        records = [trace.next() for _ in range(5)]
    events = [TraceEvent.RECEIVED, TraceEvent.SENT] * 2 + [TraceEvent.CLOSED]
    assert [record.event for record in records] == events
    headers = [record.header for record in records if record.header]
    assert [header.command for header in headers] == [Command.VERSION] * 2 + [Command.REGION_READ] * 2
    assert records[3].payload[16:] == (0x010000ED).to_bytes(4, "little")
    assert len({record.connection for record in records}) == 1
    assert sorted(record.time for record in records) == [record.time for record in records]


def test_a_trace_ends_when_the_device_is_removed(server: Server, root: vfiod.Root) -> None:
    with root.trace(SCRATCH) as trace:
        root.remove_device(SCRATCH)
        assert list(trace) == []
        with refused(errno.ENODEV):
            root.trace(SCRATCH)


def test_a_trace_that_is_closed_leaves_nothing_in_the_server(server: Server, root: vfiod.Root) -> None:
    for _ in range(100):
        root.trace(SCRATCH).close()
    # Beyond the limit of traces, and the server fixture looks for descriptors that are left.


def test_a_server_stops_with_a_trace_that_nobody_reads(vfiod_server: Server) -> None:
    with vfiod_server.connect() as root, root.trace(SCRATCH), vfiod_server.device(SCRATCH) as device:
        for _ in range(5000):
            device.region(0).read(0, 1024)
        vfiod_server.stop()


def test_a_device_is_described_while_it_is_in_use(root: vfiod.Root) -> None:
    with attach(root, SCRATCH) as (_, group), group.open_device(SCRATCH) as device:
        device.region(0).write32(0, 0x12345678)
        description = root.device(SCRATCH)
        assert bytes.fromhex(description["config"]) == device.config.read(0, 256)
        assert [region["index"] for region in description["regions"]] == [0, 2, 4, 7]
        assert description["regions"][1]["mappable"] == [[0x1000, 0x200000]]
        assert {"index": 2, "count": 8} == {
            name: description["interrupts"][1][name] for name in ("index", "count")
        }
        assert device.region(0).read32(0) == 0x12345678


@pytest.mark.parametrize("name", ["0000:99:00.0", STUB])
def test_a_device_that_vfio_does_not_drive_has_no_description(root: vfiod.Root, name: str) -> None:
    with refused(errno.ENODEV):
        root.device(name)


def test_a_trace_shows_what_the_server_asks_of_its_client(server: Server, root: vfiod.Root) -> None:
    with root.trace(EDU) as trace, server.device(EDU) as device:
        bus_master(device)
        device.map_dma_by_message(IOVA, bytearray(b"hello").ljust(PAGE))
        edu_load(device, IOVA, 5)
        dma: list[TraceRecord] = []
        while len(dma) < 2:
            record = trace.next()
            if record.header is not None and record.header.command == Command.DMA_READ:
                dma.append(record)
    request, reply = dma
    assert (request.event, reply.event) == (TraceEvent.SENT, TraceEvent.RECEIVED)
    assert request.connection == reply.connection
    assert request.payload == IOVA.to_bytes(8, "little") + (5).to_bytes(8, "little")
    assert reply.payload == request.payload + b"hello"
