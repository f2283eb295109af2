"""The bytes of every message: header, command numbers and structures, in host byte order.

Device sockets speak vfio-user (QEMU's docs/interop/vfio-user.rst). Root, container and group sockets
use the numbers of VFIO's ioctls as commands and the structures of <linux/vfio.h> as payloads. This
module knows no sockets.
"""

import enum
import json
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Any

U32 = Struct("=I")
U64 = Struct("=Q")
S64 = Struct("=q")

MAJOR, MINOR = 0, 0
DEFAULT_MAX_DATA_XFER_SIZE = 1 << 20
"""Bytes that one message may read or write when VERSION names no other limit."""


# The header ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Header:
    """The 16 bytes that begin every message; `size` counts them too."""

    id: int
    command: int
    size: int
    flags: int
    error: int


HEADER = Struct("=HHIII")

TYPE_MASK = 0xF
TYPE_COMMAND = 0
TYPE_REPLY = 1
FLAG_NO_REPLY = 1 << 4
FLAG_ERROR = 1 << 5


class Command(enum.IntEnum):
    """vfio-user's commands; VERSION comes first on the root socket too."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


def ioctl_number(offset: int) -> int:
    """The kernel's `_IO(VFIO_TYPE, VFIO_BASE + offset)`."""
    return (ord(";") << 8) + 100 + offset


class Operation(enum.IntEnum):
    """Commands of root, container, group and token sockets."""

    GET_API_VERSION = ioctl_number(0)
    CHECK_EXTENSION = ioctl_number(1)
    SET_IOMMU = ioctl_number(2)
    GROUP_GET_STATUS = ioctl_number(3)
    GROUP_SET_CONTAINER = ioctl_number(4)
    GROUP_UNSET_CONTAINER = ioctl_number(5)
    GROUP_GET_DEVICE_FD = ioctl_number(6)
    IOMMU_GET_INFO = ioctl_number(12)
    IOMMU_MAP_DMA = ioctl_number(13)
    IOMMU_UNMAP_DMA = ioctl_number(14)
    IOMMU_ENABLE = ioctl_number(15)
    IOMMU_DISABLE = ioctl_number(16)
    IOMMU_DIRTY_PAGES = ioctl_number(17)

    # sPAPR TCE's own; the numbers of the first two are type1's too.
    IOMMU_SPAPR_TCE_GET_INFO = ioctl_number(12)
    IOMMU_SPAPR_REGISTER_MEMORY = ioctl_number(17)
    IOMMU_SPAPR_UNREGISTER_MEMORY = ioctl_number(18)
    IOMMU_SPAPR_TCE_CREATE = ioctl_number(19)
    IOMMU_SPAPR_TCE_REMOVE = ioctl_number(20)
    EEH_PE_OP = ioctl_number(21)

    OPEN_CONTAINER = 0x4000
    OPEN_GROUP = 0x4001
    GET_TOPOLOGY = 0x4002
    GET_EXTERNAL_USER = 0x4003
    TOKEN_CHECK_EXTENSION = 0x4004
    ADD_DEVICE = 0x4010
    REMOVE_DEVICE = 0x4011
    BIND_DRIVER = 0x4012
    UNBIND_DRIVER = 0x4013
    CONTAINER_READ = 0x4020
    CONTAINER_WRITE = 0x4021
    CONTAINER_MMAP = 0x4022
    TRACE = 0x4030
    GET_DEVICE = 0x4031
    TRACE_RECORD = 0x4032


def name(command: int) -> str:
    """The command's name, or its number where it has none."""
    for names in (Command, Operation):
        try:
            return names(command).name
        except ValueError:
            continue
    return f"command {command:#x}"


# VERSION ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Version:
    """VERSION's payload: the protocol's version, and what the sender can do."""

    major: int
    minor: int
    capabilities: dict[str, Any]

    def pack(self) -> bytes:
        data = json.dumps({"capabilities": self.capabilities}).encode() + b"\0"
        return VERSION.pack(self.major, self.minor) + data

    @classmethod
    def unpack(cls, payload: bytes) -> "Version":
        major, minor = VERSION.unpack_from(payload)
        data = payload[VERSION.size :].rstrip(b"\0")
        return cls(major, minor, json.loads(data).get("capabilities", {}) if data else {})


VERSION = Struct("=HH")


