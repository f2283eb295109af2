"""The server process: start, stop, its directory, its configuration."""

import errno
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from support import (
    EDU,
    SCRATCH,
    TIMEOUT,
    Server,
    attach,
    expect_sentence,
    refused,
    run,
    until,
    version_message,
)

import vfiod
from vfiod.testing import find_server


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_at_a_signal_and_removes_its_sockets(tmp_path: Path, number: int) -> None:
    for _ in range(2):  # and the directory can be used again
        server = Server(tmp_path / "vfiod")
        assert server.root_socket.exists()
        server.stop(number)


def test_a_signal_that_comes_as_soon_as_the_socket_is_there_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "vfio.sock"
    for _ in range(40):
        process = subprocess.Popen([find_server(), "--directory", tmp_path])
        until(path.exists, "the socket")
        process.terminate()
        assert process.wait(TIMEOUT) == 0
        assert not path.exists()


def test_it_stops_while_clients_use_everything(tmp_path: Path) -> None:
    server = Server(tmp_path / "vfiod")
    with server.connect() as root, attach(root, EDU) as (container, group):
        with group.open_device(EDU) as device, root.external_user(group) as token:
            with server.device(SCRATCH) as scratch, vfiod.EventFD() as event:
                container.map_dma(0x1000, 0x1000).memory.close()
                scratch.set_triggers(2, [event])
                server.stop()
                for handle in (root, container, group, token):
                    with pytest.raises(vfiod.Disconnected):
                        handle.connection.request(1)
                for each in (device, scratch):
                    with pytest.raises(vfiod.Disconnected):
                        each.info()


@pytest.mark.vfiod
def test_it_prints_nothing_while_all_is_well(server: Server) -> None:
    with server.connect() as root, attach(root, EDU) as (_, group), group.open_device(EDU) as device:
        device.info()
    assert server.output() == ""


def test_a_second_server_on_the_same_directory_is_refused(server: Server) -> None:
    result = run("--directory", str(server.directory))
    expect_sentence(result, str(server.directory))
    server.check_alive()
    with server.device(SCRATCH) as device:
        assert device.config.read16(0) == 0x1234


def test_the_sockets_of_a_server_that_was_killed_are_replaced(tmp_path: Path) -> None:
    first = Server(tmp_path / "vfiod")
    first.kill()
    assert first.root_socket.exists()
    second = Server(tmp_path / "vfiod")
    try:
        second.check_alive()
        with second.device(SCRATCH) as device:
            assert device.config.read16(0) == 0x1234
        second.stop()
    finally:
        second.kill()


def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    directory = tmp_path / "vfiod"
    directory.mkdir()
    (directory / "vfio.sock").write_text("precious")
    expect_sentence(run("--directory", str(directory)), "vfio.sock")
    assert (directory / "vfio.sock").read_text() == "precious"


def test_a_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    expect_sentence(run("--directory", str(tmp_path / "file")), "file")


def test_a_directory_whose_socket_paths_are_too_long_is_refused(tmp_path: Path) -> None:
    """Unix socket addresses hold 107 bytes."""
    directory = tmp_path / ("d" * 120)
    expect_sentence(run("--directory", str(directory)))


def test_the_directory_is_taken_from_the_environment(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root's default is /run/vfiod")
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    process = subprocess.Popen([find_server()], env=environment)
    until((tmp_path / "vfiod" / "vfio.sock").exists, "the socket")
    process.terminate()
    assert process.wait(10) == 0


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="an empty file"),
        pytest.param("{", id="JSON that doesn't end"),
        pytest.param("hello", id="no JSON"),
        pytest.param("[]", id="an array"),
        pytest.param("42", id="a number"),
        pytest.param('"text"', id="a string"),
        pytest.param('{"no such key": 1}', id="a key that isn't known"),
        pytest.param("{} {}", id="a second value"),
        pytest.param('{"\xff": 1}', id="bytes that are not UTF-8"),
        pytest.param("[" * 100_000, id="deep nesting"),
    ],
)
def test_a_bad_configuration_is_refused_with_a_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(text.encode("latin-1"))
    result = run("--directory", str(tmp_path / "vfiod"), "--config", str(file))
    expect_sentence(result, "config.json")
    assert not (tmp_path / "vfiod" / "vfio.sock").exists()


def test_a_configuration_that_is_not_there_is_refused(tmp_path: Path) -> None:
    result = run("--directory", str(tmp_path / "vfiod"), "--config", str(tmp_path / "none.json"))
    expect_sentence(result, "none.json")


def test_an_unknown_option_is_refused() -> None:
    assert 0 < run("--no-such-option").returncode < 128


def test_a_server_survives_a_client_that_connects_and_says_nothing(server: Server) -> None:
    with server.raw(), server.raw(SCRATCH), server.raw(EDU):
        server.check_alive()


def test_a_server_survives_bytes_that_are_no_protocol(server: Server) -> None:
    for name in (None, SCRATCH):
        for _ in range(20):
            with server.raw(name) as connection:
                try:
                    connection.send_raw(os.urandom(10_000))
                    connection.send_raw(b"GET / HTTP/1.1\r\n\r\n")
                except vfiod.Disconnected:
                    pass
    server.check_alive()


def test_a_client_that_shuts_one_direction_down_is_answered_first(server: Server) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(os.fspath(server.root_socket))
        client.sendall(version_message())
        client.shutdown(socket.SHUT_WR)
        received = b""
        while data := client.recv(4096):
            received += data
        assert len(received) >= 20


def test_the_whole_way_can_be_gone_again_and_again(server: Server) -> None:
    for _ in range(100):
        with server.connect() as root, attach(root, SCRATCH) as (_, group):
            with group.open_device(SCRATCH) as device:
                assert device.config.read16(0) == 0x1234
    with server.connect() as root, refused(errno.ENODEV):
        root.open_group(1)
