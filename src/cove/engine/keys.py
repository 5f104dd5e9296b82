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
    """The valid keys. Where `file` is missing its key is lost or revoked: another takes its place.

    The new one is written to `file`, mode 0600; only its hash is kept elsewhere.
    """
    keys = await store.keys()
    if await asyncio.to_thread(file.exists) and any(key.subject == SUBJECT for key in keys):
        return keys
    secret = "cove_" + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
    digest = hashlib.sha256(secret.encode()).hexdigest()
    # The old key ends first: what stops between the two leaves no file, and is begun again.
    await asyncio.to_thread(file.unlink, missing_ok=True)
    await store.replace_keys(Key(secrets.token_hex(8), SUBJECT, digest, clock.wall()))
    await asyncio.to_thread(_write, file, secret)
    return await store.keys()


def _write(file: Path, secret: str) -> None:
    aside = file.with_name(file.name + ".new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(secret + "\n")
    aside.rename(file)
