"""The facts of `protocol/` against this client, the kernel's header and the specification."""

import enum
import errno
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import protocol
import pytest
from protocol import COMMANDS, FACTS, FLAGS, INTEGERS, field_format, number
from support import EduRegister, Server
from vfiod import wire
from vfiod.wire import Command, Operation

KERNEL = Path("/usr/include/linux/vfio.h")


def test_the_header_is_the_clients() -> None:
    header = FACTS["header"]
    assert field_format(header["fields"]) == wire.HEADER.format
    assert header["size"] == wire.HEADER.size
    names = [field["name"] for field in header["fields"]]
    assert names == list(wire.Header.__dataclass_fields__)


def test_the_flags_are_the_clients() -> None:
    assert FLAGS == {
        "TYPE": wire.TYPE_MASK,
        "REPLY": wire.TYPE_REPLY,
        "NO_REPLY": wire.FLAG_NO_REPLY,
        "ERROR": wire.FLAG_ERROR,
    }


def test_the_commands_are_the_clients() -> None:
    numbers = {name: number(command["number"]) for name, command in COMMANDS.items()}
    assert numbers == {**Command.__members__, **Operation.__members__}
    assert len(COMMANDS) == len(FACTS["commands"])


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if "ioctl" in command])
def test_a_command_with_an_ioctl_has_its_number(name: str) -> None:
    if not KERNEL.exists():
        pytest.skip("no header of the kernel's")
    ioctl = COMMANDS[name]["ioctl"]
    found = re.search(rf"#define\s+{ioctl}\s+_IO\(VFIO_TYPE, VFIO_BASE \+ (\d+)\)", KERNEL.read_text())
    assert found, ioctl
    assert number(COMMANDS[name]["number"]) == wire.ioctl_number(int(found[1]))
    assert name == ioctl.removeprefix("VFIO_")


def test_constants_are_the_kernels() -> None:
    if not KERNEL.exists():
        pytest.skip("no header of the kernel's")
    header = KERNEL.read_text()
    for group in FACTS["constants"]:
        for constant in group["values"]:
            name = constant["name"]
            found = re.search(rf"#define\s+{name}\s+(?:\(1 << (\d+)\)|(\d+))", header)
            if found:
                value = 1 << int(found[1]) if found[1] else int(found[2])
                assert constant["value"] == value, name
            else:
                # The indices are enumerations, and PCI's and KVM's bits are in other headers.
                others = ("PCI_", "KVM_", "VFIO_USER_", "VFIO_DEVICE_STATE_")
                ours = name.endswith("_INDEX") or name.startswith(others)
                assert ours, f"{name} isn't the kernel's"


def constants(group: str, prefix: str) -> dict[str, int]:
    (found,) = [item for item in FACTS["constants"] if item["name"] == group]
    return {value["name"].removeprefix(prefix): value["value"] for value in found["values"]}


@pytest.mark.parametrize(
    ("group", "prefix", "ours"),
    [
        ("group flags", "VFIO_GROUP_FLAGS_", wire.GroupStatus),
        ("migration states", "VFIO_DEVICE_STATE_", wire.MigrationState),
        ("DMA_MAP flags", "VFIO_DMA_MAP_FLAG_", wire.DMAFlags),
        ("device flags", "VFIO_DEVICE_FLAGS_", wire.DeviceFlags),
        ("region flags", "VFIO_REGION_INFO_FLAG_", wire.RegionFlags),
        ("interrupt flags", "VFIO_IRQ_INFO_", wire.IRQFlags),
    ],
)
def test_constants_are_the_clients(group: str, prefix: str, ours: type[enum.IntFlag]) -> None:
    assert constants(group, prefix) == dict(ours.__members__)


