"""One region of a device: loads and stores by message, and the parts that may be mapped."""

import errno
import mmap
import os
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from . import wire
from .connection import Descriptor, Message, Pending, unpack
from .errors import VFIOError
from .irq import EventFD
from .wire import Command, RegionFlags

if TYPE_CHECKING:
    from .device import Device


@dataclass(frozen=True)
class RegionInfo:
    """`struct vfio_region_info`, its capabilities, and the descriptor to map, if there is one."""

    index: int
    flags: RegionFlags
    size: int
    offset: int
    """Where the region begins in the descriptor."""
    areas: tuple[tuple[int, int], ...]
    """Offset and size of each part that may be mapped."""
    descriptor: Descriptor | None

    def close(self) -> None:
        if self.descriptor is not None:
            self.descriptor.close()


@dataclass(frozen=True)
class Doorbell:
    """A write for which an eventfd stands: signalling it rings without a message."""

    offset: int
    size: int
    """Bytes of the write; 0 for any."""
    value: int | None
    """What is written; None for anything."""
    event: EventFD

    def ring(self) -> None:
        self.event.signal()

    def close(self) -> None:
        self.event.close()


class Region:
    """One region of a device, reached by messages; `map` gives the parts that may be mapped."""

    def __init__(self, device: "Device", index: int) -> None:
        self.device = device
        self.index = index

    def read(self, offset: int, count: int) -> bytes:
        """REGION_READ; longer reads go in several messages."""
        limit = self.device.max_data_xfer_size
        starts = range(0, count, limit) if count else (0,)
        return b"".join(self.submit_read(offset + at, min(limit, count - at)).result() for at in starts)

    def write(self, offset: int, data: bytes) -> None:
        """REGION_WRITE; longer writes go in several messages."""
        limit = self.device.max_data_xfer_size
        for at in range(0, len(data), limit) if data else (0,):
            self.submit_write(offset + at, data[at : at + limit]).result()

    def submit_read(self, offset: int, count: int) -> Pending[bytes]:
        """Sends a read and returns at once."""
        request = wire.REGION_ACCESS.pack(offset, self.index, count)

        def decode(reply: Message) -> bytes:
            reply.close()
            return reply.payload[wire.REGION_ACCESS.size :]

        return self.device.connection.submit(Command.REGION_READ, request, (), decode)

    def submit_write(self, offset: int, data: bytes) -> Pending[int]:
        """Sends a write and returns at once; its result is the number of bytes written."""
        request = wire.REGION_ACCESS.pack(offset, self.index, len(data)) + data

        def decode(reply: Message) -> int:
            reply.close()
            return wire.RegionAccess(*unpack(wire.REGION_ACCESS, reply.payload)).count

        return self.device.connection.submit(Command.REGION_WRITE, request, (), decode)

    def post_write(self, offset: int, data: bytes) -> None:
        """A posted write: no reply, not even an error. What is asked afterwards finds it done."""
        request = wire.REGION_ACCESS.pack(offset, self.index, len(data)) + data
        self.device.connection.post(Command.REGION_WRITE, request)

    def read8(self, offset: int) -> int:
        return self.read(offset, 1)[0]

    def read16(self, offset: int) -> int:
        return int.from_bytes(self.read(offset, 2), "little")

    def read32(self, offset: int) -> int:
        return int.from_bytes(self.read(offset, 4), "little")

    def read64(self, offset: int) -> int:
        return int.from_bytes(self.read(offset, 8), "little")

    def write8(self, offset: int, value: int) -> None:
        self.write(offset, struct.pack("<B", value))

    def write16(self, offset: int, value: int) -> None:
        self.write(offset, struct.pack("<H", value))

    def write32(self, offset: int, value: int) -> None:
        self.write(offset, struct.pack("<I", value))

    def write64(self, offset: int, value: int) -> None:
        self.write(offset, struct.pack("<Q", value))

    def doorbells(self) -> list[Doorbell]:
        """DEVICE_GET_REGION_IO_FDS: what may be rung by an eventfd, which the caller closes; asked again
        when there is more than the first answer held. They ring until the device is closed."""
        size = wire.REGION_IO_FDS.size
        while True:
            request = wire.REGION_IO_FDS.pack(size, 0, self.index, 0)
            reply = self.device.connection.request(Command.DEVICE_GET_REGION_IO_FDS, request)
            needed, _, _, count = unpack(wire.REGION_IO_FDS, reply.payload)
            if needed <= size:
                break
            reply.close()
            size = needed
        doorbells = []
        for number in range(count):
            at = wire.REGION_IO_FDS.size + number * wire.SUB_REGION.size
            offset, length, index, kind, flags, value = wire.SUB_REGION.unpack_from(reply.payload, at)
            if kind == wire.IO_FD_TYPE_IOEVENTFD and index < len(reply.descriptors):
                event = EventFD(Descriptor(os.dup(reply.descriptors[index].fileno())))
                matched = value if flags & wire.IOEVENTFD_DATAMATCH else None
                doorbells.append(Doorbell(offset, length, matched, event))
        reply.close()
        return doorbells

    def map(self) -> "list[MappedArea]":
        """Maps all that may be mapped; the caller closes each area. EINVAL where there is nothing."""
        info = self.device.region_info(self.index)
        try:
            if info.descriptor is None:
                raise VFIOError(errno.EINVAL, f"map region {self.index}")
            areas: list[MappedArea] = []
            try:
                for offset, size in info.areas:
                    areas.append(MappedArea(info, offset, size))
            except BaseException:
                for area in areas:
                    area.close()
                raise
            return areas
        finally:
            info.close()


class MappedArea:
    """A part of a region in this process's memory; slices count from the region's beginning."""

    def __init__(self, info: RegionInfo, offset: int, size: int) -> None:
        assert info.descriptor is not None
        protection = mmap.PROT_READ
        if info.flags & RegionFlags.WRITE:
            protection |= mmap.PROT_WRITE
        number = info.descriptor.fileno()
        self.view = mmap.mmap(number, size, mmap.MAP_SHARED, protection, offset=info.offset + offset)
        self.offset = offset
        self.size = size

    def _place(self, place: slice) -> slice:
        start = self.offset if place.start is None else place.start
        stop = self.offset + self.size if place.stop is None else place.stop
        if not self.offset <= start <= stop <= self.offset + self.size:
            raise IndexError(f"{start:#x}..<{stop:#x} is outside the mapped area")
        return slice(start - self.offset, stop - self.offset)

    def __getitem__(self, place: slice) -> bytes:
        return self.view[self._place(place)]

    def __setitem__(self, place: slice, data: bytes) -> None:
        self.view[self._place(place)] = data

    def close(self) -> None:
        self.view.close()

    def __enter__(self) -> "MappedArea":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
