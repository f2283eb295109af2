"""The repository's `protocol/`: its facts, and its vectors as something to run."""

import dataclasses
import json
import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vfiod
from vfiod import wire

DIRECTORY = Path(__file__).resolve().parents[3] / "protocol"
FACTS: dict[str, Any] = json.loads((DIRECTORY / "protocol.json").read_text())
COMMANDS = {command["name"]: command for command in FACTS["commands"]}
FLAGS = {flag["name"]: int(flag["value"], 0) for flag in FACTS["flags"]}
ERRORS = {error["name"]: error["number"] for error in FACTS["errors"]}
INTEGERS = {"u16": "H", "u32": "I", "u64": "Q", "s64": "q"}
SETUPS = json.loads((DIRECTORY / "vectors" / "setups.json").read_text())["setups"]
VECTORS = {
    path.name: json.loads(path.read_text())
    for path in sorted((DIRECTORY / "vectors").glob("*.json"))
    if path.name != "setups.json"
}
CASES = [(file, case) for file, vectors in VECTORS.items() for case in vectors["cases"]]
TIMEOUT = 20.0


def number(text: str) -> int:
    return int(text, 0)


def field_format(fields: list[dict[str, Any]]) -> str:
    """The fixed part of a structure, as `struct` writes it."""
    return "=" + "".join(INTEGERS[field["type"]] for field in fields if field["type"] in INTEGERS)


def decode(fields: list[dict[str, Any]], data: bytes) -> dict[str, Any]:
    """The fields that are there; fails unless they are the whole of `data`."""
    values: dict[str, Any] = {}
    end = 0
    for field in fields:
        start = field["offset"]
        assert start == end, f"{field['name']} begins at {start}, not at {end}"
        if start == len(data):
            break
        if field["type"] in INTEGERS:
            (values[field["name"]],) = struct.unpack_from("=" + INTEGERS[field["type"]], data, start)
            end = start + field["size"]
        else:
            end = len(data)
            rest = data[start:]
            values[field["name"]] = rest.hex() if field["type"] == "bytes" else text(rest)
    assert end == len(data), f"{len(data)} bytes, of which the fields are {end}"
    return values


def text(data: bytes) -> str:
    assert data.endswith(b"\0")
    return data[:-1].decode()


def unmask(pattern: str) -> tuple[bytes, str]:
    """A pattern's bytes, 0 where any may be, and the pattern without blanks and without `*`."""
    digits = pattern.replace(" ", "").removesuffix("*")
    return bytes.fromhex(digits.replace(".", "0")), digits


def matches(pattern: str, data: bytes) -> bool:
    _, digits = unmask(pattern)
    found = data.hex()
    if pattern.endswith("*"):
        found = found[: len(digits)]
    return len(found) == len(digits) and all(d in (".", f) for d, f in zip(digits, found))


def exchanges() -> Iterator[dict[str, Any]]:
    """Every step that sends or receives a message, of cases and of setups."""
    for steps in [*SETUPS.values(), *(case["steps"] for _, case in CASES)]:
        for step in steps:
            if isinstance(step, dict) and "on" in step:
                yield step


def request(step: dict[str, Any]) -> bytes:
    """A request: what the client sends, or without that what the server does."""
    if "send" not in step:
        return unmask(step["expect"])[0]
    return bytes.fromhex(step["send"] if isinstance(step["send"], str) else "".join(step["send"]))