# Structures of <linux/vfio.h> and of vfio-user ----------------------------------------------------


class GroupStatus(enum.IntFlag):
    """`struct vfio_group_status.flags`."""

    VIABLE = 1
    CONTAINER_SET = 2


GROUP_STATUS = Struct("=II")


class IOMMUType(enum.IntEnum):
    """What SET_IOMMU takes and CHECK_EXTENSION knows."""

    TYPE1 = 1
    SPAPR_TCE = 2
    TYPE1v2 = 3
    DMA_CC = 4
    EEH = 5
    SPAPR_TCE_v2 = 7
    NOIOMMU = 8
    UNMAP_ALL = 9


class DMAFlags(enum.IntFlag):
    """What a device may do with a mapping."""

    READ = 1
    WRITE = 2


@dataclass(frozen=True, slots=True)
class MapDMA:
    """`struct vfio_iommu_type1_dma_map`."""

    argsz: int
    flags: int
    vaddr: int
    iova: int
    size: int


MAP_DMA = Struct("=IIQQQ")


@dataclass(frozen=True, slots=True)
class UnmapDMA:
    """`struct vfio_iommu_type1_dma_unmap`; in the reply `size` says how much was unmapped."""

    argsz: int
    flags: int
    iova: int
    size: int


UNMAP_DMA = Struct("=IIQQ")
UNMAP_FLAG_ALL = 1 << 1


@dataclass(frozen=True, slots=True)
class IOMMUInfo:
    """`struct vfio_iommu_type1_info`, with its capabilities read."""

    page_sizes: int
    """A bit for each supported page size."""
    iova_ranges: tuple[tuple[int, int], ...]
    """First and last address of each range that may be mapped."""
    dma_available: int | None
    """How many more mappings the container may have."""


IOMMU_INFO = Struct("=IIQI4x")
IOMMU_INFO_MINIMUM = 16
IOMMU_INFO_CAPS = 1 << 1
IOMMU_CAP_IOVA_RANGE = 1
IOMMU_CAP_DMA_AVAIL = 3
IOVA_RANGE = Struct("=QQ")


@dataclass(frozen=True, slots=True)
class TCEInfo:
    """`struct vfio_iommu_spapr_tce_info`, without argsz."""

    flags: int
    window_start: int
    window_size: int
    page_sizes: int
    """A bit for each page size that a window may have; 0 in version 1, as what follows."""
    windows: int
    """How many there may be at a time."""
    levels: int


TCE_INFO = Struct("=IIIIQII")
TCE_INFO_DDW = 1 << 0
TCE_MEMORY = Struct("=IIQQ")
TCE_CREATE = Struct("=IIIIQIIQ")
TCE_REMOVE = Struct("=IIQ")


@dataclass(frozen=True, slots=True)
class UserDMAMap:
    """DMA_MAP of a device socket."""

    argsz: int
    flags: int
    offset: int
    address: int
    size: int


USER_DMA_MAP = Struct("=IIQQQ")
USER_DMA_UNMAP = Struct("=IIQQ")


class DeviceFlags(enum.IntFlag):
    """`struct vfio_device_info.flags`."""

    RESET = 1
    PCI = 2


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """`struct vfio_device_info`."""

    argsz: int
    flags: int
    regions: int
    interrupts: int


DEVICE_INFO = Struct("=IIII")


class RegionFlags(enum.IntFlag):
    """`struct vfio_region_info.flags`."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


@dataclass(frozen=True, slots=True)
class RawRegionInfo:
    """`struct vfio_region_info`."""

    argsz: int
    flags: int
    index: int
    cap_offset: int
    size: int
    offset: int


REGION_INFO = Struct("=IIIIQQ")
REGION_CAP_SPARSE_MMAP = 1
SPARSE_MMAP = Struct("=II")
SPARSE_AREA = Struct("=QQ")


class IRQFlags(enum.IntFlag):
    """`struct vfio_irq_info.flags`."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


@dataclass(frozen=True, slots=True)
class IRQInfo:
    """`struct vfio_irq_info`."""

    argsz: int
    flags: int
    index: int
    count: int


IRQ_INFO = Struct("=IIII")

