"""Where a WebSocket frame ends, however it came, against a library's own framing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode

from cove.gateway.frames import Frames, close

_OPCODES = st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.PING, Opcode.PONG])
_PAYLOADS = st.sampled_from([0, 1, 2, 125, 126, 127, 65535, 65536]).map(bytes)
_FRAMES = st.lists(st.tuples(_OPCODES, _PAYLOADS, st.booleans(), st.booleans()), max_size=5)


def _bytes(opcode: Opcode, payload: bytes, fin: bool, masked: bool) -> bytes:
    if opcode in (Opcode.PING, Opcode.PONG):
        payload, fin = payload[:125], True
    return Frame(opcode, payload, fin).serialize(mask=masked)


@given(_FRAMES, st.lists(st.integers(0, 300), max_size=40))
def test_ends_are_seen_however_frames_are_cut(
    told: list[tuple[Opcode, bytes, bool, bool]], sizes: list[int]
) -> None:
    whole = [_bytes(*each) for each in told]
    ends = {sum(map(len, whole[:count])) for count in range(len(whole) + 1)}
    data, frames, at = b"".join(whole), Frames(), 0
    for size in [*sizes, len(data)]:
        frames.feed(data[at : at + size])
        at = min(at + size, len(data))
        assert frames.between == (at in ends)
        assert not frames.closed


def test_a_close_frame_is_seen_as_soon_as_it_begins() -> None:
    frames = Frames()
    frames.feed(_bytes(Opcode.TEXT, b"hello", True, False))
    frames.feed(close(1000, "bye")[:3])
    assert frames.closed
    assert not frames.between


def test_what_is_said_in_closing_is_a_frame_that_clients_read() -> None:
    for reason in ("killed by signal 9", "ä" * 200, ""):
        raw = close(1011, reason)
        assert raw[0] == 0x88
        assert raw[1] == len(raw) - 2 <= 125
        said = Close.parse(raw[2:])
        assert (said.code, reason.startswith(said.reason)) == (1011, True)


def test_a_flood_of_empty_frames_is_not_counted_to_its_end() -> None:
    frames = Frames()
    frames.feed(b"\x8a\x00" * 8192)
    assert frames.between
    frames.feed(b"\x8a\x00" * 8193)
    assert not frames.between
    frames.feed(b"\x8a\x00")  # nor is it found again
    assert not frames.between
