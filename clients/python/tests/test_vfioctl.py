"""The command line, as its users meet it: what it prints, and its exit status."""

import json
import os
import pathlib
import subprocess

import pytest
import vfiod
from support import EDU, FOREIGN, SCRATCH, Server, attach
from vfiod.wire import IRQ

VFIOCTL = pathlib.Path(
    os.environ.get("VFIOD", pathlib.Path(__file__).parents[3] / ".build/debug/vfiod")
).with_name("vfioctl")


def start(*arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(VFIOCTL), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object, status: int = 0) -> str:
    """What it prints; a failure's sentence when `status` says that it must fail."""
    with start(*arguments) as process:
        output, errors = process.communicate(timeout=30)
    assert process.returncode == status, errors
    return errors if status else output


def ls(server: Server) -> list[list[str]]:
    lines = run("ls", "--directory", server.directory).splitlines()
    return [line.split() for line in lines]


def test_ls_shows_groups_and_devices_as_a_table(server: Server) -> None:
    rows = ls(server)
    assert rows[0] == ["GROUP", "OWNER", "MODE", "VIABLE", "IN", "USE", "BY", "DEVICE", "MODEL", "DRIVER"]
    assert rows[1][0] == "26" and rows[1][3:] == ["yes", "-", EDU, "edu", "vfio-pci"]
    assert rows[2] == ["0000:06:0d.1", "-", "pci-stub"]
    assert rows[4][0] == "28" and rows[4][3] == "no"


def test_ls_tells_which_process_has_a_group(server: Server, root: vfiod.Root) -> None:
    with root.open_group(26):
        assert f"{os.getpid()}" in ls(server)[1]
    assert f"{os.getpid()}" not in ls(server)[1]
    with server.device(SCRATCH):
        assert f"{os.getpid()}" in ls(server)[3]


def test_ls_prints_what_the_server_says_as_json(server: Server, root: vfiod.Root) -> None:
    assert json.loads(run("ls", "--json", "--directory", server.directory)) == root.topology()


def test_the_demo_goes_the_whole_way_and_closes_in_every_order(server: Server) -> None:
    output = run("demo", "--directory", server.directory)
    assert "ioctl(VFIO_IOMMU_MAP_DMA)" in output
    assert "all 24 orders" in output
    assert "another" not in output


def test_the_demo_says_when_the_device_is_taken(server: Server, root: vfiod.Root) -> None:
    with root.open_group(26):
        assert run("demo", "--directory", server.directory, status=1) == (
            "vfioctl: open group 26: device or resource busy\n"
        )


def test_info_shows_regions_and_interrupts(server: Server) -> None:
    output = run("info", SCRATCH, "--directory", server.directory)
    assert output.startswith(f"{SCRATCH}  1234:5c7a  group 27\n")
    assert "0x1000-0x1fffff" in output
    assert ["msi-x", "8"] in [line.split() for line in output.splitlines()]


def test_drivers_are_unbound_and_bound(server: Server) -> None:
    run("unbind", FOREIGN, "--directory", server.directory)
    assert ls(server)[4][3] == "yes"
    run("bind", FOREIGN, "e1000", "--directory", server.directory)
    assert ls(server)[4][3] == "no"


def test_a_foreign_driver_is_forced_into_a_group_in_use_only_by_force(
    server: Server, root: vfiod.Root
) -> None:
    run("unbind", FOREIGN, "--directory", server.directory)
    with attach(root, "0000:08:00.0"):
        assert "in use" in run("bind", FOREIGN, "e1000", "--directory", server.directory, status=1)
        run("bind", FOREIGN, "e1000", "--force", "--directory", server.directory)
        assert ls(server)[4][3] == "no"


def test_a_device_is_added_and_removed(server: Server, root: vfiod.Root) -> None:
    device = '{"address": "0000:09:00.0", "model": "edu"}'
    run("add", 29, device, "--directory", server.directory)
    with server.device("0000:09:00.0") as added:
        assert added.region(0).read32(0) == 0x010000ED
    assert "at this address" in run("add", 29, device, "--directory", server.directory, status=1)
    run("remove", "0000:09:00.0", "--directory", server.directory)
    assert not server.device_socket("0000:09:00.0").exists()
    assert all(row[0] != "29" for row in ls(server))


def test_a_removal_asks_the_user_waits_and_succeeds_once_the_user_closes(
    server: Server, root: vfiod.Root
) -> None:
    with attach(root, SCRATCH) as (_, group):
        with group.open_device(SCRATCH) as device, vfiod.EventFD() as request:
            device.set_triggers(IRQ.REQ, [request])
            with start("remove", SCRATCH, "--timeout", 60, "--directory", server.directory) as removal:
                assert request.wait(10) >= 1
                assert device.config.read16(0) == 0x1234
                assert removal.poll() is None
                device.close()
                assert removal.wait(30) == 0
    assert not server.device_socket(SCRATCH).exists()


def test_a_removal_times_out_and_leaves_the_device_as_it_was(server: Server, root: vfiod.Root) -> None:
    with attach(root, SCRATCH) as (_, group), group.open_device(SCRATCH) as device:
        assert run("remove", SCRATCH, "--timeout", 1, "--directory", server.directory, status=1) == (
            f"vfioctl: remove device {SCRATCH}: its user did not let go of it in 1 s; it is as before\n"
        )
        assert device.config.read16(0) == 0x1234
        group.open_device(SCRATCH).close()


@pytest.mark.parametrize("command", [["ls"], ["demo"], ["info", EDU], ["remove", EDU], ["unbind", EDU]])
def test_a_missing_server_is_one_sentence(command: list[str], tmp_path: pathlib.Path) -> None:
    assert run(*command, "--directory", tmp_path, status=1) == (
        f"vfioctl: no vfiod serves {tmp_path}: start one with vfiod --directory {tmp_path}\n"
    )


@pytest.mark.parametrize("command", [["remove"], ["unbind"], ["bind"], ["info"]])
def test_a_missing_device_is_one_sentence(server: Server, command: list[str]) -> None:
    driver = ["e1000"] if command == ["bind"] else []
    sentence = run(*command, "0000:99:00.0", *driver, "--directory", server.directory, status=1)
    assert sentence.startswith("vfioctl: ") and "0000:99:00.0" in sentence
    assert sentence.count("\n") == 1


def test_help_teaches_and_completion_is_there(server: Server) -> None:
    assert "vfioctl unbind 0000:08:00.1" in run("--help")
    for command in ("ls", "demo", "info", "bind", "unbind", "add", "remove"):
        assert "OVERVIEW" in run(command, "--help")
    assert "vfioctl" in run("--generate-completion-script", "bash")
    assert "compdef" in run("--generate-completion-script", "zsh")
