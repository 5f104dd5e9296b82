"""What a secret may be called, and what it may hold. No message repeats what was given.

A secret's name is an environment variable's and a file's in /run/secrets. Who types a value where
a name belongs must not find it in a log.
"""

from __future__ import annotations

import re

from cove.errors import CoveError

LONGEST_NAME = 64
LARGEST_VALUE = 64 * 1024
RULE = f"1 to {LONGEST_NAME} capital letters, digits and underscores, no digit first"

_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
# Cove says these itself: a secret would be lost in silence, or keep the program from being found.
_COVES_OWN = re.compile(
    r"PATH|PORT|HOME|USER|LOGNAME|TMPDIR|LANG|VIRTUAL_ENV|FASTMCP_(?:HOST|PORT)|COVE_.*"
)
# The loader, shells and interpreters obey these: whoever sets the value would run the program.
_OBEYED = re.compile(
    r"(?:LD_|DYLD_|PYTHON).*|OPENSSL_(?:CONF|MODULES|ENGINES)"
    r"|GCONV_PATH|GLIBC_TUNABLES|ENV|BASH_ENV|BASHOPTS|SHELLOPTS|IFS|SHELL"
    r"|NODE_OPTIONS|NODE_PATH|PERL5(?:LIB|OPT|DB)|RUBY(?:LIB|OPT)"
    r"|(?:JAVA_TOOL|JDK_JAVA|_JAVA)_OPTIONS"
)


def check_secret_name(name: str) -> str:
    """`name`, if a secret may have it; `bad_name` if not."""
    if wrong := wrong_secret_name(name):
        raise CoveError("bad_name", f"a secret cannot be called that: {wrong}", hint=RULE)
    return name


def wrong_secret_name(name: object) -> str:
    """Why no secret has that name; empty if one may."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return f"names are {RULE}"
    if _COVES_OWN.fullmatch(name):
        return f"{name} is one of the variables that Cove sets itself"
    if _OBEYED.fullmatch(name):
        return f"{name} would change how programs are run"
    return ""


def check_secret_value(value: str) -> str:
    """`value`, if a secret may hold it: text that an environment variable can have."""
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise _bad_value("is not text that UTF-8 has") from None
    if not value:
        raise _bad_value("is empty")
    if size > LARGEST_VALUE:
        raise secret_too_large()
    if "\0" in value:
        raise _bad_value("has a NUL byte, which no environment variable can have")
    return value


def secret_too_large() -> CoveError:
    """For who stops reading a value before its end."""
    return CoveError(
        "too_large",
        f"the secret has more than {LARGEST_VALUE // 1024} KiB",
        hint="keep the key to it as the secret, and the rest elsewhere",
    )


def _bad_value(what: str) -> CoveError:
    return CoveError(
        "bad_request",
        f"the value {what}",
        hint=f"1 byte to {LARGEST_VALUE // 1024} KiB of UTF-8 text; base64 for anything else",
    )
