"""A device: information, registers, interrupts, DMA. It speaks vfio-user, and nothing else."""

import errno
import os
from collections.abc import Iterable, Sequence

from . import wire
from .connection import Connection, HasFileno, Message, negotiate, unpack
from .handle import Handle
from .irq import EventFD
from .memory import DMAMemory, Memory
from .region import Region, RegionInfo
from .wire import (
    Command,
    DeviceInfo,
    DMAFlags,
    Feature,
    FeatureFlags,
    IRQInfo,
    IRQSet,
    MigrationState,
    RegionFlags,
)

CONFIG = 7
"""Index of a PCI device's configuration space (`VFIO_PCI_CONFIG_REGION_INDEX`)."""

COMMAND_REGISTER = 0x04
COMMAND_MEMORY = 1 << 1
COMMAND_BUS_MASTER = 1 << 2


class Device(Handle):
    """A device descriptor from a group, or a connection to `devices/NAME.sock`."""

    def __init__(self, connection: Connection, version: wire.Version) -> None:
        super().__init__(connection)
        self.version = version
        limit = version.capabilities.get("max_data_xfer_size", wire.DEFAULT_MAX_DATA_XFER_SIZE)
        self.max_data_xfer_size = min(int(limit), wire.DEFAULT_MAX_DATA_XFER_SIZE)
        self._messages: dict[int, tuple[bytearray, DMAFlags]] = {}
        connection.on_command = self._serve

    @classmethod
    def connect(cls, path: str | os.PathLike[str], timeout: float | None = None) -> "Device":
        """Connects to a device's own socket, which does the whole way by itself.

        EBUSY while the device, or its group, is in use elsewhere.
        """
        return cls.start(Connection.open(path, timeout))

    @classmethod
    def start(cls, connection: Connection) -> "Device":
        """Takes over a connection and negotiates VERSION."""
        try:
            return cls(connection, negotiate(connection))
        except BaseException:
            connection.close()
            raise

    # Information

    def info(self) -> DeviceInfo:
        """DEVICE_GET_INFO."""
        request = wire.DEVICE_INFO.pack(wire.DEVICE_INFO.size, 0, 0, 0)
        reply = self.connection.call(Command.DEVICE_GET_INFO, request)
        return DeviceInfo(*unpack(wire.DEVICE_INFO, reply))

    def region_info(self, index: int) -> RegionInfo:
        """DEVICE_GET_REGION_INFO, asked again when there is more than the first answer held.

        The caller closes what it returns.
        """
        size = wire.REGION_INFO.size
        while True:
            request = wire.REGION_INFO.pack(size, 0, index, 0, 0, 0)
            reply = self.connection.request(Command.DEVICE_GET_REGION_INFO, request)
            info = wire.RawRegionInfo(*unpack(wire.REGION_INFO, reply.payload))
            if info.argsz <= size:
                break
            reply.close()
            size = info.argsz
        flags = RegionFlags(info.flags)
        areas: tuple[tuple[int, int], ...] = ((0, info.size),) if flags & RegionFlags.MMAP else ()
        first = info.cap_offset if flags & RegionFlags.CAPS else 0
        for capability in wire.capabilities(reply.payload, first):
            if capability.id == wire.REGION_CAP_SPARSE_MMAP:
                areas = wire.sparse_areas(capability.data)
        descriptor = reply.take("DEVICE_GET_REGION_INFO") if flags & RegionFlags.MMAP else None
        reply.close()
        return RegionInfo(index, flags, info.size, info.offset, areas, descriptor)

    def irq_info(self, index: int) -> IRQInfo:
        """DEVICE_GET_IRQ_INFO."""
        request = wire.IRQ_INFO.pack(wire.IRQ_INFO.size, 0, index, 0)
        reply = self.connection.call(Command.DEVICE_GET_IRQ_INFO, request)
        return IRQInfo(*unpack(wire.IRQ_INFO, reply))

    def region(self, index: int) -> "Region":
        """The region with this index: 0–5 are BARs, 6 the ROM, 7 configuration space."""
        return Region(self, index)

    @property
    def config(self) -> "Region":
        """PCI configuration space."""
        return Region(self, CONFIG)

    def enable_bus_master(self) -> None:
        """Lets the device do DMA, which starts disabled."""
        self.config.write16(
            COMMAND_REGISTER, self.config.read16(COMMAND_REGISTER) | COMMAND_BUS_MASTER
        )

    def reset(self) -> None:
        """DEVICE_RESET. Keeps the COMMAND register, as the kernel does."""
        self.connection.call(Command.DEVICE_RESET)

    def write_multi(self, writes: Iterable[tuple[int, int, bytes]]) -> int:
        """REGION_WRITE_MULTI: several (region, offset, up to 8 bytes) in one message; returns how
        many were done."""
        entries = [
            wire.REGION_WRITE_MULTI.pack(offset, region, len(data), data)
            for region, offset, data in writes
        ]
        request = wire.U64.pack(len(entries)) + b"".join(entries)
        (done,) = unpack(wire.U64, self.connection.call(Command.REGION_WRITE_MULTI, request))
        return int(done)

    # Interrupts

    def set_irqs(
        self,
        index: int,
        flags: int,
        start: int,
        count: int,
        data: bytes = b"",
        descriptors: Sequence[int | HasFileno] = (),
    ) -> None:
        """DEVICE_SET_IRQS with any data and action."""
        size = wire.IRQ_SET.size + len(data)
        request = wire.IRQ_SET.pack(size, flags, index, start, count) + data
        self.connection.call(Command.DEVICE_SET_IRQS, request, descriptors)

    def set_triggers(self, index: int, eventfds: Sequence[int | HasFileno], start: int = 0) -> None:
        """From now on interrupts `start`, `start` + 1, … signal these eventfds."""
        flags = IRQSet.DATA_EVENTFD | IRQSet.TRIGGER
        self.set_irqs(index, flags, start, len(eventfds), descriptors=eventfds)

    def disable_irqs(self, index: int) -> None:
        """Takes all triggers of this kind of interrupt away."""
        self.set_irqs(index, IRQSet.DATA_NONE | IRQSet.TRIGGER, 0, 0)

    def trigger_irqs(self, index: int, start: int = 0, count: int = 1) -> None:
        """Raises interrupts as if the device had."""
        self.set_irqs(index, IRQSet.DATA_NONE | IRQSet.TRIGGER, start, count)

    def mask_irqs(self, index: int, start: int = 0, count: int = 1) -> None:
        self.set_irqs(index, IRQSet.DATA_NONE | IRQSet.MASK, start, count)

    def unmask_irqs(self, index: int, start: int = 0, count: int = 1) -> None:
        """Lets an interrupt come again; INTx masks itself each time it was signalled."""
        self.set_irqs(index, IRQSet.DATA_NONE | IRQSet.UNMASK, start, count)

    # Features and migration

    def feature(self, flags: int, data: bytes = b"", room: int = 0) -> bytes:
        """DEVICE_FEATURE: flags are a feature and what to do with it. Returns the reply's data, for
        which there is as much room as the request has, and `room` bytes."""
        size = wire.FEATURE.size + len(data) + room
        reply = self.connection.call(Command.DEVICE_FEATURE, wire.FEATURE.pack(size, flags) + data)
        unpack(wire.FEATURE, reply)
        return reply[wire.FEATURE.size :]

    @property
    def migration_state(self) -> MigrationState:
        """VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE. Setting it returns when the device has arrived."""
        data = self.feature(Feature.MIG_DEVICE_STATE | FeatureFlags.GET, room=8)
        return MigrationState(unpack(wire.MIGRATION_STATE, data)[0])

    @migration_state.setter
    def migration_state(self, state: MigrationState) -> None:
        data = wire.MIGRATION_STATE.pack(state, 0xFFFF_FFFF)
        self.feature(Feature.MIG_DEVICE_STATE | FeatureFlags.SET, data)

    def read_migration_data(self, size: int = 1 << 16) -> bytes:
        """MIG_DATA_READ. Fewer bytes than asked for: there are no more for now, in STOP_COPY for ever."""
        request = wire.MIGRATION_DATA.pack(wire.MIGRATION_DATA.size + size, size)
        reply = self.connection.call(Command.MIG_DATA_READ, request)
        _, count = unpack(wire.MIGRATION_DATA, reply)
        return reply[wire.MIGRATION_DATA.size :][:count]

    def write_migration_data(self, data: bytes) -> None:
        """MIG_DATA_WRITE."""
        request = wire.MIGRATION_DATA.pack(wire.MIGRATION_DATA.size + len(data), len(data))
        self.connection.call(Command.MIG_DATA_WRITE, request + data)

    def start_dma_log(self, page_size: int = 4096, ranges: Sequence[tuple[int, int]] = ()) -> int:
        """VFIO_DEVICE_FEATURE_DMA_LOGGING_START of these addresses and lengths, or of all. Returns the
        page size that the server has chosen."""
        data = wire.LOGGING_CONTROL.pack(page_size, len(ranges), 0)
        data += b"".join(wire.LOGGING_RANGE.pack(*each) for each in ranges)
        reply = self.feature(Feature.DMA_LOGGING_START | FeatureFlags.SET, data)
        return int(unpack(wire.LOGGING_CONTROL, reply)[0])

    def stop_dma_log(self) -> None:
        """VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP."""
        self.feature(Feature.DMA_LOGGING_STOP | FeatureFlags.SET)

    def dma_log(self, iova: int, length: int, page_size: int = 4096) -> set[int]:
        """VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: the pages, counted from `iova`, that the device has
        written since the last report."""
        request = wire.LOGGING_REPORT.pack(iova, length, page_size)
        room = (length // max(page_size, 1) + 64) // 64 * 8
        reply = self.feature(Feature.DMA_LOGGING_REPORT | FeatureFlags.GET, request, room)
        bits = int.from_bytes(reply[wire.LOGGING_REPORT.size :], "little")
        return {page for page in range(bits.bit_length()) if bits >> page & 1}

    # DMA, on a device's own socket

    def map_dma(
        self,
        iova: int,
        size: int,
        flags: DMAFlags = DMAFlags.READ | DMAFlags.WRITE,
        memory: Memory | None = None,
        offset: int = 0,
    ) -> DMAMemory:
        """DMA_MAP of shared memory: `memory` from `offset` on, or new memory of its own. EEXIST over
        another mapping."""
        backing = Memory(size) if memory is None else memory
        try:
            self._map(iova, size, flags, offset, [backing])
        except BaseException:
            if memory is None:
                backing.close()
            raise

        def unmap() -> None:
            if not self.closed:
                self.unmap_dma(iova, size)

        return DMAMemory(backing, memory is None, offset, iova, size, unmap)

    def map_dma_by_message(
        self, iova: int, memory: bytearray, flags: DMAFlags = DMAFlags.READ | DMAFlags.WRITE
    ) -> None:
        """DMA_MAP without a descriptor: the server sends DMA_READ and DMA_WRITE, which are answered
        from `memory` whenever the client waits for a reply, or in `wait`."""
        self._map(iova, len(memory), flags, 0, [])
        self._messages[iova] = (memory, flags)

    def unmap_dma(self, iova: int, size: int) -> None:
        """DMA_UNMAP. ENOENT unless address and size are exactly those of a map made on this socket."""
        request = wire.USER_DMA_UNMAP.pack(wire.USER_DMA_UNMAP.size, 0, iova, size)
        self.connection.call(Command.DMA_UNMAP, request)
        self._messages.pop(iova, None)

    def wait(self, event: EventFD, timeout: float | None = None) -> int:
        """As `event.wait`, and answers the server meanwhile: what a client does that waits for the
        interrupt at the end of a DMA by message."""
        self.connection.serve(event, timeout)
        return event.count()

    def _map(
        self, iova: int, size: int, flags: DMAFlags, offset: int, memory: Sequence[Memory]
    ) -> None:
        request = wire.USER_DMA_MAP.pack(wire.USER_DMA_MAP.size, flags, offset, iova, size)
        self.connection.call(Command.DMA_MAP, request, memory)

    def _serve(self, message: Message) -> None:
        """Answers DMA_READ and DMA_WRITE; anything else gets ENOTSUP, an address of nobody's EFAULT."""
        message.close()
        needed: dict[int, DMAFlags] = {Command.DMA_READ: DMAFlags.READ, Command.DMA_WRITE: DMAFlags.WRITE}
        access = needed.get(message.header.command)
        if access is None:
            return self.connection.reply(message, error=errno.EOPNOTSUPP)
        address, count = unpack(wire.DMA_ACCESS, message.payload)
        data = message.payload[wire.DMA_ACCESS.size :]
        if access is DMAFlags.WRITE and len(data) != count:
            return self.connection.reply(message, error=errno.EINVAL)
        for iova, (memory, flags) in self._messages.items():
            start = address - iova
            if access in flags and 0 <= start and start + count <= len(memory):
                break
        else:
            return self.connection.reply(message, error=errno.EFAULT)
        answer = wire.DMA_ACCESS.pack(address, count)
        if access is DMAFlags.READ:
            answer += memory[start : start + count]
        else:
            memory[start : start + count] = data
        self.connection.reply(message, answer)
