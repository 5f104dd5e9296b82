"""Server-sent events: cut right wherever the network cut them."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cove.mcp.sse import Event, EventParser, EventTooLargeError, encode, retry


def read(*parts: bytes) -> list[Event]:
    parser = EventParser()
    return [event for part in parts for event in parser.feed(part)]


def fields(events: list[Event]) -> list[tuple[bytes, bytes, bytes]]:
    """Events but for `raw`, which may differ by an LF that nobody reads."""
    return [(event.event, event.data, event.id) for event in events]


def said(events: list[Event]) -> list[tuple[bytes, bytes, bytes]]:
    """What events say to a client's application."""
    return fields([event for event in events if not event.is_comment])


def test_an_event_has_its_fields() -> None:
    (event,) = read(b"event: message\nid: 7\ndata: one\ndata:two\ndata\nretry: 5\n: hi\n\n")
    assert (event.event, event.id, event.data) == (b"message", b"7", b"one\ntwo\n")
    assert event.raw.startswith(b"event: message\n")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_end_as_the_server_likes(end: bytes) -> None:
    stream = end.join([b"event: a", b"data: 1", b"data: 2", b"", b"data: 3", b"", b""])
    assert said(read(stream)) == [(b"a", b"1\n2", b""), (b"", b"3", b"")]


def test_lines_may_end_differently_in_one_event() -> None:
    assert said(read(b"data: 1\n\r\ndata: 2\r\n\ndata: 3\r\r\ndata: 4\n\r")) == [
        (b"", text, b"") for text in (b"1", b"2", b"3", b"4")
    ]


@pytest.mark.parametrize("block", [b": comment\n\n", b"id: 3\n\n", b"retry: 10\n\n", b"data:\n\n"])
def test_what_carries_nothing_is_a_comment(block: bytes) -> None:
    (event,) = read(block)
    assert event.is_comment
    assert event.raw == block


def test_an_event_is_out_with_its_last_byte() -> None:
    for stream in (b"data: 1\n\n", b"data: 1\r\n\r\n", b"data: 1\r\r"):
        parser = EventParser()
        assert list(parser.feed(stream[:-2])) == []
        assert [e.data for part in (stream[-2:-1], stream[-1:]) for e in parser.feed(part)] == [
            b"1"
        ]


PIECES = st.lists(
    st.sampled_from(
        [
            b"\r",
            b"\n",
            b"\r\n",
            b"\n\n",
            b"\r\n\r\n",
            b"data: x",
            b"data:",
            b"event: e",
            b"id: 1",
            b":",
        ]
    ),
    max_size=30,
)


@given(PIECES, st.lists(st.integers(0, 200), max_size=20))
@example([b"data: x", b"\r", b"\r", b"\n", b"data: x", b"\n\n"], [8, 9])
@example([b"data: x", b"\r", b"\r", b"\n\n", b"data: x", b"\n\n"], [8, 9])
@example([b"data: x", b"\n", b"\r\n", b"data: x", b"\n\n"], [8, 9])
def test_events_are_the_same_for_every_split(pieces: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(pieces)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    parts = [stream[a:b] for a, b in itertools.pairwise(places)]
    assert fields(read(*parts)) == fields(read(stream))
    assert fields(read(*(stream[n : n + 1] for n in range(len(stream))))) == fields(read(stream))


@given(st.binary(max_size=200), st.sampled_from([b"message", b"endpoint"]))
def test_what_is_encoded_is_read_again(data: bytes, name: bytes) -> None:
    data = data.replace(b"\r", b"")
    assert said(read(encode(data, name))) == ([(name, data, b"")] if data else [])


@given(PIECES)
def test_no_byte_is_lost_or_said_twice(pieces: list[bytes]) -> None:
    stream = b"".join(pieces)
    raw = b"".join(event.raw for event in read(stream))
    assert stream.startswith(raw)


def test_a_reader_that_stops_midway_goes_on_where_it_stopped() -> None:
    parser = EventParser()
    assert next(iter(parser.feed(b"data: 1\n\ndata: 2\n\n"))).data == b"1"
    assert [event.data for event in parser.feed(b"data: 3\n\n")] == [b"2", b"3"]


def test_an_event_without_end_is_given_up() -> None:
    parser = EventParser(limit=1000)
    for _ in range(9):
        assert list(parser.feed(b"data: " + b"x" * 100)) == []
    with pytest.raises(EventTooLargeError):
        list(parser.feed(b"data: " + b"x" * 100))
    assert issubclass(EventTooLargeError, ConnectionError)


def test_a_large_event_costs_time_in_proportion() -> None:
    def seconds(parts: int) -> float:
        parser = EventParser(limit=2**30)
        begun = time.process_time()
        for _ in range(parts):
            assert list(parser.feed(b"x" * 4096)) == []
        (event,) = parser.feed(b"\n\n")
        assert len(event.raw) == parts * 4096 + 2
        return time.process_time() - begun

    assert seconds(4000) < 0.5  # 16 MiB; looked through anew at each part it takes minutes


@pytest.mark.parametrize(
    ("raw", "wait"),
    [(b"retry: 1500\n\n", 1.5), (b"id: 1\r\nretry:20\r\n\r\n", 0.02), (b"data: retry: 5\n\n", 0.0)],
)
def test_a_wished_pause_is_found(raw: bytes, wait: float) -> None:
    assert retry(raw) == wait
