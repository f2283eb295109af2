"""A client of vfiod: VFIO's containers, groups and devices over a Unix socket."""

from .client import Container, ExternalUser, Group, IOCTLResult, Root, connect
from .connection import Connection, Descriptor, Message, Pending
from .device import Device
from .errors import Disconnected, VFIOError
from .irq import EventFD
from .memory import DMAMemory, Memory
from .region import Doorbell, MappedArea, Region, RegionInfo
from .trace import Trace, TraceEvent, TraceRecord
from .wire import (
    IRQ,
    Command,
    DeviceFlags,
    DMAFlags,
    Feature,
    FeatureFlags,
    GroupStatus,
    IOMMUInfo,
    IOMMUType,
    IRQFlags,
    IRQSet,
    MigrationState,
    Operation,
    RegionFlags,
    TCEInfo,
)

__all__ = [
    "IRQ",
    "Command",
    "Connection",
    "Container",
    "DMAFlags",
    "DMAMemory",
    "Descriptor",
    "Device",
    "DeviceFlags",
    "Disconnected",
    "Doorbell",
    "EventFD",
    "ExternalUser",
    "Feature",
    "FeatureFlags",
    "Group",
    "GroupStatus",
    "IOCTLResult",
    "IOMMUInfo",
    "IOMMUType",
    "IRQFlags",
    "IRQSet",
    "MappedArea",
    "Memory",
    "Message",
    "MigrationState",
    "Operation",
    "Pending",
    "Region",
    "RegionFlags",
    "RegionInfo",
    "Root",
    "TCEInfo",
    "Trace",
    "TraceEvent",
    "TraceRecord",
    "VFIOError",
    "connect",
]
