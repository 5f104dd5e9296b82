"""The campaign finds what it is for: each of these breaks the gateway, and is found."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import httptools
import pytest

from cove.gateway import upstream
from cove.gateway.exchange import Exchange
from cove.gateway.head import Head, Heads
from cove.gateway.http import Connection, Phase
from cove.mcp import classify
from fuzz import rewriting, ways
from fuzz.campaign import again, run

COUNT = 30_000
Patch = pytest.MonkeyPatch


def _after(method: Callable[..., Any], then: Callable[..., None]) -> Callable[..., Any]:
    def patched(self: Any, *args: Any) -> Any:
        value = method(self, *args)
        then(self, *args)
        return value

    return patched


def a_byte_is_lost_where_a_head_is_split(patch: Patch) -> None:
    feed = Connection._feed

    def patched(self: Connection, data: bytes) -> None:
        continues = self._in_head and self._head_bytes > len(data)
        feed(self, data[1:] if continues else data)

    patch.setattr(Connection, "_feed", patched)


def headers_stay_for_the_next_request(patch: Patch) -> None:
    complete = Connection.on_message_complete

    def patched(self: Connection) -> None:
        headers = self._headers
        complete(self)
        self._headers = headers[:1]

    patch.setattr(Connection, "on_message_complete", patched)


def a_length_stays_for_the_next_request(patch: Patch) -> None:
    complete = Connection.on_message_complete

    def patched(self: Connection) -> None:
        length = self._length
        complete(self)
        self._length = length

    patch.setattr(Connection, "on_message_complete", patched)


def it_goes_on_after_a_refusal(patch: Patch) -> None:
    close = Connection._close_after_reply

    def patched(self: Connection) -> None:
        if self._refused is None:
            close(self)
            return
        self._refused = None
        self._in_head, self._headers, self._url, self._length = True, [], b"", None
        self._parser = httptools.HttpRequestParser(self)
        self.resume()

    patch.setattr(Connection, "_close_after_reply", patched)


def it_serves_what_follows_the_last_reply(patch: Patch) -> None:
    close = Connection._close_after_reply

    def patched(self: Connection) -> None:
        close(self)
        self.phase = Phase.IDLE

    patch.setattr(Connection, "_close_after_reply", patched)


def a_request_is_begun_after_the_last_reply(patch: Patch) -> None:
    complete = Connection.on_headers_complete

    def patched(self: Connection) -> None:
        if self.phase is Phase.LINGER:
            self.phase = Phase.IDLE
        complete(self)

    patch.setattr(Connection, "on_headers_complete", patched)


def it_says_nothing_before_it_closes(patch: Patch) -> None:
    patch.setattr(Connection, "_say_refused", lambda self: self._close_after_reply())


def _lenient(patch: Patch, **leniencies: bool) -> None:
    def loosen(self: Connection, *args: object) -> None:
        self._parser.set_dangerous_leniencies(**leniencies)

    patch.setattr(Connection, "__init__", _after(Connection.__init__, loosen))


def two_body_lengths_are_taken(patch: Patch) -> None:
    _lenient(patch, lenient_chunked_length=True)
    complete = Connection.on_headers_complete

    def patched(self: Connection) -> None:
        if any(name == b"transfer-encoding" for name, _ in self._headers):
            self._length = None
        complete(self)

    patch.setattr(Connection, "on_headers_complete", patched)


def any_coding_is_taken(patch: Patch) -> None:
    _lenient(patch, lenient_transfer_encoding=True)
    made = Head.__init__

    def patched(
        self: Head, method: bytes, url: bytes, version: str, headers: Any, **more: Any
    ) -> None:
        plain = [(n, b"chunked" if n == b"transfer-encoding" else v) for n, v in headers]
        made(self, method, url, version, plain, **more)
        self.headers = headers

    patch.setattr(Head, "__init__", patched)


def bare_line_feeds_are_taken(patch: Patch) -> None:
    _lenient(patch, lenient_optional_cr_before_lf=True)


def bare_carriage_returns_are_taken(patch: Patch) -> None:
    _lenient(patch, lenient_optional_lf_after_cr=True)


def spaces_after_a_chunks_size_are_taken(patch: Patch) -> None:
    _lenient(patch, lenient_spaces_after_chunk_size=True)


def odd_characters_in_headers_are_taken(patch: Patch) -> None:
    _lenient(patch, lenient_headers=True)


def it_reads_wishes_by_itself(patch: Patch) -> None:
    made = Head.__init__

    def patched(self: Head, *args: Any, **more: Any) -> None:
        made(self, *args, **more)
        self.wishes = b"upgrade" in self.fields and b"upgrade" in self.fields.get(
            b"connection", b""
        )

    patch.setattr(Head, "__init__", patched)


def what_follows_an_upgrade_that_was_not_granted_is_lost(patch: Patch) -> None:
    go_on = Connection._go_on

    def patched(self: Connection) -> None:
        self._rest = b""
        go_on(self)

    patch.setattr(Connection, "_go_on", patched)


def reading_goes_on_while_an_upgrade_is_undecided(patch: Patch) -> None:
    upgraded = Connection._upgraded

    def patched(self: Connection, rest: memoryview) -> bytes | memoryview:
        left = upgraded(self, rest)
        self._held = False
        self.resume()
        return left

    patch.setattr(Connection, "_upgraded", patched)


def reading_goes_on_while_requests_wait(patch: Patch) -> None:
    resume = Connection.resume

    def patched(self: Connection) -> None:
        queue, self._queue = self._queue, deque()
        resume(self)
        self._queue = queue

    patch.setattr(Connection, "resume", patched)


def two_requests_are_served_at_once(patch: Patch) -> None:
    complete = Connection.on_headers_complete

    def patched(self: Connection) -> None:
        complete(self)
        if self._queue:
            self._app.serve(self._queue.popleft())

    patch.setattr(Connection, "on_headers_complete", patched)


def a_connection_never_times_out(patch: Patch) -> None:
    patch.setattr(Connection, "_timed_out", lambda self, text: None)


def an_exception_escapes(patch: Patch) -> None:
    lost = Connection.connection_lost

    def patched(self: Connection, exc: Exception | None) -> None:
        lost(self, exc)
        if self._in_head and self._head_bytes:
            raise KeyError("a defect")

    patch.setattr(Connection, "connection_lost", patched)


def heads_are_told_apart_by_their_targets_alone(patch: Patch) -> None:
    found: dict[bytes, Head] = {}
    get = Heads.get

    def patched(self: Heads, peer: str, method: bytes, url: bytes, *args: Any, **more: Any) -> Head:
        if url not in found:
            found[url] = get(self, peer, method, url, *args, **more)
        return found[url]

    patch.setattr(Heads, "get", patched)


def everything_is_remembered(patch: Patch) -> None:
    kept: list[Exchange] = []
    serve = Exchange.__init__
    patch.setattr(Exchange, "__init__", _after(serve, lambda self, *args: kept.append(self)))


FRONT = (
    *(a_byte_is_lost_where_a_head_is_split, headers_stay_for_the_next_request),
    *(a_length_stays_for_the_next_request, it_goes_on_after_a_refusal),
    *(
        it_serves_what_follows_the_last_reply,
        a_request_is_begun_after_the_last_reply,
        it_says_nothing_before_it_closes,
    ),
    *(two_body_lengths_are_taken, any_coding_is_taken, bare_line_feeds_are_taken),
    *(bare_carriage_returns_are_taken, spaces_after_a_chunks_size_are_taken),
    *(odd_characters_in_headers_are_taken, it_reads_wishes_by_itself),
    *(what_follows_an_upgrade_that_was_not_granted_is_lost, two_requests_are_served_at_once),
    *(reading_goes_on_while_an_upgrade_is_undecided, a_connection_never_times_out),
    *(an_exception_escapes, heads_are_told_apart_by_their_targets_alone),
    *(everything_is_remembered, reading_goes_on_while_requests_wait),
)


@pytest.mark.parametrize("defect", FRONT, ids=lambda defect: defect.__name__)
def test_a_front_that_is_broken_is_found(
    defect: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    defect(monkeypatch)
    result = run("front", 1, COUNT)
    assert result.failure is not None


def an_answer_nobody_asked_for_is_kept(patch: Patch) -> None:
    patch.setattr(upstream.UpstreamConnection, "on_message_begin", lambda self: None)


def what_follows_a_whole_answer_spoils_it(patch: Patch) -> None:
    received = upstream.UpstreamConnection.data_received

    def patched(self: upstream.UpstreamConnection, data: bytes) -> None:
        if self._sink is not None and data.endswith(b"\0"):
            self._lose("it sent what is not HTTP")
        else:
            received(self, data)

    patch.setattr(upstream.UpstreamConnection, "data_received", patched)


def an_answer_that_is_cut_off_is_whole(patch: Patch) -> None:
    ended = upstream.UpstreamConnection._ended

    def patched(self: upstream.UpstreamConnection) -> None:
        self._to_eof = self._to_eof or not self._in_head
        ended(self)

    patch.setattr(upstream.UpstreamConnection, "_ended", patched)


def a_status_that_there_is_not_is_interim(patch: Patch) -> None:
    complete = upstream.UpstreamConnection.on_headers_complete

    def patched(self: upstream.UpstreamConnection) -> None:
        if self._parser.get_status_code() >= 100:
            complete(self)

    patch.setattr(upstream.UpstreamConnection, "on_headers_complete", patched)


ANSWERS = (
    *(an_answer_nobody_asked_for_is_kept, what_follows_a_whole_answer_spoils_it),
    *(an_answer_that_is_cut_off_is_whole, a_status_that_there_is_not_is_interim),
)


@pytest.mark.parametrize("defect", ANSWERS, ids=lambda defect: defect.__name__)
def test_a_reader_of_answers_that_is_broken_is_found(
    defect: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    defect(monkeypatch)
    assert run("answers", 1, COUNT).failure is not None


@pytest.mark.parametrize("name", ["x-forwarded-for", "x-request-id", "connection", "te", "host"])
def test_a_callers_line_that_is_sent_on_is_found(name: str, monkeypatch: Patch) -> None:
    for each in rewriting.DESTINATIONS:
        kept = tuple(names - {name.encode()} for names in each.not_sent_on)
        monkeypatch.setattr(each, "not_sent_on", kept)
    assert run("rewriting", 1, 2000).failure is not None


def test_heads_that_are_remembered_without_a_bound_are_found(monkeypatch: Patch) -> None:
    made = Heads.__init__
    monkeypatch.setattr(Heads, "__init__", lambda self, most=0: made(self, 10**9))
    result = run("front", 1, COUNT)
    assert result.failure is not None
    assert "remembered" in result.failure.why


def test_an_era_that_is_misjudged_is_found(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ways, "era", lambda version: classify.Era.LEGACY)
    assert run("ways", 1, 500).failure is not None


def test_a_socket_that_breaks_is_found(monkeypatch: Patch) -> None:
    an_exception_escapes(monkeypatch)
    assert run("sockets", 1, 300).failure is not None


def test_a_failure_says_how_to_have_it_again(monkeypatch: Patch) -> None:
    bare_line_feeds_are_taken(monkeypatch)
    failure = run("front", 1, COUNT).failure
    assert failure is not None
    assert f"make fuzz SEED=1 CASE=front/{failure.number}" in str(failure)
    assert repr(failure.data) in str(failure)
    once_more = again("front", 1, failure.number).failure
    assert once_more is not None
    assert (once_more.data, once_more.cuts, once_more.why) == (
        *(failure.data, failure.cuts, failure.why),
    )
    monkeypatch.undo()
    assert again("front", 1, failure.number).failure is None
