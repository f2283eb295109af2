"""vfioctl's tools for looking into devices: trace, lspci, region, irq."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
import vfiod
from support import (
    EDU,
    FOREIGN,
    SCRATCH,
    SECOND_EDU,
    STUB,
    TIMEOUT,
    EduRegister,
    Server,
    attach,
    let_others_in,
)
from test_vfioctl import VFIOCTL, run, start
from vfiod.wire import IRQ


class Log:
    """A `vfioctl trace` that has begun."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        assert process.stderr is not None and process.stdout is not None
        assert process.stderr.readline().startswith("tracing ")
        self.output = process.stdout

    def line(self) -> str:
        return self.output.readline().rstrip("\n")

    def json(self) -> "dict[str, object]":
        value: dict[str, object] = json.loads(self.line())
        return value

    def interrupt(self) -> "tuple[int, str]":
        """Ctrl-C: the status, and what was printed at the end."""
        self.process.send_signal(signal.SIGINT)
        output, errors = self.process.communicate(timeout=TIMEOUT)
        assert errors == ""
        return self.process.returncode, output


@contextlib.contextmanager
def tracing(server: Server, *arguments: object) -> Iterator[Log]:
    with start("trace", *arguments, "--directory", server.directory) as process:
        try:
            yield Log(process)
        finally:
            process.kill()


# trace


def test_trace_shows_messages_decoded_and_ends_with_ctrl_c(server: Server) -> None:
    with tracing(server, EDU) as log:
        with server.device(EDU) as device:
            device.region(0).write32(EduRegister.LIVENESS, 0x1234)
            with pytest.raises(vfiod.VFIOError):
                device.region(1).read32(0)
            with vfiod.EventFD() as event:
                device.set_triggers(IRQ.MSI, [event])
        lines = [log.line() for _ in range(9)]
        assert log.interrupt() == (0, "")
    number = lines[0].split()[1]
    assert number.startswith("#")
    # Without the time, and the time that the request took.
    words = [line.split(" ", 2)[2].split(" (")[0] for line in lines]
    assert words[0].startswith(f"{number} > version major=0 minor=")
    assert words[1].startswith(f"{number} < version reply major=0 minor=")
    assert words[2:] == [
        f"{number} > region-write offset=0x4 region=bar0 count=4 data=0x00001234",
        f"{number} < region-write reply offset=0x4 region=bar0 count=4",
        f"{number} > region-read offset=0x0 region=bar1 count=4",
        f"{number} < region-read reply EINVAL",
        f"{number} > device-set-irqs argsz=20 flags=eventfd|trigger index=msi start=0 count=1 descriptors=1",
        f"{number} < device-set-irqs reply",
        f"{number} closed",
    ]
    assert all(line.endswith(" us)") for line in lines[1::2])


def test_trace_shows_what_was_asked_for(server: Server) -> None:
    only = ("--only", "region-write", "--only", "device-reset", "--count", 4)
    with tracing(server, EDU, *only) as log, server.device(EDU) as device:
        device.region(0).read32(0)
        device.region(0).write32(EduRegister.LIVENESS, 1)
        device.reset()
        lines = [line.split() for line in log.output]
        assert log.process.wait(TIMEOUT) == 0
    assert [line[3] for line in lines] == ["region-write"] * 2 + ["device-reset"] * 2


def test_trace_shows_a_region_with_the_errors_of_its_accesses(server: Server) -> None:
    with tracing(server, EDU, "--region", "bar0", "--count", 4) as log, server.device(EDU) as device:
        device.config.read32(0)
        device.region(0).read32(0)
        with pytest.raises(vfiod.VFIOError):
            device.region(0).read(1 << 20, 4)
        lines = log.output.readlines()
    assert [" region=bar0 " in line for line in lines] == [True, True, True, False]
    assert "region-read reply EINVAL" in lines[3]


