"""The configuration file: what its fields do, and the sentences for its mistakes."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from support import (
    EDU,
    EDU_BUFFER,
    IOVA,
    PAGE,
    SCRATCH,
    Server,
    attach,
    bus_master,
    edu_load,
    edu_start,
    edu_store,
    edu_wait,
    exchange,
    expect_error,
    expect_sentence,
    expect_success,
    in_child,
    let_others_in,
    read_request,
    refused,
    run,
    version_message,
)

import vfiod

CARD = "0000:06:0d.0"
CARD_2 = "0000:06:0d.1"
TWO_FUNCTIONS = {
    "groups": [
        {"id": 26, "devices": [{"address": CARD, "model": "edu"}, {"address": CARD_2, "model": "edu"}]}
    ]
}


def one_device(**device: Any) -> dict[str, Any]:
    return {"groups": [{"id": 26, "devices": [{"address": EDU, "model": "edu", **device}]}]}


# Fields


@pytest.mark.vfiod({})
def test_an_empty_configuration_is_the_built_in_one(root: vfiod.Root) -> None:
    assert SCRATCH in json.dumps(root.topology())


@pytest.mark.vfiod({"groups": []})
def test_a_server_may_have_no_groups(server: Server) -> None:
    with server.connect() as root, refused(errno.ENODEV):
        root.open_group(26)


@pytest.mark.vfiod({"groups": [{"id": 26, "devices": [{"address": EDU, "driver": "e1000"}]}]})
def test_a_group_without_a_vfio_device_does_not_exist(root: vfiod.Root) -> None:
    with refused(errno.ENODEV):
        root.open_group(26)


@pytest.mark.vfiod(
    {
        "groups": [
            {
                "id": 26,
                "devices": [
                    {"address": EDU, "model": "edu"},
                    {"address": "0000:06:0d.1", "driver": None},
                    {"address": "0000:06:0d.2", "driver": "pcieport"},
                ],
            }
        ]
    }
)
def test_driverless_devices_and_ports_leave_a_group_viable(root: vfiod.Root) -> None:
    with root.open_group(26) as group:
        assert group.status() & vfiod.GroupStatus.VIABLE


@pytest.mark.vfiod(one_device(options={"dma_mask": "0xffff"}))
def test_edus_dma_mask_can_be_chosen(root: vfiod.Root) -> None:
    with attach(root, EDU) as (container, group), group.open_device(EDU) as device:
        bus_master(device)
        with container.map_dma(0x1000, PAGE) as memory:
            memory[0:4] = b"data"
            edu_load(device, 0x7_1000, 4)
            edu_store(device, 0x8_1008, 4)
            assert memory[8:12] == b"data"


@pytest.mark.vfiod(one_device(options={"dma_mask": "0xffffffffffffffff"}))
def test_an_edu_with_64_address_lines_reaches_high_addresses(root: vfiod.Root) -> None:
    with attach(root, EDU) as (container, group), group.open_device(EDU) as device:
        bus_master(device)
        with container.map_dma(0xFEF0_0000, PAGE) as memory:
            memory[0:4] = b"high"
            edu_load(device, 0xFEF0_0000, 4)
            edu_store(device, 0xFEF0_0008, 4)
            assert memory[8:12] == b"high"


@pytest.mark.vfiod(
    {
        "groups": [{"id": 26, "devices": [{"address": EDU, "model": "edu"}]}],
        "limits": {"apertures": [["0x1000", "0x1fff"], ["0x4000", 0x5FFF]]},
    }
)
def test_apertures_limit_what_may_be_mapped(iommu: vfiod.Container) -> None:
    assert iommu.iommu_info().iova_ranges == ((0x1000, 0x1FFF), (0x4000, 0x5FFF))
    with iommu.map_dma(0x1000, PAGE), iommu.map_dma(0x4000, 2 * PAGE):
        for iova in (0, 0x2000, 0x6000):
            with refused(errno.EINVAL):
                iommu.map_dma(iova, PAGE)


@pytest.mark.vfiod({"limits": {"mappings": 2}})
def test_the_number_of_mappings_can_be_limited(iommu: vfiod.Container) -> None:
    assert iommu.iommu_info().dma_available == 2
    with iommu.map_dma(0x1000, PAGE), iommu.map_dma(0x2000, PAGE), refused(errno.ENOSPC):
        iommu.map_dma(0x3000, PAGE)


@pytest.mark.vfiod({"limits": {"max_data_xfer_size": 4096}})
def test_the_size_of_an_access_can_be_limited(server: Server) -> None:
    with server.raw(SCRATCH) as connection:
        connection.send_raw(version_message({"max_data_xfer_size": 1 << 20}))
        version = vfiod.wire.Version.unpack(connection.receive().payload)
        assert version.capabilities["max_data_xfer_size"] == 4096
        expect_success(exchange(connection, read_request(0, 0, 4096)), 1)
        expect_error(exchange(connection, read_request(0, 0, 4097)), errno.EINVAL)
    with server.device(SCRATCH) as device:
        data = os.urandom(10_000)
        device.region(0).write(0, data)
        assert device.region(0).read(0, 10_000) == data


@pytest.mark.vfiod({"limits": {"message_descriptors": 2}})
def test_the_descriptors_of_a_message_can_be_limited(server: Server) -> None:
    with server.device(SCRATCH) as device:
        assert device.version.capabilities["max_msg_fds"] == 2
        with vfiod.EventFD() as event:
            device.set_triggers(2, [event, event])
            with refused(errno.EINVAL):
                device.set_triggers(2, [event, event, event])


def test_a_device_may_have_its_socket_elsewhere(tmp_path: Path) -> None:
    file, path = tmp_path / "config.json", tmp_path / "edu.sock"
    file.write_text(json.dumps(one_device(socket=str(path))))
    server = Server(tmp_path / "vfiod", "--config", str(file))
    try:
        with vfiod.Device.connect(path, 10) as device:
            assert device.region(0).read32(0) == 0x010000ED
        server.stop()
        assert not path.exists()
    finally:
        server.kill()


@pytest.mark.vfiod(
    {
        "groups": [
            {
                "id": 26,
                "owner": 65534,
                "mode": "0600",
                "devices": [{"address": EDU, "model": "edu"}],
            },
            {"id": 27, "mode": "0660", "devices": [{"address": SCRATCH, "model": "scratch"}]},
        ]
    }
)
def test_a_group_can_belong_to_another_user(server: Server) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    let_others_in(server)

    def work() -> list[int]:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with server.connect() as root:
            root.open_group(26).close()
            with refused(errno.EACCES):
                root.open_group(27)
        return [os.stat(server.device_socket(EDU)).st_uid, os.stat(server.device_socket(EDU)).st_mode]

    status, value = in_child(work)
    assert status == 0, value
    assert value[0] == 65534
    assert value[1] & 0o777 == 0o600


# Two functions of one card


@pytest.mark.vfiod(TWO_FUNCTIONS)
def test_one_process_may_take_two_functions_of_a_card_by_their_sockets(server: Server) -> None:
    with server.device(CARD) as one, server.device(CARD_2) as two, vfiod.Memory(PAGE) as memory:
        bus_master(one)
        bus_master(two)
        one.map_dma(IOVA, PAGE, memory=memory)
        two.map_dma(IOVA, PAGE, memory=memory)
        memory[0:4] = b"data"
        edu_load(one, IOVA, 4)
        edu_store(one, IOVA + 8, 4)
        edu_load(two, IOVA + 8, 4)
        edu_store(two, IOVA + 16, 4)
        assert memory[16:20] == b"data"


@pytest.mark.vfiod(TWO_FUNCTIONS)
def test_a_functions_map_stays_when_another_unmaps_the_same(server: Server) -> None:
    with server.device(CARD) as one, server.device(CARD_2) as two, vfiod.Memory(PAGE) as memory:
        bus_master(two)
        one.map_dma(IOVA, PAGE, memory=memory)
        two.map_dma(IOVA, PAGE, memory=memory)
        memory[0:4] = b"data"
        edu_load(two, IOVA, 4)
        one.unmap_dma(IOVA, PAGE)
        edu_store(two, IOVA + 8, 4)
        assert memory[8:12] == b"data"
        two.unmap_dma(IOVA, PAGE)
        memory[8:12] = b"keep"
        edu_store(two, IOVA + 8, 4)
        assert memory[8:12] == b"keep"


@pytest.mark.vfiod(TWO_FUNCTIONS)
def test_a_function_maps_what_it_likes_where_another_has_mapped(server: Server) -> None:
    with server.device(CARD) as one, server.device(CARD_2) as two, vfiod.Memory(2 * PAGE) as memory:
        for size, offset, flags in (
            (2 * PAGE, 0, vfiod.DMAFlags.READ | vfiod.DMAFlags.WRITE),
            (PAGE, PAGE, vfiod.DMAFlags.READ | vfiod.DMAFlags.WRITE),
            (PAGE, 0, vfiod.DMAFlags.READ),
        ):
            one.map_dma(IOVA, PAGE, memory=memory)
            two.map_dma(IOVA, size, flags, memory, offset)
            with refused(errno.EEXIST):
                two.map_dma(IOVA, PAGE, memory=memory)
            one.unmap_dma(IOVA, PAGE)
            with refused(errno.ENOENT):
                one.unmap_dma(IOVA, PAGE)
            two.unmap_dma(IOVA, size)


@pytest.mark.vfiod(TWO_FUNCTIONS)
def test_another_process_does_not_join_the_card(server: Server) -> None:
    with server.device(CARD):

        def work() -> int:
            with refused(errno.EBUSY):
                server.device(CARD_2)
            return 0

        assert in_child(work) == (0, 0)
    with server.device(CARD_2) as device:
        assert device.region(0).read32(0) == 0x010000ED


@pytest.mark.vfiod(TWO_FUNCTIONS)
def test_each_function_may_leave_first(server: Server) -> None:
    for first, second in ((CARD, CARD_2), (CARD_2, CARD)):
        one, two = server.device(first), server.device(second)
        one.close()
        assert two.region(0).read32(0) == 0x010000ED
        again = server.device(first)
        two.close()
        assert again.region(0).read32(0) == 0x010000ED
        again.close()


@pytest.mark.vfiod(TWO_FUNCTIONS)
def test_one_copies_while_the_other_leaves(server: Server) -> None:
    with server.device(CARD) as one, one.map_dma(IOVA, PAGE) as memory:
        bus_master(one)
        memory[0:4] = b"data"
        for _ in range(20):
            with server.device(CARD_2) as two:
                two.map_dma(IOVA, PAGE, memory=memory.memory)
                edu_start(one, IOVA, EDU_BUFFER, PAGE, 0)
            edu_wait(one)
        edu_store(one, IOVA + 8, 4)
        assert memory[8:12] == b"data"


# Mistakes


@pytest.mark.parametrize(
    "configuration, field",
    [
        ({"group": []}, "group"),
        ({"groups": {}}, "groups"),
        ({"groups": [{}]}, "groups[0].id"),
        ({"groups": [{"id": -1, "devices": []}]}, "groups[0].id"),
        ({"groups": [{"id": 1 << 32, "devices": []}]}, "groups[0].id"),
        ({"groups": [{"id": 1.5, "devices": []}]}, "groups[0].id"),
        ({"groups": [{"id": 1, "devices": []}, {"id": 1, "devices": []}]}, "groups[1].id"),
        ({"groups": [{"id": 1}]}, "groups[0].devices"),
        ({"groups": [{"id": 1, "mode": 600, "devices": []}]}, "groups[0].mode"),
        ({"groups": [{"id": 1, "mode": "0999", "devices": []}]}, "groups[0].mode"),
        ({"groups": [{"id": 1, "owner": "no such user", "devices": []}]}, "groups[0].owner"),
        ({"limits": {"apertures": []}}, "limits.apertures"),
        ({"limits": {"apertures": [[2, 1]]}}, "limits.apertures"),
        ({"limits": {"apertures": [[0, 9], [9, 12]]}}, "limits.apertures"),
        ({"groups": [{"id": 1, "devices": [{}]}]}, "groups[0].devices[0].address"),
        (one_device(address="foo"), "groups[0].devices[0].address"),
        (one_device(address="0000:06:0D.0"), "groups[0].devices[0].address"),
        (one_device(address="0000:06:20.0"), "groups[0].devices[0].address"),
        (one_device(address="../../../etc/x"), "groups[0].devices[0].address"),
        (one_device(model="no such model"), "groups[0].devices[0].model"),
        (one_device(model=None, driver="vfio-pci"), "groups[0].devices[0]"),
        (one_device(options={"no such option": 1}), "no such option"),
        (one_device(options={"dma_mask": "lots"}), "dma_mask"),
        (one_device(options={"dma_mask": -1}), "dma_mask"),
        (one_device(socket="relative.sock"), "groups[0].devices[0].socket"),
        (one_device(socket="/" + "x" * 107), "groups[0].devices[0].socket"),
        ({"iommu_drivers": ["no such driver"]}, "iommu_drivers[0]"),
        ({"iommu_drivers": ["type1", "type1"]}, "iommu_drivers[1]"),
        ({"limits": {"mappings": 0}}, "limits.mappings"),
        ({"limits": {"mappings": "many"}}, "limits.mappings"),
        ({"limits": {"max_data_xfer_size": 1 << 40}}, "limits.max_data_xfer_size"),
        ({"limits": {"no such limit": 1}}, "no such limit"),
    ],
)
def test_a_mistake_is_named_with_its_field(
    tmp_path: Path, configuration: dict[str, Any], field: str
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(configuration))
    result = run("--directory", str(tmp_path / "vfiod"), "--config", str(file))
    expect_sentence(result, "config.json", field)


def test_two_devices_do_not_have_one_address(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    device = {"address": EDU, "model": "edu"}
    file.write_text(json.dumps({"groups": [{"id": 1, "devices": [device, device]}]}))
    result = run("--directory", str(tmp_path / "vfiod"), "--config", str(file))
    expect_sentence(result, "groups[0].devices[1].address")
