"""The fixtures of `vfiod.testing`, as another project's tests use them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import EDU, SCRATCH

from vfiod.testing import find_server

PACKAGE = Path(__file__).resolve().parents[1]
ONE_EDU = '{"groups": [{"id": 5, "devices": [{"address": "0000:01:00.0", "model": "edu"}]}]}'


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project without tests."""
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE))
    pytester.makeconftest('pytest_plugins = ["vfiod.testing"]')
    return pytester


def passes(project: pytest.Pytester, test: str, count: int = 1) -> None:
    project.makepyfile(test)
    project.runpytest_inprocess().assert_outcomes(passed=count)


def ends_with_an_error(project: pytest.Pytester, test: str, sentence: str) -> None:
    """The test passes, and what its server is found to be afterwards is an error.

    In a process of its own, for what such a test leaves behind.
    """
    project.makepyfile(test)
    result = project.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines([f"*{sentence}*"])


# Topologies


def test_a_test_has_a_server_with_the_built_in_topology(project: pytest.Pytester) -> None:
    passes(
        project,
        f"""
        def test_edu(vfiod_server, vfio):
            assert [group["id"] for group in vfio.topology()["groups"]] == [26, 27, 28]
            with vfiod_server.device("{EDU}") as device:
                assert device.region(0).read32(0) == 0x010000ED
        """,
    )


def test_a_mark_chooses_the_topology(project: pytest.Pytester) -> None:
    passes(
        project,
        f"""
        import pytest

        @pytest.mark.vfiod({ONE_EDU})
        def test_marked(vfio):
            assert [group["id"] for group in vfio.topology()["groups"]] == [5]

        def test_other(vfio):
            assert len(vfio.topology()["groups"]) == 3
        """,
        2,
    )


def test_a_project_chooses_its_own_topology_and_a_mark_another(project: pytest.Pytester) -> None:
    passes(
        project,
        f"""
        import pytest

        @pytest.fixture
        def vfiod_topology():
            return {ONE_EDU}

        def test_own(vfio):
            assert [group["id"] for group in vfio.topology()["groups"]] == [5]

        @pytest.mark.vfiod({{"groups": []}})
        def test_marked(vfio):
            assert vfio.topology()["groups"] == []
        """,
        2,
    )


