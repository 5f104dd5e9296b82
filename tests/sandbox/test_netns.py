"""A network namespace of the host's making."""

from __future__ import annotations

import os
import socket
import subprocess
import threading

import pytest

from cove.sandbox.netns import NetworkNamespace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making namespaces needs root")


def here() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def test_sockets_are_inside_and_the_thread_stays_outside() -> None:
    before, threads = here(), threading.active_count()
    netns = NetworkNamespace()
    assert os.readlink(netns.path) != before
    with netns.socket(socket.AF_INET) as listener, socket.socket() as outside:
        listener.bind(("127.0.0.1", 80))
        listener.listen()
        with netns.socket(socket.AF_INET) as caller:
            caller.setblocking(True)
            caller.connect(("127.0.0.1", 80))
        assert here() == before
        outside.bind(("127.0.0.1", 0))
        assert listener.getblocking() is False
    netns.close()
    assert threading.active_count() == threads


def test_any_id_may_bind_low_ports_inside_and_the_host_is_unchanged() -> None:
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as f:
        before = f.read()
    NetworkNamespace().close()
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as f:
        assert f.read() == before


def test_a_closed_one_refuses_and_closing_twice_is_fine() -> None:
    netns = NetworkNamespace()
    netns.close()
    netns.close()
    assert netns.closed
    with pytest.raises(ConnectionRefusedError):
        netns.socket(socket.AF_INET)
    with pytest.raises(ValueError, match="closed"):
        netns.path  # noqa: B018


def test_that_of_a_process_is_opened_and_outlives_it() -> None:
    with subprocess.Popen(["unshare", "--net", "sleep", "600"]) as inside:
        while os.readlink(f"/proc/{inside.pid}/ns/net") == here():
            assert inside.poll() is None
        netns = NetworkNamespace(of=inside.pid)
        assert os.readlink(netns.path) == os.readlink(f"/proc/{inside.pid}/ns/net")
        inside.kill()
    netns.socket(socket.AF_INET).close()
    netns.close()


def test_the_hosts_own_is_not_taken_for_a_processs() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="own network"):
        NetworkNamespace(of=os.getpid())
    assert len(os.listdir("/proc/self/fd")) == before


def test_making_and_closing_leaks_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        NetworkNamespace().close()
    assert len(os.listdir("/proc/self/fd")) == before
