"""A sandbox as config.json: what every one must say, whatever is asked for."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from cove.model import MIB
from cove.sandbox.oci import oci_config
from cove.sandbox.seccomp import seccomp
from cove.sandbox.spec import Bind, Sandbox

BOX = Sandbox(
    argv=("/usr/bin/true",),
    env={"A": "1", "B": "x=y"},
    root="/state/roots/x",
    binds=(Bind("/usr", "/usr"), Bind("/srv/code", "/app")),
    first_id=0x70010000,
    netns="/proc/1/fd/9",
    cgroup="/cove/i-1",
    memory=64 * MIB,
    pids=32,
    limit_swap=True,
    recursive_ro=True,
    open_files=1024,
    oom_score=100,
    machine="x86_64",
)


def mounts(config: dict[str, Any]) -> dict[str, Any]:
    return {mount["destination"]: mount for mount in config["mounts"]}


def test_the_config_is_json_and_the_same_for_the_same_sandbox() -> None:
    assert json.dumps(oci_config(BOX)) == json.dumps(oci_config(dataclasses.replace(BOX)))


def test_the_program_is_nobody_special_and_can_become_nobody_else() -> None:
    process = oci_config(BOX)["process"]
    assert (process["user"]["uid"], process["user"]["gid"]) == (1000, 1000)
    assert set(map(tuple, process["capabilities"].values())) == {()}
    assert len(process["capabilities"]) == 5
    assert process["noNewPrivileges"] is True
    assert oci_config(BOX)["linux"]["seccomp"] == seccomp("x86_64")
    assert process["env"] == ["A=1", "B=x=y"]


def test_all_seven_namespaces_are_asked_for_and_the_network_is_the_given_one() -> None:
    asked = {one["type"]: one.get("path") for one in oci_config(BOX)["linux"]["namespaces"]}
    assert asked == {
        "pid": None,
        "mount": None,
        "ipc": None,
        "uts": None,
        "cgroup": None,
        "user": None,
        "network": "/proc/1/fd/9",
    }


def test_ids_are_mapped_to_the_range_that_was_given() -> None:
    linux = oci_config(BOX)["linux"]
    ids = [{"containerID": 0, "hostID": 0x70010000, "size": 65536}]
    assert linux["uidMappings"] == linux["gidMappings"] == ids


def test_the_root_and_every_bind_are_read_only_without_setuid_or_devices() -> None:
    config = oci_config(BOX)
    assert config["root"] == {"path": "/state/roots/x", "readonly": True}
    for target in ("/usr", "/app"):
        assert {"rbind", "ro", "rro", "nosuid", "nodev"} == set(mounts(config)[target]["options"])


def test_a_single_file_is_not_asked_for_recursive_read_only() -> None:
    one = Bind("/etc/services", "/etc/services", folder=False)
    config = oci_config(dataclasses.replace(BOX, binds=(one,)))
    options = mounts(config)["/etc/services"]["options"]
    assert "ro" in options
    assert "rro" not in options


def test_an_old_kernel_is_not_asked_for_recursive_read_only() -> None:
    config = oci_config(dataclasses.replace(BOX, recursive_ro=False))
    assert "rro" not in mounts(config)["/usr"]["options"]


def test_writable_folders_are_shares_of_the_memory_limit() -> None:
    made = mounts(oci_config(BOX))
    assert "size=32768k" in made["/tmp"]["options"]
    assert {"size=16384k", "uid=1000", "gid=1000"} <= set(made["/home/cove"]["options"])
    assert made["/tmp"]["type"] == made["/home/cove"]["type"] == "tmpfs"


def test_kernel_mounts_come_before_binds_that_may_lie_within_them() -> None:
    kinds = [mount["type"] == "bind" for mount in oci_config(BOX)["mounts"]]
    assert kinds == sorted(kinds)


def test_memory_and_pids_are_limited_and_cpu_is_left_to_the_driver() -> None:
    resources = oci_config(BOX)["linux"]["resources"]
    assert resources["memory"] == {"limit": 64 * MIB, "swap": 64 * MIB}
    assert resources["pids"] == {"limit": 32}
    assert "cpu" not in resources


def test_swap_is_not_named_where_the_kernel_does_not_account_it() -> None:
    config = oci_config(dataclasses.replace(BOX, limit_swap=False))
    assert config["linux"]["resources"]["memory"] == {"limit": 64 * MIB}


def test_no_sysfs_and_no_cgroup_file_system_is_mounted() -> None:
    kinds = {mount["type"] for mount in oci_config(BOX)["mounts"]}
    assert kinds == {"proc", "tmpfs", "devpts", "bind"}