def test_a_topology_that_is_refused_is_an_error_with_the_servers_sentence(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(
        """
        import pytest

        @pytest.mark.vfiod({"groups": [{"id": -1, "devices": []}]})
        def test_bad(vfio):
            pass
        """
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the server ended: *groups[[]0[]].id*"])


def test_the_mark_is_known(project: pytest.Pytester) -> None:
    project.runpytest_inprocess("--markers").stdout.fnmatch_lines(["@pytest.mark.vfiod(topology):*"])


# The server's life


def test_each_test_has_its_own_server_which_is_gone_afterwards(project: pytest.Pytester) -> None:
    passes(
        project,
        """
        import os
        import pytest

        seen = []

        @pytest.mark.parametrize("turn", range(3))
        def test_own(vfiod_server, turn):
            for pid, directory in seen:
                assert not os.path.exists(f"/proc/{pid}")
                assert not directory.parent.exists()
            seen.append((vfiod_server.pid, vfiod_server.directory))
        """,
        3,
    )


def test_a_test_that_leaves_a_device_open_is_told_what_the_server_holds(
    project: pytest.Pytester,
) -> None:
    ends_with_an_error(
        project,
        f"""
        import vfiod.testing

        vfiod.testing.GRACE = 1
        left = []

        def test_leak(vfiod_server):
            device = vfiod_server.device("{SCRATCH}")
            with vfiod.EventFD() as event:
                device.set_triggers(vfiod.IRQ.MSIX, [event])
            left.append(device)
        """,
        "the server still holds descriptors: 1 × anon_inode:?eventfd?, 1 × socket; was everything closed?",
    )


def test_an_object_that_only_waits_to_be_collected_is_no_leak(project: pytest.Pytester) -> None:
    passes(
        project,
        """
        import pytest

        @pytest.mark.filterwarnings("ignore")
        def test_cycle(vfiod_server):
            root = vfiod_server.connect()
            root.itself = root
        """,
    )


def test_devices_that_were_added_are_no_leak(project: pytest.Pytester) -> None:
    passes(
        project,
        """
        def test_hot_plug(vfio):
            vfio.add_device(9, {"address": "0000:09:00.0", "model": "scratch"})
        """,
    )


def test_a_device_that_was_added_and_not_closed_is_an_error(project: pytest.Pytester) -> None:
    ends_with_an_error(
        project,
        """
        import vfiod.testing

        vfiod.testing.GRACE = 1
        left = []

        def test_leak(vfiod_server, vfio):
            vfio.add_device(9, {"address": "0000:09:00.0", "model": "scratch"})
            left.append(vfiod_server.device("0000:09:00.0"))
        """,
        "0000:09:00.0 was added, and not closed: *timed out",
    )


def test_a_server_that_ended_during_the_test_is_an_error(project: pytest.Pytester) -> None:
    ends_with_an_error(
        project,
        """
        import os, signal

        def test_crash(vfiod_server):
            os.kill(vfiod_server.pid, signal.SIGKILL)
            os.waitid(os.P_PID, vfiod_server.pid, os.WEXITED | os.WNOWAIT)
        """,
        "the server ended with status -9:*",
    )


def test_a_server_that_does_not_stop_cleanly_is_an_error(
    project: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "broken"
    program.write_text(
        f"#!/bin/sh\ntrap 'kill $!; wait $!; exit 3' TERM\n'{find_server()}' \"$@\" & wait\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("VFIOD", str(program))
    ends_with_an_error(project, "def test_it(vfio): pass", "the server ended with status 3:*")


def test_a_test_may_end_its_server_itself(project: pytest.Pytester) -> None:
    passes(
        project,
        """
        import pytest, vfiod

        def test_stop(vfiod_server, vfio):
            vfiod_server.stop()
            with pytest.raises(vfiod.Disconnected):
                vfio.topology()

        def test_kill(vfiod_server, vfio):
            vfiod_server.kill()
        """,
        2,
    )


def test_a_failed_test_is_a_failure_and_nothing_more_and_shows_the_log(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(
        f"""
        def test_fails(vfiod_server):
            vfiod_server.log.write_text("what the server says")
            device = vfiod_server.device("{EDU}")
            assert device is None
        """
    )
    result = project.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["what the server says"])


def test_a_server_may_be_shared_by_a_module(project: pytest.Pytester) -> None:
    passes(
        project,
        """
        import pytest
        from vfiod.testing import Server

        @pytest.fixture(scope="module")
        def server():
            with Server(topology={"groups": []}) as server:
                yield server

        def test_one(server):
            server.check_alive()

        def test_two(server):
            with server.connect() as root:
                assert root.topology() == {"groups": []}
        """,
        2,
    )


# Where the server is found


def test_the_server_is_found_on_the_path(
    project: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vfiod").symlink_to(find_server())
    monkeypatch.delenv("VFIOD")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    passes(project, "def test_it(vfio): assert vfio.topology()")


@pytest.mark.parametrize(
    "value, sentence",
    [
        ("/nowhere/vfiod", "VFIOD is /nowhere/vfiod, which is no program: *"),
        ("/etc/passwd", "VFIOD is /etc/passwd, which is no program: *"),
        ("", "no vfiod: set VFIOD to its path, or put it on PATH; *swift build*"),
    ],
)
def test_without_a_server_the_error_says_how_to_get_one(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, value: str, sentence: str
) -> None:
    monkeypatch.setenv("VFIOD", value)
    monkeypatch.setenv("PATH", "/nowhere")
    project.makepyfile("def test_it(vfio): pass")
    result = project.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([sentence])


# The package


def test_the_client_itself_needs_no_pytest() -> None:
    command = "import sys, vfiod; sys.exit('pytest' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], cwd=PACKAGE, check=True)


def test_the_tests_in_the_readme_pass(project: pytest.Pytester) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(), re.DOTALL)
    tests = [block for block in blocks if "def test_" in block]
    assert tests
    passes(project, "\n".join(tests), sum(block.count("def test_") for block in tests))
