"""VFIO's objects, as with /dev/vfio: a container, groups in it, and devices out of the groups.

    with vfiod.connect("/run/vfiod") as root, root.open_container() as container:
        with root.open_group(26) as group:
            group.set_container(container)
            container.set_iommu(vfiod.IOMMUType.TYPE1v2)
            with group.open_device("0000:06:0d.0") as device:
                print(device.region(0).read32(0))

Each object is a file descriptor; they close in any order, as the kernel's do.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import wire
from .connection import Connection, Descriptor, HasFileno, Message, negotiate, unpack
from .device import Device
from .handle import Handle, Self
from .memory import DMAMemory, Memory
from .trace import Trace
from .wire import S64, U32, U64, DMAFlags, GroupStatus, IOMMUInfo, Operation, TCEInfo


class IOCTLResult(NamedTuple):
    """What an ioctl returns, and the structure that it wrote back."""

    value: int
    structure: bytes


class IOCTLHandle(Handle):
    """A container or a group: an object with ioctls."""

    @classmethod
    def adopt(cls: type[Self], descriptor: Descriptor | int, timeout: float | None = None) -> Self:
        """The object behind a descriptor that was passed on, by another process for instance."""
        return cls(Connection.adopt(descriptor, timeout))

    def ioctl(
        self, number: int, payload: bytes = b"", descriptors: Sequence[int | HasFileno] = ()
    ) -> IOCTLResult:
        """Any ioctl by its number; `payload` is the structure that its pointer would point to."""
        reply = self.connection.call(number, payload, descriptors)
        (value,) = unpack(S64, reply)
        return IOCTLResult(value, reply[S64.size :])


# The root ----------------------------------------------------------------------------------------


class Root(Handle):
    """The root socket, `DIR/vfio.sock`: what /dev/vfio is to the kernel."""

    def open_container(self) -> "Container":
        """`open("/dev/vfio/vfio")`."""
        return Container(self._adopt(self.connection.request(Operation.OPEN_CONTAINER)))

    def open_group(self, id: int) -> "Group":
        """`open("/dev/vfio/ID")`. EBUSY while it is open elsewhere, ENODEV without such a group."""
        return Group(self._adopt(self.connection.request(Operation.OPEN_GROUP, U32.pack(id))))

    def topology(self) -> Any:
        """The groups and devices that the server has, as it describes them."""
        size = 4096
        while True:
            reply = self.connection.call(Operation.GET_TOPOLOGY, U32.pack(size) + U32.pack(0))
            (needed,) = unpack(U32, reply)
            if needed <= size:
                return json.loads(reply[2 * U32.size :].rstrip(b"\0"))
            size = needed

    def external_user(self, group: "int | HasFileno") -> "ExternalUser":
        """Holds a group, as KVM does: EINVAL unless it has a container with an IOMMU and is viable."""
        reply = self.connection.request(Operation.GET_EXTERNAL_USER, descriptors=[group])
        connection = self._adopt(reply)
        try:
            (id,) = unpack(U32, reply.payload)
        except BaseException:
            connection.close()
            raise
        return ExternalUser(connection, id)

    # Administration: root's, and whose the server is; EPERM for everyone else. EINVAL for what the
    # server doesn't understand.

    def add_device(self, group: int, device: Mapping[str, Any]) -> None:
        """Puts a device on the bus and binds its driver. The group appears with its first device.

        `device` is as in the server's configuration: "address", "model", "driver", "options" and
        "socket". EBUSY when the address is taken.
        """
        self._administer(Operation.ADD_DEVICE, {"group": group, "device": dict(device)})

    def remove_device(self, name: str, timeout: int = 10) -> None:
        """Takes a device off the bus. Its user is asked to let go (the interrupt REQ), and has
        `timeout` seconds: then ETIMEDOUT, and the device stays. ENODEV without such a device.

        Only this connection waits.
        """
        arguments = {"name": name, "timeout": timeout}
        self._administer(Operation.REMOVE_DEVICE, arguments, timeout)

    def bind_driver(self, name: str, driver: str, force: bool = False) -> None:
        """Binds a device's driver. EBUSY when it has one, or when its group is live and the driver
        foreign; `force` does it then too, and takes the group away from its user."""
        arguments = {"name": name, "driver": driver, "force": force}
        self._administer(Operation.BIND_DRIVER, arguments)

    def unbind_driver(self, name: str, driver: str | None = None, timeout: int = 10) -> None:
        """Takes the driver off a device; EINVAL when it has another one than `driver`, ENODEV when it
        has none. For the user of a VFIO device it is a removal: see `remove_device`."""
        arguments: dict[str, Any] = {"name": name, "timeout": timeout}
        if driver is not None:
            arguments["driver"] = driver
        self._administer(Operation.UNBIND_DRIVER, arguments, timeout)

    def trace(self, device: str) -> Trace:
        """Watches a device's messages, on all its connections. ENODEV without such a device, EMFILE
        when the server has as many traces as it may."""
        return Trace(self._adopt(self.connection.request(Operation.TRACE, device.encode() + b"\0")))

    def device(self, name: str) -> Any:
        """What a device is, as the server describes it: its regions, its interrupts, and its
        configuration space in hexadecimal digits. The device may be in use, and doesn't notice.

        ENODEV without such a device, or when it is bound to no VFIO driver.
        """
        reply = self.connection.call(Operation.GET_DEVICE, name.encode() + b"\0")
        return json.loads(reply.rstrip(b"\0"))

    def _administer(
        self, operation: Operation, arguments: Mapping[str, Any], wait: float = 0
    ) -> None:
        """Sends a request as JSON. The server may take `wait` seconds, and that isn't a timeout."""
        limit = self.connection.timeout
        if limit is not None:
            self.connection.timeout = limit + wait
        try:
            self.connection.call(operation, json.dumps(arguments).encode() + b"\0")
        finally:
            self.connection.timeout = limit

    def _adopt(self, reply: Message) -> Connection:
        operation = wire.name(reply.header.command)
        return Connection.adopt(reply.take(operation), self.connection.timeout)