def test_trace_prints_a_json_object_per_line(server: Server) -> None:
    with tracing(server, SCRATCH, "--json") as log:
        with server.device(SCRATCH) as device:
            device.config.read16(4)
            device.connection.post(13)
        lines = [log.json() for _ in range(6)]
        assert log.interrupt() == (0, "")
    request, reply, reset, closed = lines[2:]
    assert {name: request[name] for name in ("from", "type", "command", "number", "errno")} == {
        "from": "client",
        "type": "request",
        "command": "region-read",
        "number": 9,
        "errno": None,
    }
    assert request["fields"] == {"offset": 4, "region": 7, "count": 2}
    assert reply["fields"] == {"offset": 4, "region": 7, "count": 2, "data": "0300"}
    assert (reply["from"], reply["type"]) == ("server", "reply")
    assert isinstance(reply["time"], int) and isinstance(request["time"], int)
    assert reply["latency"] == reply["time"] - request["time"]
    assert (reset["command"], reset["no_reply"]) == ("device-reset", True)
    assert closed["closed"] is True and closed["connection"] == request["connection"]


def test_trace_ends_when_the_device_is_removed(server: Server, root: vfiod.Root) -> None:
    with tracing(server, SCRATCH) as log:
        root.remove_device(SCRATCH)
        assert log.process.wait(TIMEOUT) == 0


def test_trace_loses_what_it_cannot_print_and_says_how_much(server: Server) -> None:
    with tracing(server, SCRATCH, "--json") as log, server.device(SCRATCH) as device:
        count = 10_000
        for _ in range(count):
            device.region(0).read(0, 1024)
        # Nothing was read here meanwhile, and what vfioctl prints has filled the pipe.
        seen = lost = 0
        while seen + lost < 2 * count + 2:
            line = log.json()
            number = line.get("lost", 0)
            assert isinstance(number, int)
            seen, lost = (seen, lost + number) if number else (seen + 1, lost)
        assert lost > 0 and seen > 1000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["0000:99:00.0"], "vfioctl: there is no device 0000:99:00.0: see vfioctl ls\n"),
        ([EDU, "--only", "nothing"], "nothing is no command: they are version, dma-map,"),
        ([EDU, "--count", "0"], "--count 0 is less than 1"),
        ([EDU, "--region", "bar9"], "bar9"),
    ],
)
def test_trace_refuses_in_one_sentence(server: Server, arguments: list[str], sentence: str) -> None:
    status = 1 if sentence.startswith("vfioctl") else 64
    assert sentence in run("trace", *arguments, "--directory", server.directory, status=status)


# lspci


def test_lspci_lists_devices(server: Server) -> None:
    assert run("lspci", "--directory", server.directory).splitlines() == [
        f"{EDU} Unclassified device [00ff]: 1234:11e8 (rev 10)",
        f"{STUB} (driver pci-stub)",
        f"{SCRATCH} Unassigned class [ff00]: 1234:5c7a",
        f"{SECOND_EDU} Unclassified device [00ff]: 1234:11e8 (rev 10)",
        f"{FOREIGN} (driver e1000)",
    ]


def test_lspci_decodes_a_device_in_use(server: Server) -> None:
    with server.device(SCRATCH) as device:
        device.enable_bus_master()
        output = run("lspci", "-v", SCRATCH, "--directory", server.directory)
    lines = [line.strip() for line in output.splitlines()]
    assert lines[0] == f"{SCRATCH} Unassigned class [ff00]: 1234:5c7a"
    assert any(f"in use by {os.getpid()} (" in line for line in lines)
    assert any(line.startswith("Control: I/O+ Mem+ BusMaster+ ") for line in lines)
    assert any(line.startswith("Status: INTx- Cap+ ") for line in lines)
    for line in (
        "Interrupt: pin A routed to IRQ 0",
        "Region 0: Memory at 00000000 (32-bit, non-prefetchable) [size=1M]",
        "Region 2: Memory at 0000000000000000 (64-bit, prefetchable) [size=2M] [mappable=0x1000-0x1fffff]",
        "Region 4: Memory at 00000000 (32-bit, non-prefetchable) [size=4K]",
        "Capabilities: [40] MSI-X: Enable- Masked- Count=8",
        "Vector table: BAR=4 offset=00000000",
        "Pending bits: BAR=4 offset=00000800",
        "VFIO interrupts: intx 1, msix 8, err 1, req 1",
        "Driver: vfio-pci",
    ):
        assert line in lines


