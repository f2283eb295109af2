"""An unmodified Linux under an unmodified QEMU, with devices of vfiod: see Tests/guest/run.

    python scenario.py PACKAGES LOGS
"""

import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from machine import RESERVED, Machine, Packages

from vfiod.testing import Server

TOPOLOGY = {
    "groups": [
        {
            "id": 1,
            "devices": [
                {"address": "0000:01:00.0", "model": "edu"},
                {"address": "0000:01:00.1", "model": "scratch"},
            ],
        },
        {"id": 2, "devices": [{"address": "0000:02:00.0", "model": "edu"}]},
    ]
}
"""Two devices that share a group, and one by itself."""

ADDRESSES = ["0000:01:00.0", "0000:01:00.1", "0000:02:00.0"]
"""Of the devices that each QEMU takes."""

EDU, SCRATCH, LONE_EDU = "0000:00:04.0", "0000:00:05.0", "0000:00:06.0"
"""Where the guest finds them."""

LSPCI = {
    EDU: [
        r"\[1234:11e8\] \(rev 10\)",
        r"Subsystem: .*1af4:1100",
        r"Interrupt: pin A routed to IRQ \d+",
        r"Region 0: Memory at [0-9a-f]+ \(32-bit, non-prefetchable\) .*\[size=1M\]",
        r"MSI: Enable- Count=1/1",
    ],
    SCRATCH: [
        r"\[1234:5c7a\]",
        r"Interrupt: pin A routed to IRQ \d+",
        r"Region 0: Memory at [0-9a-f]+ \(32-bit, non-prefetchable\) .*\[size=1M\]",
        r"Region 2: Memory at [0-9a-f]+ \(64-bit, .*\[size=2M\]",
        r"Region 4: Memory at [0-9a-f]+ \(32-bit, non-prefetchable\)",
        r"MSI-X: Enable- Count=8 ",
        r"Vector table: BAR=4 offset=00000000",
        r"PBA: BAR=4 offset=00000800",
    ],
}
"""What `lspci -vv -nn` says of each, as patterns."""
LSPCI[LONE_EDU] = LSPCI[EDU]


class Report:
    """The sentences so far."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0

    def check(self, sentence: str, holds: bool, found: object = "") -> None:
        """Prints a sentence, with what was found if it doesn't hold."""
        self.line(f"✔ {sentence}" if holds else f"✘ {sentence}: {found}")

    def line(self, line: str) -> None:
        """Prints a sentence, a heading, or what else a program in the guest printed."""
        self.passed += line.startswith("✔")
        self.failed += line.startswith("✘")
        print(line, flush=True)