class Runner:
    """Runs the steps of one case against the server of `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.connections: dict[str, vfiod.Connection] = {}
        self.descriptors: dict[str, vfiod.connection.Descriptor] = {}
        self.asked: dict[str, int] = {}
        """The id of the server's last command on each connection."""

    def run(self, steps: list[Any]) -> None:
        for step in steps:
            if isinstance(step, str):
                self.run(SETUPS[step])
                continue
            try:
                self.step(step)
            except Exception as error:
                raise AssertionError(f"{error} at {json.dumps(step)}") from error

    def step(self, step: dict[str, Any]) -> None:
        if "connect" in step:
            path = self.directory / step["to"]
            self.connections[step["connect"]] = vfiod.Connection.open(path, TIMEOUT)
        elif "close" in step:
            self.connections.pop(step["close"]).close()
        elif "closed" in step:
            try:
                self.connections[step["closed"]].receive()
            except vfiod.Disconnected:
                return
            raise AssertionError("still open")
        elif "signalled" in step:
            self.wait_for(step["signalled"], step["times"])
        elif "signal" in step:
            os.eventfd_write(self.descriptor(step["signal"]), 1)
        elif "store" in step:
            os.pwrite(self.descriptor(step["store"]), bytes.fromhex(step["bytes"]), step["at"])
        elif "load" in step:
            expected = bytes.fromhex(step["bytes"])
            found = os.pread(self.descriptor(step["load"]), len(expected), step["at"])
            assert found == expected, f"found {found.hex()}"
        if "send" in step:
            self.send(step)
        if "expect" in step:
            self.receive(step)

    def send(self, step: dict[str, Any]) -> None:
        pieces = [step["send"]] if isinstance(step["send"], str) else step["send"]
        for index, piece in enumerate(pieces):
            numbers: list[int] = []
            if index == step.get("with_piece", 0):
                numbers = [self.descriptor(name) for name in step.get("descriptors", [])]
            if piece.startswith("...."):
                piece = struct.pack("=H", self.asked[step["on"]]).hex() + piece[4:]
            self.connections[step["on"]].send_raw(bytes.fromhex(piece), numbers)

    def receive(self, step: dict[str, Any]) -> None:
        reply = self.connections[step["on"]].receive()
        data = wire.HEADER.pack(*dataclasses.astuple(reply.header)) + reply.payload
        assert matches(step["expect"], data), f"received {data.hex(' ')}"
        if reply.header.flags & wire.TYPE_MASK == wire.TYPE_COMMAND:
            self.asked[step["on"]] = reply.header.id
        names = step.get("keeps", [])
        assert len(reply.descriptors) == len(names), f"{len(reply.descriptors)} descriptors"
        for name in names:
            descriptor = reply.descriptors.pop(0)
            if name in self.connections:
                self.connections.pop(name).close()
            if name == "region" or name.startswith("bell"):
                self.descriptors.setdefault(name, descriptor)
                if self.descriptors[name] is not descriptor:
                    descriptor.close()
            else:
                self.connections[name] = vfiod.Connection.adopt(descriptor, TIMEOUT)

    def wait_for(self, name: str, times: int) -> None:
        """The eventfd was signalled so many times since it was last asked."""
        descriptor = self.descriptor(name)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        ready = poll.poll(TIMEOUT * 1000 if times else 0)
        count = os.eventfd_read(descriptor) if ready else 0
        assert count == times, f"signalled {count} times"

    def descriptor(self, name: str) -> int:
        """A connection's or a made thing's, which is made when it is first named."""
        if name in self.connections:
            return self.connections[name].fileno()
        if name not in self.descriptors:
            self.descriptors[name] = vfiod.connection.Descriptor(self.make(name))
        return self.descriptors[name].fileno()

    def make(self, name: str) -> int:
        if name == "memory" or name == "guest memory":
            size = 1 << 20 if name == "memory" else 1 << 28
            number = os.memfd_create(name)
            os.truncate(number, size)
            return number
        if name == "read-only memory":
            return os.open(f"/proc/self/fd/{self.descriptor('memory')}", os.O_RDONLY | os.O_CLOEXEC)
        if name in ("event", "second event"):
            return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if name == "null":
            return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        if name == "socket":
            one, other = socket.socketpair()
            other.close()
            return one.detach()
        raise AssertionError(f"{name} is nothing that a vector knows")

    def close(self) -> None:
        for connection in self.connections.values():
            connection.close()
        for descriptor in self.descriptors.values():
            descriptor.close()
