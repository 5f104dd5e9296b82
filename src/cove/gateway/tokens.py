"""Signed tokens: ids that carry their own routing, so that any gateway can follow them.

A token is base64url(mac || payload): 16 bytes of keyed BLAKE2b over purpose and payload, and
the payload's fields joined by NUL. It is readable by whoever holds it and made only by Cove.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from hashlib import blake2b

_MAC = 16
_MOST = 4096


class Signer:
    """Makes and opens tokens with one install's secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def seal(self, purpose: str, *fields: str) -> str:
        """A token of these fields. None may hold NUL."""
        payload = "\0".join(fields).encode()
        return _encode(self._mac(purpose, payload) + payload)

    def open(self, purpose: str, token: str) -> tuple[str, ...] | None:
        """The fields of a token made for `purpose`; None for anything else."""
        if len(token) > _MOST:
            return None
        try:
            raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
            payload = raw[_MAC:].decode()
        except (Base64Error, ValueError):
            return None
        # The decoder skips what it does not know, and bits beyond the last byte: a token that
        # opened under several spellings would be several sessions.
        if _encode(raw) != token:
            return None
        if not hmac.compare_digest(raw[:_MAC], self._mac(purpose, raw[_MAC:])):
            return None
        return tuple(payload.split("\0"))

    def _mac(self, purpose: str, payload: bytes) -> bytes:
        return blake2b(
            payload, digest_size=_MAC, key=self._secret, person=purpose.encode()[:16]
        ).digest()


def _encode(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
