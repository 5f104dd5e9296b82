"""Mounts as the kernel lists them, and a tmpfs of one's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cove.sandbox.mounts import below, is_tmpfs, mount_tmpfs, mounts, parse_mounts, unmount

LINES = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
60 27 0:50 / /srv/a\\040b rw,nosuid - tmpfs cove rw,size=65536k,mode=711
61 60 254:0 /x /srv/a\\040b/one ro shared:1 master:2 - ext4 /dev/vda rw,discard
62 61 254:0 /x /srv/a\\040b/one ro - ext4 /dev/vda rw,discard
63 27 0:51 / /srv/a\\040bc rw - tmpfs  rw
"""


def test_lines_are_read_with_their_optional_fields_and_escapes() -> None:
    found = parse_mounts(LINES)
    assert [one.target for one in found[1:3]] == ["/srv/a b", "/srv/a b/one"]
    assert [one.kind for one in found] == ["ext4", "tmpfs", "ext4", "ext4", "tmpfs"]
    assert found[1].options == ("rw", "size=65536k", "mode=711")


def test_what_lies_below_a_folder_comes_last_mounted_first_and_without_it() -> None:
    found = parse_mounts(LINES)
    assert below("/srv/a b", found) == ["/srv/a b/one", "/srv/a b/one"]
    assert below("/srv", found)[0] == "/srv/a bc"
    assert below("/srv/a", found) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_tmpfs_is_mounted_bounded_known_and_taken_away_again(tmp_path: Path) -> None:
    folder = tmp_path / "it\tis here"
    folder.mkdir()
    (folder / "below").touch()
    assert not is_tmpfs(str(folder))
    mount_tmpfs(str(folder), 1 << 20, 0o711)
    try:
        assert is_tmpfs(str(folder))
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o777 == 0o711
        assert os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize == 1 << 20
        (one,) = [one for one in mounts() if one.target == str(folder)]
        assert one.kind == "tmpfs"
        assert below(str(tmp_path)) == [str(folder)]
    finally:
        unmount(str(folder))
    unmount(str(folder))
    assert below(str(tmp_path)) == []
    assert (folder / "below").exists()
