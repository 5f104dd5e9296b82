"""Secrets: values that functions name. The store has them sealed; DATA/secrets.key opens them.

Nothing here logs, raises or answers with a value, but `values`, which is for who starts a program.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import structlog

from cove import clock
from cove.config import check_secret_name, check_secret_value
from cove.engine.seal import KEY_BYTES, seal, unseal
from cove.errors import CoveError
from cove.model import MIB, SealedSecret
from cove.store.base import Store

log = structlog.get_logger("cove.secrets")

MOST = 1000
_TOGETHER_AS = "given together"  # no name of a secret has a space
TOGETHER = MIB
"""Bytes of all secrets of one function: a program's environment has a bound, 2 MiB as a rule."""

Naming = Callable[[str], Sequence[str]]
"""The functions whose live version names a secret."""


class Secrets:
    """The secrets of one Cove. The key file is made at the first one that is set."""

    def __init__(self, store: Store, key_file: Path) -> None:
        self._store = store
        self._file = key_file
        self._key: bytes | None = None
        self._sealed: dict[str, SealedSecret] = {}
        self._changing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Secrets [{len(self._sealed)} set]>"

    async def load(self) -> None:
        """Read what is set. That the key is missing or wrong is logged here, an error at use."""
        self._sealed = {kept.name: kept for kept in await self._store.sealed_secrets()}
        if self._sealed:
            try:
                self._key = await asyncio.to_thread(self._right_key)
            except CoveError as error:
                log.warning("secrets cannot be opened", reason=error.message, hint=error.hint)

    def list(self, named: Naming) -> list[dict[str, Any]]:
        """All of them by name: name, created_at, updated_at, and the functions that name it."""
        return [_said(self._sealed[name], named) for name in sorted(self._sealed)]

    async def set(self, name: str, value: str, named: Naming) -> dict[str, Any]:
        """Keep a value, as `list` tells of it. Instances that run keep the one they were given.

        `bad_name`, `bad_request` or `too_large` for what cannot be one; `conflict` while there
        is a value that the key file does not open: a second key must not make the loss final.
        """
        check_secret_name(name)
        check_secret_value(value)
        async with self._changing:
            old = self._sealed.get(name)
            if old is None and len(self._sealed) >= MOST:
                raise CoveError(
                    "conflict",
                    f"{MOST} secrets are set, the most there may be",
                    hint="`cove secret list` shows which no function names; remove those",
                )
            key = await asyncio.to_thread(self._right_key)
            now = clock.wall()
            secret = SealedSecret(name, seal(key, name, value), old.created_at if old else now, now)
            await self._store.put_sealed_secret(secret)
            self._key, self._sealed[name] = key, secret
        log.info("secret set", name=name)
        return _said(secret, named)

    async def remove(self, name: str, named: Naming) -> None:
        """Forget a secret. `not_found`; `conflict` while a live version names it.

        One that the key file does not open may go though it is named: it is of no use to anybody,
        and in the way of setting it again.
        """
        check_secret_name(name)
        async with self._changing:
            kept, functions = self._sealed.get(name), named(name)
            of_use = kept is not None and await asyncio.to_thread(self._opens, kept)
            if of_use and functions:
                raise CoveError(
                    "conflict",
                    f"{name} is named by {', '.join(functions)}",
                    hint="take it out of cove.toml and deploy again, or `cove rm` the function",
                )
            await self._store.remove_sealed_secret(name)
            self._sealed.pop(name, None)
        log.info("secret removed", name=name)

    def values(self, names: Sequence[str], by: str = "the function") -> dict[str, str]:
        """The values of these names, opened now; they are not kept open.

        `not_found` where one is not set; `conflict` where the key file does not open one;
        `too_large` where they are too much for one program.
        """
        if missing := [name for name in names if name not in self._sealed]:
            what = "secrets" if len(missing) > 1 else "secret"
            verb = "are" if len(missing) > 1 else "is"
            raise CoveError(
                "not_found",
                f"{by} names the {what} {', '.join(missing)}, which {verb} not set",
                hint=f"cove secret set {missing[0]}",
            )
        found = {name: self._value(self._sealed[name]) for name in names}
        if sum(len(value.encode()) for value in found.values()) > TOGETHER:
            raise CoveError(
                "too_large",
                f"the secrets that {by} names are together more than {TOGETHER // MIB} MiB",
                hint="a program cannot be given more: name fewer, or set shorter ones",
            )
        return found

    def remember(self, values: Sequence[str]) -> bytes:
        """These values, sealed together, for who must know them when they are no secrets more."""
        if self._key is None:
            self._key = _read(self._file, self._sealed)
        return seal(self._key, _TOGETHER_AS, json.dumps(values))

    def recall(self, sealed: bytes) -> Sequence[str] | None:
        """What `remember` sealed; None where the key file does not open it."""
        try:
            text = unseal(self._key or _read(self._file, self._sealed), _TOGETHER_AS, sealed)
        except CoveError:
            return None
        return None if text is None else [str(value) for value in json.loads(text)]

    def require(self, function: str, names: Sequence[str]) -> None:
        """`conflict` if a version of that function could not be given these."""
        try:
            self.values(names, function)
        except CoveError as error:
            raise CoveError("conflict", error.message, hint=error.hint) from None

    def _value(self, secret: SealedSecret) -> str:
        if self._key is not None:
            value = unseal(self._key, secret.name, secret.sealed)
            if value is not None:
                return value
        # Somebody may have put the right file back since: it is read again until it opens.
        key = _read(self._file, [secret.name])
        value = unseal(key, secret.name, secret.sealed)
        if value is None:
            raise _wrong(self._file, [secret.name])
        self._key = key
        return value

    def _opens(self, secret: SealedSecret) -> bool:
        try:
            key = _read(self._file, [secret.name])
        except CoveError:
            return False
        return unseal(key, secret.name, secret.sealed) is not None

    def _right_key(self) -> bytes:
        """The file's key, if it opens all there is; a new one only where there is nothing yet."""
        if not self._sealed and not self._file.exists():
            return _make(self._file)
        key = _read(self._file, self._sealed)
        closed = [
            kept.name
            for kept in self._sealed.values()
            if unseal(key, kept.name, kept.sealed) is None
        ]
        if closed:
            raise _wrong(self._file, closed)
        return key


