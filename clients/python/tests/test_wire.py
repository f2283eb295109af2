"""The bytes of messages, without a server."""

import struct

from vfiod import wire


def test_a_header_is_16_bytes_in_host_byte_order() -> None:
    packed = wire.HEADER.pack(0x1122, 0x3344, 0x55667788, 0x99AABBCC, 0xDDEEFF00)
    assert packed == struct.pack("=HHIII", 0x1122, 0x3344, 0x55667788, 0x99AABBCC, 0xDDEEFF00)
    assert len(packed) == 16


def test_container_and_group_operations_have_the_numbers_of_the_kernels_ioctls() -> None:
    numbers = {
        wire.Operation.GET_API_VERSION: 0x3B64,
        wire.Operation.SET_IOMMU: 0x3B66,
        wire.Operation.GROUP_GET_DEVICE_FD: 0x3B6A,
        wire.Operation.IOMMU_MAP_DMA: 0x3B71,
        wire.Operation.IOMMU_DIRTY_PAGES: 0x3B75,
    }
    assert [int(operation) for operation in numbers] == list(numbers.values())


def test_structures_have_the_kernels_sizes() -> None:
    sizes = {
        wire.GROUP_STATUS: 8,
        wire.MAP_DMA: 32,
        wire.UNMAP_DMA: 24,
        wire.IOMMU_INFO: 24,
        wire.DEVICE_INFO: 16,
        wire.REGION_INFO: 32,
        wire.IRQ_INFO: 16,
        wire.IRQ_SET: 20,
        wire.USER_DMA_MAP: 32,
        wire.USER_DMA_UNMAP: 24,
        wire.REGION_ACCESS: 16,
        wire.REGION_WRITE_MULTI: 24,
        wire.DMA_ACCESS: 16,
    }
    assert {layout.format: layout.size for layout in sizes} == {
        layout.format: size for layout, size in sizes.items()
    }


def test_a_version_survives_packing() -> None:
    version = wire.Version(0, 1, {"max_msg_fds": 8})
    assert wire.Version.unpack(version.pack()) == version
    assert version.pack().endswith(b"}\0")


def test_a_version_without_json_has_no_capabilities() -> None:
    assert wire.Version.unpack(struct.pack("=HH", 0, 0)) == wire.Version(0, 0, {})


def test_a_capability_chain_is_followed_by_its_offsets() -> None:
    structure = bytearray(64)
    struct.pack_into("=HHI", structure, 40, 7, 1, 16)
    struct.pack_into("=HHI", structure, 16, 9, 2, 0)
    chain = list(wire.capabilities(bytes(structure), 40))
    assert [(link.id, link.version) for link in chain] == [(7, 1), (9, 2)]


def test_a_capability_chain_that_bites_its_tail_ends() -> None:
    structure = struct.pack("=IIHHI", 0, 0, 1, 1, 8)
    assert len(list(wire.capabilities(structure, 8))) == 1


def test_a_capability_beyond_the_structure_is_left_out() -> None:
    assert list(wire.capabilities(bytes(16), 12)) == []


def test_sparse_areas_are_offset_and_size() -> None:
    data = struct.pack("=IIQQQQ", 2, 0, 0x1000, 0x2000, 0x8000, 0x1000)
    assert wire.sparse_areas(data) == ((0x1000, 0x2000), (0x8000, 0x1000))


def test_iommu_information_names_its_ranges_and_the_mappings_left() -> None:
    structure = struct.pack("=IIQII", 72, 3, 0x1000, 24, 0)
    structure += struct.pack("=HHIIIQQ", 1, 1, 56, 1, 0, 0, 0xFFFF)
    structure += struct.pack("=HHII", 3, 1, 0, 65535)
    info = wire.iommu_info(structure)
    assert info == wire.IOMMUInfo(0x1000, ((0, 0xFFFF),), 65535)


def test_commands_are_named_in_errors() -> None:
    assert wire.name(9) == "REGION_READ"
    assert wire.name(0x3B66) == "SET_IOMMU"
    assert wire.name(0x7777) == "command 0x7777"
