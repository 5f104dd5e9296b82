"""Sealing: a text made unreadable to who lacks the key, and bound to its name.

AES-256-GCM with a random nonce of 96 bits, the name as associated data: what was sealed as one
name opens as no other, so that records cannot be swapped below Cove.
A sealed value is a byte that says the format, the nonce, and the ciphertext with its tag.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32

_FORMAT = b"\x01"
_NONCE = 12


def seal(key: bytes, name: str, value: str) -> bytes:
    """`value`, sealed as `name`."""
    nonce = os.urandom(_NONCE)
    return _FORMAT + nonce + _cipher(key).encrypt(nonce, value.encode(), name.encode())


def unseal(key: bytes, name: str, sealed: bytes) -> str | None:
    """What was sealed as `name` with that key; None for anything else."""
    from cryptography.exceptions import InvalidTag

    begun = len(_FORMAT) + _NONCE
    if not sealed.startswith(_FORMAT) or len(sealed) < begun:
        return None
    nonce, text = sealed[len(_FORMAT) : begun], sealed[begun:]
    try:
        return _cipher(key).decrypt(nonce, text, name.encode()).decode()
    except InvalidTag:
        return None


def _cipher(key: bytes) -> AESGCM:
    # Imported when it is asked for: 7 MiB that a Cove without secrets need not have.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)