class Scenario:
    """The servers and machines, one after the other."""

    def __init__(self, packages: Packages, logs: Path, temporary: Path, report: Report) -> None:
        self.packages = packages
        self.logs = logs
        self.report = report
        self.directory = temporary / "vfiod"
        self.initramfs = temporary / "initramfs"
        packages.make_initramfs(self.initramfs)

    @contextmanager
    def server(self, name: str) -> Iterator[Server]:
        with Server(self.directory, topology=TOPOLOGY) as server:
            try:
                yield server
            finally:
                (self.logs / f"{name}.log").write_text(server.output())

    def machine(self, name: str, shared: bool = True) -> Machine:
        sockets = [self.directory / "devices" / f"{address}.sock" for address in ADDRESSES]
        return Machine(self.packages, self.initramfs, sockets, self.logs, name, shared)

    def run(self) -> None:
        with ExitStack() as survivors:
            with self.server("first-server") as server:
                self.report.line("Linux boots")
                with self.machine("first") as machine:
                    machine.wait_until_up()
                    level = server.descriptors()
                    self.look(machine)
                    self.drive(machine)
                    self.refuse_another()
                    self.report.line("The guest reboots")
                    self.reboot(machine, server, level)
                    self.report.line("QEMU is killed while edu copies")
                    self.kill_while_copying(machine, server)
                self.report.line("A new QEMU takes the same sockets")
                second = survivors.enter_context(self.machine("second"))
                second.wait_until_up()
                self.check_reset(second, "edu is reset")
                self.check_memory(second, "scratch's memory is as the killed guest left it")
                self.drive(second)
                self.check_quiet(second)
                self.report.line("The server is restarted while the guest runs")
                server.stop()
                self.report.check("the server stops, and takes its sockets with it", True)
            with self.server("second-server") as server:
                self.outlive(second)
                self.report.line("A new QEMU takes the new server's sockets, and doesn't share its memory")
                with self.machine("third", shared=False) as machine:
                    machine.wait_until_up()
                    self.look(machine)
                    self.drive(machine)
                    self.power_off(machine)
                self.check_quiet(machine)
                self.check_released(server)

    def look(self, machine: Machine) -> None:
        """At the devices as the guest's lspci shows them."""
        for device, patterns in LSPCI.items():
            shown = "\n".join(machine.run(f"lspci -vv -nn -s {device} 2>/dev/null"))
            missing = [pattern for pattern in patterns if not re.search(pattern, shown)]
            sentence = f"lspci shows {device} as it is configured"
            self.report.check(sentence, not missing, f"nothing like {missing} in\n{shown}")

    def drive(self, machine: Machine) -> None:
        """Each device, from inside the guest."""
        for device in [EDU, LONE_EDU]:
            self.report.line(f"  edu at {device}")
            for line in machine.lines(f"edu test {device} {RESERVED:#x}"):
                self.report.line(line)
        machine.run(f"scratch fill {SCRATCH}")
        self.check_memory(machine, "scratch's memory keeps what the guest writes, in every size")

    def refuse_another(self) -> None:
        with self.machine("another") as another:
            status = another.wait()
        said = another.messages.read_text()
        told = status != 0 and "Device or resource busy" in said
        self.report.check("another QEMU is told at once that the devices are busy", told, said)

    def reboot(self, machine: Machine, server: Server, level: Counter[str]) -> None:
        before = machine.connections()
        machine.send("reboot -f")
        machine.wait_until_up()
        now = machine.connections()
        self.report.check("QEMU keeps its connections", now == before, f"{now}, not {before}")
        held = server.descriptors()
        sentence = "the server holds the descriptors that it held after the first boot, no more"
        self.report.check(sentence, held == level, f"{held}, not {level}")
        self.check_reset(machine, "edu is reset")
        self.check_memory(machine, "scratch's memory is as the guest left it")
        self.drive(machine)

    def kill_while_copying(self, machine: Machine, server: Server) -> None:
        machine.send(f"edu copy {EDU} {RESERVED:#x}")
        if (line := machine.next_line()) != "copying":
            pytest.fail(f"edu doesn't copy: {line}")
        machine.kill()
        self.check_quiet(machine)
        self.check_released(server)

    def outlive(self, machine: Machine) -> None:
        """A server that has gone, and come again: QEMU doesn't connect to it."""
        found = machine.run(f"edu read {EDU} 0")
        self.report.check("edu answers the guest no more", found == ["0xFFFFFFFF"], found)
        self.report.check("the guest lives on", machine.run("echo here") == ["here"])
        self.power_off(machine)

    def power_off(self, machine: Machine) -> None:
        machine.send("poweroff -f")
        status = machine.wait()
        self.report.check("the guest powers off", status == 0, f"QEMU's status is {status}")

    def check_reset(self, machine: Machine, sentence: str) -> None:
        """By edu's liveness register, which `drive` left otherwise."""
        found = machine.run(f"edu read {EDU} 4")
        self.report.check(sentence, found == ["0x00000000"], found)

    def check_memory(self, machine: Machine, sentence: str) -> None:
        """What `drive` wrote to scratch, at its five places."""
        written = ["0x0123456789ABCDEF", "0x00327654FEDCBA98", "0x0000000000000000"]
        found = " ".join(machine.run(f"scratch show {SCRATCH}")).split()
        self.report.check(sentence, found == written * 5, found)

    def check_quiet(self, machine: Machine) -> None:
        said = machine.messages.read_text()
        self.report.check("QEMU had nothing to complain about", not said, said)

    def check_released(self, server: Server) -> None:
        held = ""
        try:
            server.check_descriptors()
        except pytest.fail.Exception as error:
            held = str(error)
        self.report.check("the server has let go of all that QEMU gave it", not held, held)


def main() -> None:
    packages, logs = Packages(Path(sys.argv[1]).absolute()), Path(sys.argv[2]).absolute()
    report = Report()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vfiod-guest-") as temporary:
        scenario = Scenario(packages, logs, Path(temporary), report)
        try:
            scenario.run()
        except pytest.fail.Exception as error:
            report.line(f"✘ {error}")
    seconds = time.monotonic() - start
    if report.failed:
        for log in sorted(logs.iterdir()):
            print(f"--- the end of {log}", *log.read_text(errors="replace").splitlines()[-30:], sep="\n")
        sys.exit(f"{report.failed} failed, {report.passed} passed in {seconds:.0f} s")
    print(f"{report.passed} passed in {seconds:.0f} s")


if __name__ == "__main__":
    main()