def test_extensions_interrupts_and_actions_are_the_clients() -> None:
    extensions = {
        name.removesuffix("_IOMMU"): value for name, value in constants("extensions", "VFIO_").items()
    }
    assert extensions == dict(wire.IOMMUType.__members__)
    interrupts = constants("interrupts", "VFIO_PCI_")
    assert {n.removesuffix("_IRQ_INDEX"): v for n, v in interrupts.items()} == dict(wire.IRQ.__members__)
    actions = constants("SET_IRQS flags", "VFIO_IRQ_SET_")
    assert {n.removeprefix("ACTION_"): v for n, v in actions.items()} == dict(wire.IRQSet.__members__)
    unmap = constants("unmap flags", "VFIO_DMA_UNMAP_FLAG_")
    assert unmap["ALL"] == wire.UNMAP_FLAG_ALL
    capabilities = constants("IOMMU capabilities", "VFIO_IOMMU_TYPE1_INFO_")
    assert capabilities["CAP_IOVA_RANGE"] == wire.IOMMU_CAP_IOVA_RANGE
    assert capabilities["DMA_AVAIL"] == wire.IOMMU_CAP_DMA_AVAIL
    assert constants("IOMMU information flags", "VFIO_IOMMU_INFO_")["CAPS"] == wire.IOMMU_INFO_CAPS
    assert constants("sPAPR TCE information flags", "VFIO_IOMMU_SPAPR_INFO_")["DDW"] == wire.TCE_INFO_DDW
    assert constants("region capabilities", "")["VFIO_REGION_INFO_CAP_SPARSE_MMAP"] == (
        wire.REGION_CAP_SPARSE_MMAP
    )


STRUCTURES = {
    ("GROUP_GET_STATUS", "request"): wire.GROUP_STATUS,
    ("IOMMU_MAP_DMA", "request"): wire.MAP_DMA,
    ("DMA_MAP", "request"): wire.USER_DMA_MAP,
    ("DMA_UNMAP", "request"): wire.USER_DMA_UNMAP,
    ("DMA_UNMAP", "reply"): wire.USER_DMA_UNMAP,
    ("IOMMU_SPAPR_REGISTER_MEMORY", "request"): wire.TCE_MEMORY,
    ("IOMMU_SPAPR_UNREGISTER_MEMORY", "request"): wire.TCE_MEMORY,
    ("IOMMU_SPAPR_TCE_CREATE", "request"): wire.TCE_CREATE,
    ("IOMMU_SPAPR_TCE_REMOVE", "request"): wire.TCE_REMOVE,
    ("DEVICE_GET_INFO", "request"): wire.DEVICE_INFO,
    ("DEVICE_GET_INFO", "reply"): wire.DEVICE_INFO,
    ("DEVICE_GET_REGION_INFO", "request"): wire.REGION_INFO,
    ("DEVICE_GET_REGION_INFO", "reply"): wire.REGION_INFO,
    ("DEVICE_GET_IRQ_INFO", "request"): wire.IRQ_INFO,
    ("DEVICE_GET_IRQ_INFO", "reply"): wire.IRQ_INFO,
    ("DEVICE_SET_IRQS", "request"): wire.IRQ_SET,
    ("REGION_READ", "request"): wire.REGION_ACCESS,
    ("REGION_READ", "reply"): wire.REGION_ACCESS,
    ("REGION_WRITE", "request"): wire.REGION_ACCESS,
    ("REGION_WRITE", "reply"): wire.REGION_ACCESS,
    ("CONTAINER_READ", "request"): wire.REGION_ACCESS,
    ("CONTAINER_WRITE", "request"): wire.REGION_ACCESS,
    ("CONTAINER_MMAP", "request"): wire.CONTAINER_MMAP,
    ("DEVICE_FEATURE", "request"): wire.FEATURE,
    ("DEVICE_FEATURE", "reply"): wire.FEATURE,
    ("MIG_DATA_READ", "request"): wire.MIGRATION_DATA,
    ("MIG_DATA_READ", "reply"): wire.MIGRATION_DATA,
    ("MIG_DATA_WRITE", "request"): wire.MIGRATION_DATA,
    ("DMA_READ", "request"): wire.DMA_ACCESS,
    ("DMA_WRITE", "request"): wire.DMA_ACCESS,
    ("TRACE_RECORD", "request"): wire.TRACE_RECORD,
    ("VERSION", "request"): wire.VERSION,
    ("VERSION", "reply"): wire.VERSION,
}


@pytest.mark.parametrize(("name", "way"), STRUCTURES, ids=lambda value: value)
def test_a_structure_is_the_clients(name: str, way: str) -> None:
    assert field_format(COMMANDS[name][way]) == STRUCTURES[name, way].format


def test_an_ioctls_reply_is_its_result_and_the_clients_structure() -> None:
    for name, layout in (
        ("GROUP_GET_STATUS", wire.GROUP_STATUS),
        ("IOMMU_GET_INFO", wire.IOMMU_INFO),
        ("IOMMU_SPAPR_TCE_GET_INFO", wire.TCE_INFO),
        ("IOMMU_SPAPR_TCE_CREATE", wire.TCE_CREATE),
    ):
        whole = wire.S64.format + layout.format.removeprefix("=").replace("4x", "I")
        assert field_format(COMMANDS[name]["reply"]) == whole
    for name, command in COMMANDS.items():
        if "ioctl" in command and command["served"]:
            first = command["reply"][0]
            assert (first["name"], first["type"], first["offset"]) == ("result", "s64", 0), name