def connect(directory: str | os.PathLike[str], timeout: float | None = None) -> Root:
    """Connects to the server of `directory`. `timeout` bounds each wait, here and in what is opened."""
    connection = Connection.open(Path(directory) / "vfio.sock", timeout)
    try:
        negotiate(connection)
    except BaseException:
        connection.close()
        raise
    return Root(connection)


# Containers --------------------------------------------------------------------------------------


class Container(IOCTLHandle):
    """An IOMMU address space for the groups that are set into it."""

    def api_version(self) -> int:
        """VFIO_GET_API_VERSION."""
        return self.ioctl(Operation.GET_API_VERSION).value

    def check_extension(self, number: int) -> int:
        """VFIO_CHECK_EXTENSION: positive when there is such an IOMMU or feature."""
        return self.ioctl(Operation.CHECK_EXTENSION, U64.pack(number)).value

    def set_iommu(self, type: int) -> None:
        """VFIO_SET_IOMMU. EINVAL without a group or when set, ENODEV when no driver has the type."""
        self.ioctl(Operation.SET_IOMMU, U64.pack(type))

    def iommu_info(self) -> IOMMUInfo:
        """VFIO_IOMMU_GET_INFO: page sizes, addresses that may be mapped, mappings left."""
        size = wire.IOMMU_INFO.size
        while True:
            request = wire.IOMMU_INFO.pack(size, 0, 0, 0)
            structure = self.ioctl(Operation.IOMMU_GET_INFO, request).structure
            (needed,) = unpack(U32, structure)
            if needed <= size:
                return wire.iommu_info(structure)
            size = needed

    def map_dma(
        self,
        iova: int,
        size: int,
        flags: DMAFlags = DMAFlags.READ | DMAFlags.WRITE,
        memory: Memory | None = None,
        offset: int = 0,
    ) -> DMAMemory:
        """VFIO_IOMMU_MAP_DMA of shared memory: `memory` from `offset` on, or new memory of its own.

        EEXIST over another mapping, EINVAL for an unaligned, empty or wrapping range, or one that
        the IOMMU hasn't got, ENOSPC beyond the limit of mappings.
        """
        backing = Memory(size) if memory is None else memory
        try:
            request = wire.MAP_DMA.pack(wire.MAP_DMA.size, flags, offset, iova, size)
            self.ioctl(Operation.IOMMU_MAP_DMA, request, [backing])
        except BaseException:
            if memory is None:
                backing.close()
            raise

        def unmap() -> None:
            if not self.closed:
                self.unmap_dma(iova, size)

        return DMAMemory(backing, memory is None, offset, iova, size, unmap)

    def map_dma_address(
        self,
        iova: int,
        size: int,
        address: int,
        flags: DMAFlags = DMAFlags.READ | DMAFlags.WRITE,
    ) -> None:
        """VFIO_IOMMU_MAP_DMA of this process's own memory at `address`, as with the kernel.

        The server reaches it with process_vm_readv, which it must be allowed to do.
        """
        self.ioctl(
            Operation.IOMMU_MAP_DMA,
            wire.MAP_DMA.pack(wire.MAP_DMA.size, flags, address, iova, size),
        )

    def unmap_dma(self, iova: int, size: int, flags: int = 0) -> int:
        """VFIO_IOMMU_UNMAP_DMA: returns how many bytes were mapped there.

        EINVAL where it would split a mapping.
        """
        request = wire.UNMAP_DMA.pack(wire.UNMAP_DMA.size, flags, iova, size)
        structure = self.ioctl(Operation.IOMMU_UNMAP_DMA, request).structure
        return wire.UnmapDMA(*unpack(wire.UNMAP_DMA, structure)).size

    # sPAPR TCE

    def tce_info(self) -> TCEInfo:
        """VFIO_IOMMU_SPAPR_TCE_GET_INFO: the window to begin with, and what windows can be made."""
        request = wire.TCE_INFO.pack(wire.TCE_INFO.size, 0, 0, 0, 0, 0, 0)
        structure = self.ioctl(Operation.IOMMU_SPAPR_TCE_GET_INFO, request).structure
        return TCEInfo(*unpack(wire.TCE_INFO, structure)[1:])

    def enable(self) -> None:
        """VFIO_IOMMU_ENABLE, of version 1. ENOMEM where its window may not be locked."""
        self.ioctl(Operation.IOMMU_ENABLE)

    def disable(self) -> None:
        """VFIO_IOMMU_DISABLE, of version 1: what is mapped stays, but can't be changed."""
        self.ioctl(Operation.IOMMU_DISABLE)

    def register_memory(self, vaddr: int, size: int, memory: Memory | None = None) -> None:
        """VFIO_IOMMU_SPAPR_REGISTER_MEMORY, of version 2: what may be mapped, `memory` from its byte
        `vaddr` on, or this process's own memory there. EBUSY when it is, ENOMEM beyond what may be locked.
        """
        self._memory(Operation.IOMMU_SPAPR_REGISTER_MEMORY, vaddr, size, memory)

    def unregister_memory(self, vaddr: int, size: int, memory: Memory | None = None) -> None:
        """VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY. EBUSY while it is mapped, ENOENT unless it is registered."""
        self._memory(Operation.IOMMU_SPAPR_UNREGISTER_MEMORY, vaddr, size, memory)

    def _memory(self, operation: Operation, vaddr: int, size: int, memory: Memory | None) -> None:
        request = wire.TCE_MEMORY.pack(wire.TCE_MEMORY.size, 0, vaddr, size)
        self.ioctl(operation, request, [] if memory is None else [memory])

    def create_window(self, page_shift: int, size: int, levels: int = 1) -> int:
        """VFIO_IOMMU_SPAPR_TCE_CREATE, of version 2: returns the window's first address."""
        request = wire.TCE_CREATE.pack(wire.TCE_CREATE.size, 0, page_shift, 0, size, levels, 0, 0)
        structure = self.ioctl(Operation.IOMMU_SPAPR_TCE_CREATE, request).structure
        return int(unpack(wire.TCE_CREATE, structure)[-1])

    def remove_window(self, start: int) -> None:
        """VFIO_IOMMU_SPAPR_TCE_REMOVE, of version 2: the window that has this address."""
        request = wire.TCE_REMOVE.pack(wire.TCE_REMOVE.size, 0, start)
        self.ioctl(Operation.IOMMU_SPAPR_TCE_REMOVE, request)

    # What IOMMU drivers may have

    def read(self, offset: int, count: int) -> bytes:
        """`pread` of the container, for IOMMU drivers that have it; EINVAL for the others."""
        request = wire.REGION_ACCESS.pack(offset, 0, count)
        reply = self.connection.call(Operation.CONTAINER_READ, request)
        return reply[wire.REGION_ACCESS.size :]

    def write(self, offset: int, data: bytes) -> int:
        """`pwrite` of the container; returns the number of bytes written."""
        request = wire.REGION_ACCESS.pack(offset, 0, len(data)) + data
        reply = self.connection.call(Operation.CONTAINER_WRITE, request)
        return wire.RegionAccess(*unpack(wire.REGION_ACCESS, reply)).count

    def mmap(self, offset: int, size: int) -> Descriptor:
        """`mmap` of the container: a descriptor to map."""
        request = wire.CONTAINER_MMAP.pack(offset, size)
        return self.connection.request(Operation.CONTAINER_MMAP, request).take("CONTAINER_MMAP")


