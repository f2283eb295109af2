"""QEMU with a small Linux in it, whose shell a test commands."""

import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BOOT = 90.0
"""Seconds after which a guest that doesn't come up has failed; it takes about 10."""

COMMAND = 60.0
"""Seconds after which a command in the guest has failed."""

RESERVED = 0x8000000
"""The address of memory that the guest's kernel leaves alone, below 2^28, where edu can reach it."""

INSIDE = Path(__file__).parent / "inside"


class Packages:
    """What `fetch` has unpacked."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.kernel = next((directory / "kernel" / "boot").glob("vmlinuz-*"))
        self.modules = next((directory / "kernel").glob("**/modules/*/kernel"))
        libraries = self.root / "usr/lib/x86_64-linux-gnu"
        # They run with their own C library, which is newer than this system's may be.
        loader = libraries / "ld-linux-x86-64.so.2"
        self._loader: list[str | Path] = [loader, "--library-path", libraries]
        self._libraries = libraries
        self._busybox = self.root / "usr/bin/busybox"

    def qemu(self) -> list[str | Path]:
        """The beginning of QEMU's command line."""
        share = self.root / "usr/share"
        program = self.root / "usr/bin/qemu-system-x86_64"
        return [*self._loader, program, "-L", share / "qemu", "-L", share / "seabios"]

    def make_initramfs(self, path: Path) -> None:
        """The guest's files: busybox, lspci and setpci with their libraries, a driver, our programs."""
        tree = path.with_suffix(".d")
        for name in ["bin", "dev", "proc", "sys", "lib", "lib64", "modules", "usr/share/misc"]:
            (tree / name).mkdir(parents=True)
        shutil.copy(self._busybox, tree / "bin")
        shutil.copy(INSIDE / "init", tree)
        for program in ["edu", "scratch"]:
            shutil.copy(INSIDE / program, tree / "bin")
        for program in ["lspci", "setpci"]:
            shutil.copy(self.root / "usr/bin" / program, tree / "bin")
        shutil.copy(next(self.root.glob("usr/share/misc/pci.ids*")), tree / "usr/share/misc")
        # The loader lists the libraries with their paths.
        listed = subprocess.check_output([*self._loader, "--list", tree / "bin/lspci"], text=True)
        for word in listed.split():
            if word.startswith(f"{self._libraries}/"):
                shutil.copy(word, tree / ("lib64" if "/ld-linux-" in word else "lib"))
        for module in self.modules.glob("drivers/uio/uio*.ko.xz"):
            if module.name in ["uio.ko.xz", "uio_pci_generic.ko.xz"]:
                unpacked = subprocess.check_output([self._busybox, "xzcat", module])
                (tree / "modules" / module.stem).write_bytes(unpacked)
        names = "\n".join(os.fspath(each.relative_to(tree)) for each in sorted(tree.glob("**/*")))
        with open(path, "wb") as archive:
            subprocess.run(
                [self._busybox, "cpio", "-o", "-H", "newc", "-R", "0:0"],
                input=names.encode(), stdout=archive, stderr=subprocess.DEVNULL, cwd=tree, check=True,
            )  # fmt: skip
        shutil.rmtree(tree)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"QEMU_MODULE_DIR": os.fspath(self._libraries / "qemu")}


class Machine:
    """A QEMU of its own, and the guest in it; killed at the end of `with` if it still runs.

    `sockets` are those of devices, which the guest finds at 0000:00:04.0, 0000:00:05.0 and so on.
    Unless its memory is `shared`, they reach it by messages to QEMU. The guest's console is in
    `logs`/NAME.console, what QEMU says in `logs`/NAME.qemu.
    """

    def __init__(
        self,
        packages: Packages,
        initramfs: Path,
        sockets: list[Path],
        logs: Path,
        name: str,
        shared: bool,
    ) -> None:
        self.console = logs / f"{name}.console"
        self.messages = logs / f"{name}.qemu"
        devices: list[str] = []
        for slot, path in enumerate(sockets, start=4):
            socket = f'"socket":{{"type":"unix","path":"{path}"}}'
            devices += ["-device", f'{{"driver":"vfio-user-pci","addr":"{slot}",{socket}}}']
        memory = "memory-backend-memfd,share=on" if shared else "memory-backend-ram,share=off"
        with open(self.messages, "wb") as messages:
            self.process = subprocess.Popen(
                [
                    *packages.qemu(), "-nodefaults", "-no-user-config", "-display", "none",
                    "-machine", "q35,memory-backend=ram", "-m", "192M", "-accel", "tcg",
                    "-object", f"{memory},id=ram,size=192M",
                    "-chardev", f"file,id=console,path={self.console}", "-serial", "chardev:console",
                    "-chardev", "stdio,id=commands,signal=off", "-serial", "chardev:commands",
                    "-kernel", packages.kernel, "-initrd", initramfs,
                    "-append", f"console=ttyS0 quiet memmap=64K${RESERVED:#x}",
                    *devices,
                ],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages,
                env=packages.environment,
            )  # fmt: skip
        self._received = b""

    def wait_until_up(self) -> None:
        """Waits for the guest's shell; again after a reboot."""
        while self._line("the guest to come up", BOOT) != "=== up":
            pass

    def run(self, command: str) -> list[str]:
        """Runs a line of the guest's shell, and returns the lines that it prints."""
        return list(self.lines(command))

    def lines(self, command: str) -> Iterator[str]:
        """The same as they come."""
        self.send(command)
        deadline = time.monotonic() + COMMAND
        while not (line := self._line(command, deadline - time.monotonic())).startswith("=== "):
            yield line

    def send(self, command: str) -> None:
        """Has the guest run a line, without waiting."""
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()

    def next_line(self) -> str:
        """Waits for a line that the guest prints."""
        return self._line("a line", COMMAND)

    def _line(self, what: str, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._received:
            if not self._receive(what, deadline):
                pytest.fail(f"QEMU ended while the test waited for {what}")
        line, _, self._received = self._received.partition(b"\n")
        return line.decode(errors="replace").rstrip("\r")

    def _receive(self, what: str, deadline: float) -> bool:
        """Waits for more of what the guest prints. False at QEMU's end."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0, deadline - time.monotonic())):
                pytest.fail(f"waited in vain for {what}, after {self._received!r}")
        read = os.read(self.process.stdout.fileno(), 65536)
        self._received += read
        return bool(read)

    def connections(self) -> set[str]:
        """The sockets that QEMU has open; a connection that is made anew has a new name."""
        found: set[str] = set()
        for entry in os.scandir(f"/proc/{self.process.pid}/fd"):
            if (link := os.readlink(entry.path)).startswith("socket:"):
                found.add(link)
        return found

    def wait(self) -> int:
        """Waits for QEMU's end; its status."""
        deadline = time.monotonic() + COMMAND
        while self._receive("QEMU's end", deadline):
            pass
        return self.process.wait()

    def kill(self) -> None:
        """Kills QEMU as if its power were cut."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