REGION_IO_FDS = Struct("=IIII")
"""argsz, flags, index, count: DEVICE_GET_REGION_IO_FDS and the beginning of its reply."""
SUB_REGION = Struct("=QQIII4xQ")
"""offset, size, fd_index, type, flags, datamatch."""
IO_FD_TYPE_IOEVENTFD = 0
IOEVENTFD_DATAMATCH = 1


class IRQ(enum.IntEnum):
    """Kinds of a PCI device's interrupts (`VFIO_PCI_*_IRQ_INDEX`)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class IRQSet(enum.IntFlag):
    """`struct vfio_irq_set.flags`: one kind of data and one action."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    MASK = 8
    UNMASK = 16
    TRIGGER = 32


IRQ_SET = Struct("=IIIII")


@dataclass(frozen=True, slots=True)
class RegionAccess:
    """The fixed part of REGION_READ, REGION_WRITE, CONTAINER_READ and CONTAINER_WRITE."""

    offset: int
    region: int
    count: int


FEATURE = Struct("=II")
MIGRATION_STATE = Struct("=II")
MIGRATION_DATA = Struct("=II")
LOGGING_CONTROL = Struct("=QII")
LOGGING_RANGE = Struct("=QQ")
LOGGING_REPORT = Struct("=QQQ")


class Feature(enum.IntEnum):
    """`VFIO_DEVICE_FEATURE_*`: what DEVICE_FEATURE gets, sets or probes."""

    MIGRATION = 1
    MIG_DEVICE_STATE = 2
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8


class FeatureFlags(enum.IntFlag):
    """What to do with a feature."""

    GET = 1 << 16
    SET = 1 << 17
    PROBE = 1 << 18


class MigrationState(enum.IntEnum):
    """`enum vfio_device_mig_state`; 5 and 7 are not in vfio-user."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    PRE_COPY = 6


REGION_ACCESS = Struct("=QII")
REGION_WRITE_MULTI = Struct("=QII8s")
DMA_ACCESS = Struct("=QQ")
CONTAINER_MMAP = Struct("=QQ")


@dataclass(frozen=True, slots=True)
class Capability:
    """One link of an information structure's capability chain."""

    id: int
    version: int
    data: bytes
    """What follows the link's header, to the end of the structure."""


CAPABILITY = Struct("=HHI")


def capabilities(structure: bytes, first: int) -> Iterator[Capability]:
    """Walks the chain that begins at offset `first` of `structure`; 0 ends it."""
    seen = set()
    at = first
    while at and at not in seen and at + CAPABILITY.size <= len(structure):
        seen.add(at)
        number, version, following = CAPABILITY.unpack_from(structure, at)
        yield Capability(number, version, structure[at + CAPABILITY.size :])
        at = following


def sparse_areas(data: bytes) -> tuple[tuple[int, int], ...]:
    """Offset and size of each area in a sparse-mmap capability."""
    count, _ = SPARSE_MMAP.unpack_from(data)
    areas = data[SPARSE_MMAP.size :][: count * SPARSE_AREA.size]
    return tuple((offset, size) for offset, size in SPARSE_AREA.iter_unpack(areas))


def iova_ranges(data: bytes) -> tuple[tuple[int, int], ...]:
    """First and last address of each range in an IOVA-range capability."""
    count, _ = SPARSE_MMAP.unpack_from(data)
    ranges = data[SPARSE_MMAP.size :][: count * IOVA_RANGE.size]
    return tuple((start, end) for start, end in IOVA_RANGE.iter_unpack(ranges))


def iommu_info(structure: bytes) -> IOMMUInfo:
    """Reads `struct vfio_iommu_type1_info` with its capabilities."""
    _, flags, page_sizes, first = IOMMU_INFO.unpack_from(structure.ljust(IOMMU_INFO.size, b"\0"))
    ranges: tuple[tuple[int, int], ...] = ()
    available: int | None = None
    for capability in capabilities(structure, first if flags & IOMMU_INFO_CAPS else 0):
        if capability.id == IOMMU_CAP_IOVA_RANGE:
            ranges = iova_ranges(capability.data)
        elif capability.id == IOMMU_CAP_DMA_AVAIL:
            (available,) = U32.unpack_from(capability.data)
    return IOMMUInfo(page_sizes, ranges, available)


# Traces ------------------------------------------------------------------------------------------

TRACE_RECORD = Struct("=QQII")
"""Time, connection, event, count; then the beginning of a message."""
