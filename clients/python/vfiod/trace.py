"""A live log of a device's messages."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from . import wire
from .connection import unpack
from .errors import Disconnected
from .handle import Handle
from .wire import Operation


class TraceEvent(enum.IntEnum):
    """What a record tells."""

    RECEIVED = 0
    """The server has received a message."""
    SENT = 1
    """The server has sent a message."""
    CLOSED = 2
    """The connection has closed."""
    LOST = 3
    """Messages came faster than they were read: `count` of them are missing here."""


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """What was seen, and when: nanoseconds since 1970 (UTC)."""

    time: int
    connection: int
    event: TraceEvent
    count: int
    """Descriptors that came with the message; or how many messages were lost."""
    header: wire.Header | None
    """The message's; None when there is none."""
    payload: bytes
    """The message's, at most its first 256 bytes."""


class Trace(Handle):
    """Iterates over what is seen of a device, as it comes; ends when the device is removed.

    The device waits for nobody: who reads too slowly loses messages, and is told how many.
    """

    def __iter__(self) -> Iterator[TraceRecord]:
        while True:
            try:
                yield self.next()
            except Disconnected:
                return

    def next(self) -> TraceRecord:
        """Waits for a record; `Disconnected` when the trace has ended."""
        while True:
            message = self.connection.receive()
            message.close()
            if message.header.command == Operation.TRACE_RECORD:
                break
        time, connection, event, count = unpack(wire.TRACE_RECORD, message.payload)
        seen = message.payload[wire.TRACE_RECORD.size :]
        header = wire.Header(*unpack(wire.HEADER, seen)) if seen else None
        return TraceRecord(
            time, connection, TraceEvent(event), count, header, seen[wire.HEADER.size :]
        )