def test_lspci_decodes_msi_as_the_driver_has_set_it(server: Server) -> None:
    with server.device(EDU) as device:
        device.config.write32(0x44, 0xFEE00000)
        device.config.write16(0x4C, 0x4041)
        device.config.write16(0x42, 0x81)
        output = run("lspci", "--verbose", EDU, "--directory", server.directory)
    assert "Capabilities: [40] MSI: Enable+ Count=1/1 Maskable- 64bit+" in output
    assert "Address: 00000000fee00000  Data: 4041" in output


def test_lspci_dumps_configuration_space(server: Server) -> None:
    with server.device(EDU) as device:
        bytes_ = device.config.read(0, 256)
    lines = run("lspci", "-x", EDU, "--directory", server.directory).splitlines()[1:17]
    assert [line.split(": ")[0] for line in lines] == [f"{offset:02x}" for offset in range(0, 256, 16)]
    assert bytes.fromhex("".join(line.split(": ")[1] for line in lines)) == bytes_


def test_lspci_says_what_has_no_configuration_space(server: Server) -> None:
    assert run("lspci", STUB, "--directory", server.directory, status=1) == (
        f"vfioctl: {STUB} is not bound to vfio-pci: see vfioctl ls\n"
    )


@pytest.mark.vfiod(
    {"groups": [{"id": 5, "mode": "0666", "devices": [{"address": SCRATCH, "model": "scratch"}]}]}
)
def test_who_is_no_administrator_sees_devices_that_nobody_uses_and_traces_none(server: Server) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    let_others_in(server)
    (server.directory / "devices").chmod(0o755)

    def run_as_nobody(*arguments: str) -> "tuple[int, str]":
        command = [str(VFIOCTL), *arguments, "--directory", str(server.directory)]
        try:
            result = subprocess.run(
                command, user=65534, group=65534, extra_groups=[], capture_output=True, text=True
            )
        except PermissionError:
            pytest.skip("others may not run vfioctl where it is")
        return result.returncode, result.stdout + result.stderr

    status, output = run_as_nobody("lspci", "-v", SCRATCH)
    assert status == 0 and "MSI-X: Enable- Masked- Count=8" in output
    assert "[size=2M] [mappable=0x1000-0x1fffff]" in output
    with server.device(SCRATCH):
        status, output = run_as_nobody("lspci", SCRATCH)
        assert status == 1 and f"{SCRATCH} is in use by {os.getpid()}" in output
        status, output = run_as_nobody("lspci")
        assert status == 0 and output.startswith(f"{SCRATCH} ({SCRATCH} is in use by ")
    assert run_as_nobody("trace", SCRATCH) == (
        1,
        f"vfioctl: trace {SCRATCH}: only root and the user that runs the server may\n",
    )


# region


def test_registers_are_read_and_written(server: Server) -> None:
    directory = ("--directory", server.directory)
    assert run("region", "read", EDU, "bar0", 0, *directory) == "0x010000ed\n"
    run("region", "write", EDU, "bar0", 4, "0x1234", *directory)
    assert run("region", "read", EDU, "bar0", "0x4", *directory) == "0xffffedcb\n"
    run("region", "write", EDU, "bar0", "0x80", "0x1122334455667788", "--size", 8, *directory)
    assert run("region", "read", EDU, 0, "0x80", "--size", 8, *directory) == "0x1122334455667788\n"
    assert run("region", "read", EDU, "config", 2, "--size", 2, *directory) == "0x11e8\n"
    assert run("region", "read", EDU, "config", 8, "--size", 1, *directory) == "0x10\n"


