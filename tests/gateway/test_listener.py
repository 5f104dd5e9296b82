"""What the listener's address and this process's descriptors allow."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys

import pytest

from cove.errors import CoveError
from cove.gateway.holder import holder
from cove.gateway.listener import is_loopback, listen

ASK = "from cove.gateway.listener import most_connections; print(most_connections())"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_addresses_of_this_machine_are_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "cove.example"])
def test_other_addresses_are_not(host: str) -> None:
    assert not is_loopback(host)


def test_a_port_in_use_is_said_with_what_to_do() -> None:
    with listen("127.0.0.1", 0) as first:
        with pytest.raises(CoveError) as caught:
            listen("127.0.0.1", first.getsockname()[1])
        assert caught.value.code == "conflict"
        assert "Address already in use" in caught.value.message
        assert f"(pid {os.getpid()}) has it: stop that, or choose" in caught.value.hint
        assert "--listen" in caught.value.hint


HOLD = """
import socket, sys
server = socket.create_server((sys.argv[1], 0), family=int(sys.argv[2]))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_whoever_holds_a_port_is_named(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    argv = [sys.executable, "-c", HOLD, host, str(int(family))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        assert (holder(port) or "").endswith(f"(pid {other.pid})")
    assert holder(port) is None


def test_an_address_of_another_machine_is_not_said_to_be_held() -> None:
    with pytest.raises(CoveError) as caught:
        listen("192.0.2.1", 7070)
    assert "Cannot assign" in caught.value.message
    assert caught.value.hint == "choose another address with --listen HOST:PORT"


@pytest.mark.parametrize(("hard", "most"), [(1024, 256), (4096, 1792), (100, 64)])
def test_callers_leave_descriptors_for_instances(hard: int, most: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 256), hard))

    done = subprocess.run(
        [sys.executable, "-c", ASK], preexec_fn=limit, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == most