def _said(secret: SealedSecret, named: Naming) -> dict[str, Any]:
    return {
        "name": secret.name,
        "created_at": clock.iso(secret.created_at),
        "updated_at": clock.iso(secret.updated_at),
        "functions": list(named(secret.name)),
    }


def _read(file: Path, sealed: Iterable[str]) -> bytes:
    names = sorted(sealed)
    try:
        key = bytes.fromhex(file.read_text("ascii"))
        open_to_others = file.stat().st_mode & 0o077
    except FileNotFoundError:
        raise CoveError(
            "conflict", f"{file} is missing, which opens the secrets", hint=_hint(names)
        ) from None
    except (OSError, ValueError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else "it holds no key"
        raise CoveError("conflict", f"{file} cannot be used: {why}", hint=_hint(names)) from None
    if len(key) != KEY_BYTES:
        raise CoveError("conflict", f"{file} cannot be used: it holds no key", hint=_hint(names))
    if open_to_others:
        log.warning("others may read the key to all secrets", file=str(file), hint="chmod 600")
    return key


def _make(file: Path) -> bytes:
    key = secrets.token_bytes(KEY_BYTES)
    aside = file.with_name(file.name + ".new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(key.hex() + "\n")
        opened.flush()
        os.fsync(opened.fileno())
    aside.rename(file)
    # On the disk before anything is sealed with it: a value outlives a power cut, so must its key.
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    log.info("a key for secrets was made: keep a copy of it", file=str(file))
    return key


def _wrong(file: Path, names: Sequence[str]) -> CoveError:
    return CoveError(
        "conflict",
        f"{file} is not the key to {', '.join(sorted(names))}",
        hint=_hint(names),
    )


def _hint(names: Sequence[str]) -> str:
    if not names:
        return "move it away: nothing is sealed with it, and another is made"
    return (
        "put back the file that they were set with; where it is lost, so are the values: "
        + ", ".join(f"`cove secret rm {name}`" for name in sorted(names)[:5])
        + (" and so on" if len(names) > 5 else "")
        + ", then set them again"
    )
