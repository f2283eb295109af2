"""The vectors of `protocol/`, decoded by the facts there and run against a server."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import protocol
import pytest
from protocol import (
    CASES,
    COMMANDS,
    FACTS,
    FLAGS,
    VECTORS,
    Runner,
    decode,
    exchanges,
    number,
    unmask,
)
from support import Server
from vfiod import wire

pytestmark = pytest.mark.skipif(sys.byteorder == "big", reason="the vectors are little-endian")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """One server for each file of vectors, with its configuration."""
    servers: dict[str, Server] = {}
    yield servers
    for server in servers.values():
        server.stop()
        assert "Fatal error" not in server.output()


def server_of(file: str, servers: dict[str, Server], directory: Path) -> Server:
    if file not in servers:
        arguments = []
        if "configuration" in VECTORS[file]:
            config = directory / "config.json"
            config.write_text(json.dumps(VECTORS[file]["configuration"]))
            arguments = ["--config", str(config)]
        servers[file] = Server(directory / "vfiod", *arguments)
    return servers[file]


NAMES = [f"{file}: {case['name']}" for file, case in CASES]


@pytest.mark.parametrize(("file", "case"), CASES, ids=NAMES)
def test_the_server_answers_as_the_vector_says(
    file: str, case: dict[str, Any], servers: dict[str, Server], tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = server_of(file, servers, tmp_path_factory.mktemp("vectors"))
    runner = Runner(server.directory)
    try:
        runner.run(case["steps"])
        server.check_alive()
    finally:
        runner.close()


def is_asked(step: dict[str, Any]) -> bool:
    """It is a command of the server's that is received."""
    return "request" in step and "send" not in step


def test_every_command_of_the_servers_is_one() -> None:
    for step in exchanges():
        if is_asked(step):
            assert COMMANDS[step["command"]]["direction"] == "server", step
            assert decode(FACTS["header"]["fields"], protocol.request(step)[:16])["flags"] == 0, step


def test_every_request_means_what_the_vector_says() -> None:
    for step in exchanges():
        if "request" not in step:
            continue
        data = protocol.request(step)
        head = decode(FACTS["header"]["fields"], data[: FACTS["header"]["size"]])
        command = COMMANDS[step["command"]]
        assert (head["command"], head["size"]) == (number(command["number"]), len(data)), step
        assert decode(command["request"], data[FACTS["header"]["size"] :]) == step["request"], step


def test_every_reply_means_what_the_vector_says() -> None:
    size = FACTS["header"]["size"]
    for step in exchanges():
        pattern = step.get("expect", step.get("send") if "reply" in step else None)
        if pattern is None or is_asked(step):
            continue
        data, digits = unmask(pattern)
        head = decode(FACTS["header"]["fields"], data[:size])
        if "command" in step:
            assert head["command"] == number(COMMANDS[step["command"]]["number"]), step
        if not pattern.endswith("*"):
            assert head["size"] == len(data), step
        if "errno" in step:
            assert head["flags"] == FLAGS["REPLY"] | FLAGS["ERROR"], step
            assert head["error"] == protocol.ERRORS[step["errno"]], step
            assert len(data) == size, step
            continue
        assert (head["flags"], head["error"]) == (FLAGS["REPLY"], 0), step
        fields = COMMANDS[step["command"]]["reply"]
        values = decode(fields, data[size:])
        for field in fields:
            if digits[2 * (size + field["offset"]) :].startswith("."):
                values[field["name"]] = None
        assert values == step["reply"], step


def test_every_request_is_sent_on_a_socket_that_has_the_command() -> None:
    kinds = {item["name"] for item in FACTS["sockets"]}
    for step in exchanges():
        if "reply" in step and step["on"] in kinds:
            assert step["on"] in COMMANDS[step["command"]]["sockets"], step


def test_every_error_has_a_vector_and_every_vectors_error_is_a_fact() -> None:
    facts = {
        (name, error["errno"], error["when"])
        for name, command in COMMANDS.items()
        for error in command["errors"]
        if "unproven" not in error
    }
    common = {(e["errno"], e["when"]) for e in FACTS["common_errors"] if "unproven" not in e}
    refused = {
        (step["command"], step["errno"], step["when"]) for step in exchanges() if "when" in step
    }
    proven = {row[1:] for row in refused if row[1:] in common}
    assert facts | {row for row in refused if row[1:] in common} == refused
    assert proven == common


def test_every_command_that_is_served_has_a_vector_in_which_it_succeeds() -> None:
    served = {name for name, command in COMMANDS.items() if command["served"]}
    # No driver that is there has read, write and mmap.
    served -= {"CONTAINER_READ", "CONTAINER_WRITE", "CONTAINER_MMAP"}
    # What a trace tells has no reply.
    served -= {"TRACE_RECORD"}
    assert served == {step["command"] for step in exchanges() if "reply" in step}


def test_replies_bring_descriptors_where_the_facts_say_so() -> None:
    for step in exchanges():
        if "keeps" in step:
            assert COMMANDS[step["command"]]["reply_descriptors"] != "none", step


def test_the_client_reads_and_writes_headers_as_the_vectors_have_them() -> None:
    for step in exchanges():
        if "request" in step and isinstance(step.get("send"), str):
            data = bytes.fromhex(step["send"])
            header = wire.Header(*wire.HEADER.unpack_from(data))
            assert wire.HEADER.pack(*dataclasses.astuple(header)) == data[: FACTS["header"]["size"]]
            # Some operations of different IOMMUs have one number.
            names = {**wire.Command.__members__, **wire.Operation.__members__}
            assert header.command == names[step["command"]]