def test_longer_reads_are_dumped(server: Server) -> None:
    with server.device(SCRATCH) as device:
        device.region(0).write(0x1000, bytes(range(40)))
    dump = run("region", "read", SCRATCH, "bar0", "0x1000", "--count", 40, "--directory", server.directory)
    assert dump.splitlines() == [
        "1000: " + bytes(range(16)).hex(" "),
        "1010: " + bytes(range(16, 32)).hex(" "),
        "1020: " + bytes(range(32, 40)).hex(" "),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["read", EDU, "bar7", "0"],
        ["read", EDU, "bar0", "-1"],
        ["read", EDU, "bar0", "0", "--size", "3"],
        ["read", EDU, "bar0", "0", "--count", "3"],
        ["write", EDU, "bar0", "4", "0x100000000"],
        ["write", EDU, "bar0", "4"],
    ],
)
def test_what_is_no_access_is_refused(server: Server, arguments: list[str]) -> None:
    run("region", *arguments, "--directory", server.directory, status=64)


def test_an_access_outside_a_region_is_one_sentence(server: Server) -> None:
    sentence = run("region", "read", EDU, "bar0", "0x100000", "--directory", server.directory, status=1)
    assert "0x100000" in sentence and "invalid argument" in sentence and sentence.count("\n") == 1


@pytest.mark.parametrize(
    "command", [["region", "read", SCRATCH, "bar0", "0"], ["irq", "trigger", SCRATCH, "msix"]]
)
def test_a_device_in_use_is_told_with_its_user(
    server: Server, root: vfiod.Root, command: list[str]
) -> None:
    with attach(root, SCRATCH):
        sentence = run(*command, "--directory", server.directory, status=1)
    assert sentence.startswith(f"vfioctl: {SCRATCH} is in use by {os.getpid()} (")
    assert sentence.endswith("), which has group 27\n")


def test_a_device_of_a_group_that_is_not_viable_is_told(server: Server) -> None:
    assert run("region", "read", SECOND_EDU, "bar0", 0, "--directory", server.directory, status=1) == (
        "vfioctl: group 28 is not viable: see vfioctl ls\n"
    )


# irq


def test_interrupts_are_listed(server: Server) -> None:
    lines = run("irq", SCRATCH, "--directory", server.directory).splitlines()
    assert [line.split(maxsplit=2) for line in lines] == [
        ["INTERRUPT", "COUNT", "FLAGS"],
        ["intx", "1", "eventfd, maskable, automasked"],
        ["msix", "8", "eventfd, maskable"],
        ["err", "1", "eventfd, noresize"],
        ["req", "1", "eventfd, noresize"],
    ]


def test_an_interrupt_is_triggered_and_arrives(server: Server) -> None:
    assert run("irq", "trigger", SCRATCH, "msix", 3, "--directory", server.directory) == (
        f"{SCRATCH}: msix 3, once\n"
    )


@pytest.mark.parametrize("kind", ["msi", "intx"])
def test_an_interrupt_that_the_device_raises_is_waited_for(server: Server, kind: str) -> None:
    wait = ("irq", "wait", EDU, kind, "--write", "bar0:0x60=1", "--directory", server.directory)
    assert run(*wait) == f"{EDU}: {kind} 0, once\n"


def test_an_interrupt_that_does_not_come_is_one_sentence(server: Server) -> None:
    wait = ("irq", "wait", SCRATCH, "msix", "--timeout", 0, "--directory", server.directory)
    assert run(*wait, status=1) == f"vfioctl: {SCRATCH}: no msix 0 in 0 s\n"


# help


def test_help_and_completion_know_the_tools() -> None:
    for command in (["trace"], ["lspci"], ["region", "read"], ["region", "write"], ["irq", "wait"]):
        assert "OVERVIEW" in run(*command, "--help")
    for shell in ("bash", "zsh"):
        script = run("--generate-completion-script", shell)
        assert "trace" in script and "region-write" in script and "bar0" in script