def test_capabilities_are_the_clients() -> None:
    for capability in FACTS["capabilities"]:
        assert field_format(capability["fields"]).startswith(wire.CAPABILITY.format)
    (sparse,) = [item for item in FACTS["capabilities"] if item["name"] == "SPARSE_MMAP"]
    wanted = wire.CAPABILITY.format + wire.SPARSE_MMAP.format.removeprefix("=")
    assert field_format(sparse["fields"]) == wanted


def test_a_sub_region_is_the_clients() -> None:
    (sub_region,) = [item for item in FACTS["structures"] if item["name"] == "sub-region"]
    assert struct.calcsize(field_format(sub_region["fields"])) == wire.SUB_REGION.size
    packed = wire.SUB_REGION.pack(1, 2, 3, 4, 5, 6)
    values = protocol.decode(sub_region["fields"], packed)
    names = ["offset", "size", "fd_index", "type", "flags", "padding", "datamatch"]
    assert values == dict(zip(names, [1, 2, 3, 4, 5, 0, 6]))


def structures() -> list[list[dict[str, Any]]]:
    both = [command[way] for command in FACTS["commands"] for way in ("request", "reply")]
    return both + [item["fields"] for item in FACTS["capabilities"] + FACTS["structures"]]


def test_structures_have_no_gaps_and_fields_have_their_types_sizes() -> None:
    sizes = {item["name"]: item["size"] for item in FACTS["types"]}
    assert {name: sizes[name] for name in INTEGERS} == {"u16": 2, "u32": 4, "u64": 8, "s64": 8}
    for fields in structures():
        end: int | None = 0
        for field in fields:
            assert field["offset"] == end, field
            assert field.get("size") == sizes[field["type"]], field
            end = None if field["type"] not in INTEGERS else field["offset"] + field["size"]


def test_errors_have_this_systems_numbers() -> None:
    for name, value in protocol.ERRORS.items():
        assert getattr(errno, name) == value, name
    used = {error["errno"] for command in FACTS["commands"] for error in command["errors"]}
    used |= {error["errno"] for error in FACTS["common_errors"]}
    assert used == set(protocol.ERRORS)


def test_sockets_are_those_that_commands_name() -> None:
    sockets = {item["name"] for item in FACTS["sockets"]}
    assert sockets == {name for command in FACTS["commands"] for name in command["sockets"]}
    assert {command["direction"] for command in FACTS["commands"]} == {"client", "server"}


def test_the_default_transfer_size_is_the_clients() -> None:
    limits = {item["name"]: item["value"] for item in FACTS["limits"]}
    assert limits["max_data_xfer_size"] == wire.DEFAULT_MAX_DATA_XFER_SIZE


MODELS = {f"0000:01:00.{number}": model for number, model in enumerate(FACTS["devices"])}
MODELS_ONLY = {
    "groups": [
        {"id": 1, "devices": [{"address": name, "model": model["model"]} for name, model in MODELS.items()]}
    ]
}


@pytest.mark.vfiod(MODELS_ONLY)
def test_models_are_who_they_say(server: Server) -> None:
    for name, model in MODELS.items():
        with server.device(name) as device:
            assert device.config.read16(0) == number(model["vendor"])
            assert device.config.read16(2) == number(model["device"])
            sizes = {}
            for index in range(device.info().regions):
                info = device.region_info(index)
                info.close()
                sizes[index] = info.size
            assert {i: s for i, s in sizes.items() if s} == {r["index"]: r["size"] for r in model["regions"]}


def test_edus_registers_are_where_the_other_tests_find_them() -> None:
    (edu,) = [model for model in FACTS["devices"] if model["model"] == "edu"]
    ours = {value for name, value in vars(EduRegister).items() if not name.startswith("_")}
    assert {number(register["offset"]) for register in edu["registers"]} == ours
    assert {register["size"] for register in edu["registers"] if number(register["offset"]) >= 0x80} == {8}


def test_the_specification_is_generated_from_the_facts() -> None:
    command = [str(protocol.DIRECTORY / "generate"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
