"""What clients send to be read differently by two: bytes bent, and the families of smuggling."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fuzz.grammar import CRLF, INNER, chunked

ODD = (
    *(b"\0", b"\r", b"\n", b" ", b"\t", b":", b";", b",", b"\x0b", b"\x0c", b"\x7f", b"\x80"),
    *(b"\xff", b"\r\n", b"\r\r\n", b"\n\n", b"\r\n\r\n", b"\r\n ", b"0", b"/", b"#", b"\x1b"),
)
CODINGS = (
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding:chunked", b"TRANSFER-ENCODING: Chunked"),
    *(b"Transfer-Encoding: \tchunked", b"Transfer-Encoding: chunked ", b"Transfer-Encoding: x"),
    *(b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunkedx", b"Transfer-Encoding:"),
    *(b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, identity"),
    *(b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding: ,chunked"),
    *(b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked;q=1"),
    *(
        b'Transfer-Encoding: "chunked"',
        b"Transfer-Encoding: chun\rked",
        b"Transfer-Encoding : chunked",
    ),
    *(
        b" Transfer-Encoding: chunked",
        b"Transfer_Encoding: chunked",
        b"Transfer-Encoding\t: chunked",
    ),
    *(
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: \x0bchunked",
    ),
    *(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x", b"Transfer-Encoding:\r\n chunked"),
    *(b"X: y\nTransfer-Encoding: chunked", b"X: y\rTransfer-Encoding: chunked"),
    *(b"\0Transfer-Encoding: chunked", b"Transfer-Encoding: chunked\0", b"Transfer-\0Encoding: x"),
)
LENGTHS = (
    *(b"%d", b"0%d", b"+%d", b"-%d", b" %d ", b"%d, %d", b"%d,0", b"0x%d", b"%d.0", b"%d;", b""),
    *(b"%d\t", b"%d %d", b"9999999999999999999%d", b"18446744073709551616", b"0", b"%d\x0b"),
    *(b"\xd9\xa5", b"%d\r\nContent-Length: %d", b"%d\r\nContent-Length: 0", b"1_0", b"%d\0"),
    *(b"0" * 5000 + b"%d", b"%d\r\n ", b"4294967296", b"-1"),
)
SIZES = (
    *(b"5 ", b" 5", b"+5", b"-5", b"0x5", b"5;", b"5;\n", b'5;a="\r\n', b"5;a=\0", b"5\n", b"5\r"),
    *(
        b"000000000000000005",
        b"fffffffffffffffff5",
        b"ffffffffffffffff",
        b"5g",
        b"",
        b"5,5",
        b"5\t",
    ),
    *(
        b"5;a=b\x01",
        b"5; a=b",
        b"5;" + b"x" * 3000,
        b'5;a="b\\""',
        b"5;;",
        b"5;a=",
        b"5 ;a",
        b"7fffffff",
    ),
)
WISH = b"Connection: %b\r\nUpgrade: %b\r\n"

Bend = Callable[[Random, bytes], bytes]


def _place(rng: Random, data: bytes) -> int:
    """Somewhere, and more often where lines end."""
    if rng.random() < 0.5:
        found = data.find(rng.choice((b"\r\n", b":", b" ", b"\r\n\r\n")), rng.randrange(len(data)))
        if found >= 0:
            return min(found + rng.randrange(3), len(data) - 1)
    return rng.randrange(len(data))


def flip(rng: Random, data: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + bytes((data[at] ^ (1 << rng.randrange(8)),)) + data[at + 1 :]


def insert(rng: Random, data: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + rng.choice(ODD) + data[at:]


def overwrite(rng: Random, data: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + rng.choice(ODD) + data[at + 1 :]


def delete(rng: Random, data: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + data[at + rng.choice((1, 1, 1, 2, 5, 20)) :]


def duplicate(rng: Random, data: bytes) -> bytes:
    at = _place(rng, data)
    stop = at + rng.choice((1, 2, 5, 20, 100))
    return data[:stop] + data[at:stop] + data[stop:]


def cut_off(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def bare_end(rng: Random, data: bytes) -> bytes:
    """One line, or every line, ends with half of what it should."""
    end = rng.choice((b"\r", b"\n", b"\n\r", b"\r\r\n", b""))
    if rng.random() < 0.3:
        return data.replace(CRLF, end)
    lines = data.split(CRLF)
    at = rng.randrange(len(lines))
    return CRLF.join(lines[:at]) + end + CRLF.join(lines[at:])


def _line(rng: Random, data: bytes, line: bytes) -> bytes:
    """Put a header line into a head, anywhere but before its first."""
    head, found, rest = data.partition(b"\r\n\r\n")
    lines = head.split(CRLF)
    lines.insert(rng.randrange(len(lines)) + 1, line)
    return CRLF.join(lines) + found + rest


def fold(rng: Random, data: bytes) -> bytes:
    return _line(rng, data, rng.choice((b" folded", b"\tfolded", b" Host: b", b"X: y\r\n z", b" ")))


def odd_name(rng: Random, data: bytes) -> bytes:
    names = (
        b"X : y",
        b"X Y: z",
        b": y",
        b"X\t: y",
        b"X",
        b"X\0: y",
        b"(x): y",
        b"X\xff: y",
        b"Host : b",
    )
    return _line(rng, data, rng.choice(names))


def repeat(rng: Random, data: bytes) -> bytes:
    """A line of the head comes twice, as it is or changed."""
    head = data.partition(b"\r\n\r\n")[0].split(CRLF)[1:]
    if not head:
        return data
    name, colon, value = rng.choice(head).partition(b":")
    return _line(rng, data, name + colon + (value if rng.random() < 0.5 else b" z"))


def another_length(rng: Random, data: bytes) -> bytes:
    value = rng.choice(LENGTHS)
    size = rng.choice((0, 1, 5, len(INNER)))
    return _line(rng, data, b"Content-Length: " + value.replace(b"%d", b"%d" % size))


def another_coding(rng: Random, data: bytes) -> bytes:
    return _line(rng, data, rng.choice(CODINGS))


def odd_chunk(rng: Random, data: bytes) -> bytes:
    size = rng.choice(SIZES)
    head = b"POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    end = rng.choice(
        (b"\r\n0\r\n\r\n", b"0\r\n\r\n", b"\n0\r\n\r\n", b"\r\n0\r\n", b"\r\n00\r\n\r\n")
    )
    return head + size + CRLF + b"hello" + end + data


def long_head(rng: Random, data: bytes) -> bytes:
    return _line(rng, data, b"X-Long: " + b"y" * rng.choice((100, 5000, 9000)))


def swap(rng: Random, data: bytes) -> bytes:
    words = (
        *((b"HTTP/1.1", b"HTTP/1.0"), (b"HTTP/1.1", b"HTTP/2.0"), (b"HTTP/1.1", b"HTTP/1.2")),
        *((b"HTTP/1.1", b"HTTP/11"), (b"HTTP/1.1", b"http/1.1"), (b"HTTP/1.1", b"RTSP/1.0")),
        *((b" HTTP/1.1", b""), (b"GET", b"CONNECT"), (b"GET", b"BREW"), (b"GET", b"SOURCE")),
        *((b"GET", b"get"), (b"Host", b"Hos"), (b"POST", b"PRI"), (b"GET ", b"GET  ")),
        *((b"HTTP/1.1", b"ICE/1.0"), (b" HTTP/1.1", b"\tHTTP/1.1"), (b"GET", b"DESCRIBE")),
    )
    old, new = rng.choice(words)
    return data.replace(old, new, 1)


def smuggle(rng: Random, data: bytes) -> bytes:
    """A request whose end two readers may see in two places, the rest of it another one."""
    inner = rng.choice((INNER, INNER, b"G", data))
    lying = rng.choice((0, 1, 3, len(inner), len(inner) + 5, len(inner) + 7))
    inside = b"0\r\n\r\n" + inner
    length = b"Content-Length: %d" % rng.choice((lying, len(inside)))
    coding = rng.choice(CODINGS)
    family = rng.randrange(8)
    if family == 0:  # CL.TE
        lines, rest = (length, coding), inside
    elif family == 1:  # TE.CL
        lines, rest = (coding, length), chunked(rng, inner)
    elif family == 2:  # TE.TE
        lines, rest = (coding, rng.choice(CODINGS)), inside
    elif family == 3:  # 0.CL: a length where one reader expects no body
        lines, rest = (length,), inner
    elif family == 4:  # CL.CL
        lines, rest = (length, b"Content-Length: %d" % lying), inner
    elif family == 5:  # h2c, and whatever else a head may wish for
        wish = rng.choice((b"h2c", b"websocket", b"TLS/1.0", b""))
        named = rng.choice((b"Upgrade", b"upgrade, HTTP2-Settings", b"x-upgrade", b"keep-alive"))
        lines = (WISH[:-2] % (named, wish), rng.choice((length, coding, b"A: b")))
        rest = rng.choice((inside, inner, chunked(rng, inner)))
    elif family == 6:  # a wish by another name
        wish = b"%b: upgrade\r\nUpgrade: %b" % (
            rng.choice((b"Proxy-Connection", b"Connection", b"Keep-Alive", b"X-Connection")),
            rng.choice((b"h2c", b"websocket")),
        )
        lines, rest = (wish, rng.choice((length, coding))), rng.choice((inside, inner))
    else:  # expectations
        lines, rest = (b"Expect: 100-continue", rng.choice((length, coding))), inside
    method = rng.choice((b"GET", b"POST", b"HEAD", b"OPTIONS"))
    head = CRLF.join((method + b" /outer HTTP/1.1", b"Host: a", *lines, b"", b""))
    return head + rest + data


BENDS: tuple[Bend, ...] = (
    *(flip, flip, insert, insert, overwrite, overwrite, delete, duplicate, cut_off, bare_end),
    *(fold, odd_name, repeat, another_length, another_length, another_coding, another_coding),
    *(odd_chunk, odd_chunk, long_head, swap, smuggle, smuggle, smuggle),
)


def bent(rng: Random, requests: list[bytes]) -> bytes:
    """A series as it is, or with one to three things done to it."""
    if rng.random() < 0.35:
        return b"".join(requests)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(requests))
        if requests[at]:
            requests[at] = rng.choice(BENDS)(rng, requests[at])
    return b"".join(requests)
