"""What the listener's address and this process's descriptors allow."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from cove.errors import CoveError
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
        assert "--listen" in caught.value.hint


@pytest.mark.parametrize(("hard", "most"), [(1024, 256), (4096, 1792), (100, 64)])
def test_callers_leave_descriptors_for_instances(hard: int, most: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 256), hard))

    done = subprocess.run(
        [sys.executable, "-c", ASK], preexec_fn=limit, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == most
