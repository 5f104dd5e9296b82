"""A tar, read once from front to back, as bytes that anybody may have made.

`tarfile` reads headers of any size whole, and those of an entry that stands for another by
recursion; it looks through them with patterns whose worst case freezes the process, and takes
damage for the end. A deploy's archive needs little of the format: ustar (POSIX.1-1988), pax
(POSIX.1-2001) and GNU's long names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["file", "folder", "link", "hardlink", "other"]

_BLOCK = 512
_CHUNK = 256 * 1024
_MOST_HEADERS = 256 * 1024
"""Bytes that the headers of one entry may take together: its names and attributes."""
_KINDS: dict[bytes, Kind] = {
    **dict.fromkeys((b"0", b"\0", b"7"), "file"),
    b"1": "hardlink",
    b"2": "link",
    b"5": "folder",
}
_SAID = ("path", "linkpath", "size")
_SPARSE = "GNU.sparse."
_ZEROS = bytes(_BLOCK)


class DamagedError(Exception):
    """What is read is no tar, or not a whole one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a tar. `target` is what a link leads to; `size` is bytes of content."""

    name: str
    kind: Kind
    size: int
    mode: int
    target: str


class Tar:
    """The entries of a tar in their order; `content` reads those of the one at hand."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        """`read` returns so many bytes, fewer only at the end."""
        self._read = read
        self._at = 0
        self._left = 0
        self._padding = 0
        self._headers = 0

    def __iter__(self) -> Iterator[Entry]:
        """`DamagedError` where it is no tar, ends early, or goes on after its end."""
        while True:
            for _ in self.content():
                pass
            self._take(self._padding)
            self._padding = self._headers = 0
            entry = self._entry()
            if entry is None:
                return
            if entry.kind == "file":
                self._left, self._padding = entry.size, -entry.size % _BLOCK
            yield entry

    def content(self) -> Iterator[bytes]:
        """What is still unread of the content of the entry at hand."""
        while self._left:
            chunk = self._take(min(self._left, _CHUNK))
            self._left -= len(chunk)
            yield chunk

    def _entry(self) -> Entry | None:
        """The next entry, with what the headers before its own say of it; None at the end."""
        said: dict[str, str] = {}
        while (block := self._take(_BLOCK)) != _ZEROS:
            _check_sum(block, self._at)
            kind, size = block[156:157], self._number(block[124:136])
            if kind in (b"x", b"X"):
                said |= self._said(self._extra(size))
            elif kind == b"g":
                self._extra(size)  # of the whole archive, like the commit it was made of
            elif kind in (b"L", b"K"):
                said["path" if kind == b"L" else "linkpath"] = _text(self._extra(size))
            else:
                return self._made(block, kind, size, said)
        self._end()
        return None

    def _made(self, block: bytes, kind: bytes, size: int, said: dict[str, str]) -> Entry:
        name, target = _text(block[:100]), _text(block[157:257])
        # GNU tar has other things where a ustar header has a prefix.
        if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
            name = f"{prefix}/{name}"
        name = said.get("path", name)
        found = _KINDS.get(kind, "other")
        if found == "file" and name.endswith("/"):
            found = "folder"  # as tars from before ustar say it
        if any(key.startswith(_SPARSE) for key in said):
            found = "other"
        if "size" in said:
            size = self._decimal(said["size"])
        mode = self._number(block[100:108])
        return Entry(name, found, size, mode, said.get("linkpath", target))

    def _extra(self, size: int) -> bytes:
        self._headers += _BLOCK + size
        if self._headers > _MOST_HEADERS:
            raise DamagedError(f"an entry has more than {_MOST_HEADERS // 1024} KiB of headers")
        data = self._take(size)
        self._take(-size % _BLOCK)
        return data

    def _said(self, data: bytes) -> dict[str, str]:
        """What a pax header says that matters here."""
        found: dict[str, str] = {}
        for key, value in self._records(data):
            if key in _SAID or key.startswith(_SPARSE):
                found[key] = _decoded(value)
                if b"\0" in value:
                    raise self._damaged("a header")
        return found

    def _records(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """pax: `LENGTH KEY=VALUE` lines, whose length counts itself."""
        at = 0
        while at < len(data):
            digits = data[at : at + 20].partition(b" ")[0]
            end = at + self._decimal(digits.decode("latin-1"))
            key, equals, value = data[at + len(digits) + 1 : end].partition(b"=")
            if not equals or end > len(data) or not value.endswith(b"\n"):
                raise self._damaged("a header")
            yield _decoded(key), value[:-1]
            at = end

    def _end(self) -> None:
        """Nothing but zeros may follow: who reads on would find another archive in it."""
        while rest := self._read(_CHUNK):
            if rest.strip(b"\0"):
                raise self._damaged("the end")
            self._at += len(rest)

    def _take(self, size: int) -> bytes:
        data = self._read(size) if size else b""
        if len(data) < size:
            raise DamagedError("it ends too early")
        self._at += size
        return data

    def _number(self, field: bytes) -> int:
        if field[0] == 0x80:  # GNU's, for what has more digits
            return int.from_bytes(field[1:], "big")
        digits = field.partition(b"\0")[0].strip(b" ")
        if digits.strip(b"01234567"):
            raise self._damaged("a header")
        return int(digits or b"0", 8)

    def _decimal(self, digits: str) -> int:
        if not digits.isdecimal() or not digits.isascii() or len(digits) > 15:
            raise self._damaged("a header")
        return int(digits)

    def _damaged(self, what: str) -> DamagedError:
        return DamagedError(f"{what} is damaged at byte {self._at}")


def _check_sum(block: bytes, at: int) -> None:
    """The sum of a header's bytes, its own field as spaces."""
    said = block[148:156].strip(b" \0")
    whole = sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
    if not said or said.strip(b"01234567") or int(said, 8) != whole:
        what = "it is no tar" if at == _BLOCK else f"a header is damaged at byte {at - _BLOCK}"
        raise DamagedError(what)


def _text(field: bytes) -> str:
    return _decoded(field.partition(b"\0")[0])


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", errors="surrogateescape")