# Groups ------------------------------------------------------------------------------------------


class Group(IOCTLHandle):
    """The devices that an IOMMU cannot tell apart."""

    def status(self) -> GroupStatus:
        """VFIO_GROUP_GET_STATUS."""
        request = wire.GROUP_STATUS.pack(wire.GROUP_STATUS.size, 0)
        structure = self.ioctl(Operation.GROUP_GET_STATUS, request).structure
        _, flags = unpack(wire.GROUP_STATUS, structure)
        return GroupStatus(flags)

    def set_container(self, container: "int | HasFileno") -> None:
        """VFIO_GROUP_SET_CONTAINER. EINVAL when one is set, or for a descriptor that is none."""
        self.ioctl(Operation.GROUP_SET_CONTAINER, descriptors=[container])

    def unset_container(self) -> None:
        """VFIO_GROUP_UNSET_CONTAINER. EINVAL when none is set, EBUSY while a device is open."""
        self.ioctl(Operation.GROUP_UNSET_CONTAINER)

    def open_device(self, name: str) -> Device:
        """VFIO_GROUP_GET_DEVICE_FD. EINVAL without container, IOMMU or viability, else ENODEV."""
        request = name.encode() + b"\0"
        reply = self.connection.request(Operation.GROUP_GET_DEVICE_FD, request)
        descriptor = reply.take("GROUP_GET_DEVICE_FD")
        return Device.start(Connection.adopt(descriptor, self.connection.timeout))


class ExternalUser(Handle):
    """A token that keeps a group in its container, whatever else closes."""

    def __init__(self, connection: Connection, group: int) -> None:
        super().__init__(connection)
        self.group = group

    def check_extension(self, number: int) -> int:
        """VFIO_CHECK_EXTENSION of the group's container."""
        reply = self.connection.call(Operation.TOKEN_CHECK_EXTENSION, U64.pack(number))
        (value,) = unpack(S64, reply)
        return int(value)
