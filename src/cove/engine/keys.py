"""Project keys: who may use the control API, and functions that ask for one."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import string
from collections.abc import Sequence
from pathlib import Path

from cove import clock
from cove.model import Key
from cove.store.base import Store

SUBJECT = "project"
_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 40


async def project_keys(store: Store, file: Path) -> Sequence[Key]:
    """The valid keys. Where `file` is missing a new one is made and written there, mode 0600.

    Only its hash is kept elsewhere: a lost file cannot be written again, only followed by
    another key.
    """
    keys = await store.keys()
    secret = await asyncio.to_thread(_write, file, fresh=not keys)
    if secret is None:
        return keys
    digest = hashlib.sha256(secret.encode()).hexdigest()
    key = Key(secrets.token_hex(8), SUBJECT, digest, clock.wall())
    await store.add_key(key)
    return [*keys, key]


def _write(file: Path, *, fresh: bool) -> str | None:
    """A new key, written to `file`; None where there is one and `fresh` does not insist."""
    if file.exists() and not fresh:
        return None
    secret = "cove_" + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(secret + "\n")
    return secret
