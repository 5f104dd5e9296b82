"""What clients send: requests in the shapes that RFC 9112 allows, alone and in series."""

from __future__ import annotations

from random import Random

CRLF = b"\r\n"

METHODS = (b"GET", b"POST", b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH")
HOSTS = (b"a", b"localhost", b"127.0.0.1:7070", b"fn.localhost", b"[::1]:80", b"Fn.LocalHost:1")
PATHS = (
    *(b"/", b"/a", b"/fn/fn/mcp", b"/fn/fn", b"/fn/other/x?y=1", b"/fn/fn?q", b"/healthz"),
    *(b"//a//b", b"/%2e%2e/x", b"/fn/", b"/fn/fn/../other/", b"/?/fn/fn/", b"/a?b=c&d=%00"),
    *(b"*", b"/messages/?s=1", b"/sse", b"/fn/nobody/"),
)
FIELDS = (
    *(b"Accept: */*", b"User-Agent: x", b"X-Empty:", b"X-Tab:\ta\tb\t", b"x-high: \xff\xfe"),
    *(b"Cookie: a=1", b"Cookie: b=2", b"Accept: text/html", b"X-Spaces:   a  b  ", b"A:b"),
    *(b"Authorization: Bearer x", b"Mcp-Session-Id: s", b"MCP-Protocol-Version: 2025-06-18"),
    *(b"Mcp-Protocol-Version: 2026-07-28", b"Mcp-Method: tools/call", b"Mcp-Name: t"),
    *(b"Mcp-Method: subscriptions/listen", b"Origin: http://a", b"X-Forwarded-For: 9.9.9.9"),
    *(b"X-Forwarded-Proto: https", b"X_Forwarded_For: 8.8.8.8", b"X-Request-Id: mine"),
    *(b"Connection: keep-alive", b"Connection: close", b"Connection: x-a, X-Tab", b"TE: trailers"),
    *(b"Connection: authorization, host", b"Keep-Alive: timeout=5", b"Proxy-Connection: close"),
    *(b"Expect: 100-continue", b"Expect: other", b"Trailer: x", b"Proxy-Authorization: x"),
    *(b"Upgrade: h2c", b"Upgrade: websocket", b"Forwarded: for=x", b"X-Real-IP: 7.7.7.7"),
    *(b"!#$%&'*+-.^_`|~: every token character", b"Content-Type: application/json"),
)
WISHES = (
    b"Connection: Upgrade\r\nUpgrade: websocket",
    b"Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
    b"Connection: upgrade\r\nUpgrade: TLS/1.0, websocket",
    b"Connection: close, upgrade\r\nUpgrade: h2c",
    b"Connection: close, upgrade\r\nUpgrade: websocket",
    b"Connection: x-upgrade\r\nUpgrade: h2c",
    b"Connection: upgraded\r\nUpgrade: websocket",
    b"Proxy-Connection: upgrade\r\nUpgrade: h2c",
    b"Proxy-Connection: upgrade\r\nUpgrade: websocket",
    b"Connection: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket",
)
EXTENSIONS = (b";a", b";a=b", b';a="b c"', b";a=b;c=d", b";" + b"e" * 40)
TRAILERS = (
    *(b"X-Trailer: 1", b"Authorization: late", b"Connection: close", b"Host: evil"),
    *(b"Connection: upgrade\r\nUpgrade: h2c", b"Cookie: late", b"X-Empty:"),
)
INNER = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
BODIES = (
    b"",
    b"x",
    b"hello",
    b"0\r\n\r\n",
    b"\r\n\r\n",
    INNER,
    b"5\r\nhello\r\n0\r\n\r\n",
    b"\0\xff\n",
)


def body(rng: Random) -> bytes:
    if rng.random() < 0.8:
        return rng.choice(BODIES)
    return rng.randbytes(rng.randrange(200))


def chunked(rng: Random, data: bytes) -> bytes:
    """A body in chunks, with what may stand around them."""
    out = []
    at = 0
    while at < len(data):
        size = rng.randrange(1, len(data) - at + 1)
        line = b"%x" % size if rng.random() < 0.8 else b"%05X" % size
        if rng.random() < 0.15:
            line += rng.choice(EXTENSIONS)
        out += (line, CRLF, data[at : at + size], CRLF)
        at += size
    out += (b"0", rng.choice(EXTENSIONS) if rng.random() < 0.1 else b"", CRLF)
    if rng.random() < 0.2:
        out += (rng.choice(TRAILERS), CRLF)
    out.append(CRLF)
    return b"".join(out)


def target(rng: Random, host: bytes) -> bytes:
    path = rng.choice(PATHS)
    chance = rng.random()
    if chance > 0.12:
        return path
    if chance > 0.08:
        return b"http://" + host + path
    return rng.choice(
        (
            *(b"http://" + host, b"HTTP://" + host + b"?x=/fn/fn/", b"https://" + host + b"/a"),
            *(b"http://other" + path, b"http://u@" + host + b"/", b"ftp://a/", b"a", b"a:80"),
            *(b"/a#b", b"http:///a", b"http://" + host + b"#/x", b"/fn/fn#/../other/"),
        )
    )


def small(rng: Random) -> bytes:
    """A request of few bytes, so that every place to split it can be tried."""
    chance = rng.random()
    if chance < 0.4:
        fields = rng.choice((b"", b"A:b\r\n", b"Connection:close\r\n", b"Content-Length:0\r\n"))
        return b"%b / HTTP/1.1\r\nHost:a\r\n%b\r\n" % (rng.choice(METHODS), fields)
    if chance < 0.6:
        return b"POST / HTTP/1.1\r\nHost:a\r\nContent-Length:5\r\n\r\nhello"
    if chance < 0.8:
        return b"PUT / HTTP/1.1\r\nHost:a\r\nTransfer-Encoding:chunked\r\n\r\n" + chunked(
            rng, b"hi"
        )
    if chance < 0.9:
        wish = b"Connection:upgrade\r\nUpgrade:%b\r\n" % rng.choice((b"h2c", b"websocket"))
        return b"GET / HTTP/1.1\r\nHost:a\r\n" + wish + b"\r\n"
    return b"GET / HTTP/1.0\r\n\r\n"


def request(rng: Random) -> bytes:
    """A request, most often one that is served."""
    method, host = rng.choice(METHODS), rng.choice(HOSTS)
    version = b"1.1" if rng.random() < 0.95 else b"1.0"
    lines = [b"Host: " + host] if rng.random() < 0.98 else []
    if version == b"1.0" and rng.random() < 0.5:
        lines.append(b"Connection: keep-alive")  # which parsers heed, and Cove does not
    lines += rng.choices(FIELDS, k=rng.randrange(5)) if rng.random() < 0.8 else []
    tail = b""
    chance = rng.random()
    if rng.random() < 0.15:
        lines.append(rng.choice(WISHES))
        if rng.random() < 0.5:
            method, chance = b"GET", 1.0
    if chance < 0.35:
        tail = body(rng)
        lines.append(b"Content-Length: %d" % len(tail))
    elif chance < 0.6:
        tail = chunked(rng, body(rng))
        lines.append(rng.choice((b"Transfer-Encoding: chunked", b"transfer-encoding:CHUNKED")))
    if rng.random() < 0.5:
        rng.shuffle(lines)
    start = b"%b %b HTTP/%b" % (method, target(rng, host), version)
    return CRLF.join((start, *lines, b"", b"")) + tail


def large(rng: Random) -> bytes:
    """A request near one of the bounds, on either side."""
    chance = rng.random()
    if chance < 0.3:
        lines = b"".join(b"X-%d: y\r\n" % number for number in range(rng.randrange(96, 104)))
    elif chance < 0.7:
        value = b"v" * (64 * 1024 - rng.randrange(-300, 300))
        lines = b"X-Long: " + value + CRLF
    else:
        data = b"d" * rng.randrange(10_000, 600_000)
        if chance < 0.85:
            return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(data) + data
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head + b"%x\r\n" % len(data) + data + b"\r\n0\r\n\r\n"
    return b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + CRLF


def series(rng: Random) -> list[bytes]:
    """What one connection carries: one to five requests, mostly small of number."""
    chance = rng.random()
    if chance < 0.10:
        return [small(rng)]
    if chance < 0.108:
        return [request(rng), large(rng), request(rng)][rng.randrange(3) :]
    count = rng.choice((1, 1, 1, 2, 2, 3, 4, 5))
    return [request(rng) if rng.random() < 0.9 else small(rng) for _ in range(count)]
