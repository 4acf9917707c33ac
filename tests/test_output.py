"""What a command prints: whole when short, head and tail when long, in constant memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions_app import output
from sessions_app.events import HEAD_BYTES, TAIL_BYTES
from sessions_app.output import INLINE_BYTES, Capture, text_of


def captured(*chunks: bytes) -> Capture:
    capture = Capture()
    for chunk in chunks:
        capture.feed(chunk)
    return capture


def test_nothing_printed_is_nothing_kept():
    capture = captured()
    assert capture.whole is None
    assert capture.output().model_dump() == {
        "head": "", "tail": "", "size": 0, "binary": False, "artifact_id": None, "note": "",
    }  # fmt: skip


def test_short_output_is_kept_whole():
    capture = captured(b"one\n", b"two\n")
    said = capture.output()
    assert (said.head, said.tail, said.size) == ("one\ntwo\n", "", 8)
    assert capture.whole is None


@pytest.mark.parametrize("chunk", [1, 7, 4096, INLINE_BYTES])
def test_output_of_exactly_the_limit_is_kept_whole_and_a_byte_more_is_not(chunk):
    data = bytes(33 + number % 90 for number in range(INLINE_BYTES))
    chunks = [data[start : start + chunk] for start in range(0, len(data), chunk)]
    capture = captured(*chunks)
    assert capture.whole is None
    assert capture.output().head == data.decode()
    capture.feed(b"!")
    assert capture.whole is not None
    assert capture.whole.read() == data + b"!"
    said = capture.output("art_1")
    assert (said.head, said.tail) == (
        data[:HEAD_BYTES].decode(),
        (data + b"!")[-TAIL_BYTES:].decode(),
    )
    assert (said.size, said.artifact_id) == (INLINE_BYTES + 1, "art_1")
    capture.close()


def test_one_huge_chunk_is_kept_like_many_small_ones():
    data = b"".join(b"%06d\n" % number for number in range(40_000))
    one, many = captured(data), captured(*(data[i : i + 999] for i in range(0, len(data), 999)))
    assert one.output() == many.output()
    assert one.whole.read() == many.whole.read() == data  # type: ignore[union-attr]
    one.close()
    many.close()


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_however_it_comes_the_file_holds_every_byte_and_the_event_both_ends(chunks):
    small = {"INLINE_BYTES": 64, "HEAD_BYTES": 16, "TAIL_BYTES": 8}
    kept = {name: getattr(output, name) for name in small}
    try:
        for name, value in small.items():
            setattr(output, name, value)
        capture, data = captured(*chunks), b"".join(chunks)
        assert capture.size == len(data)
        assert capture.tail() == text_of(data[-8:])
        if len(data) <= 64:
            # Binary is not shown, so its file is kept however short it is.
            assert (capture.whole is None) == (b"\x00" not in data)
        else:
            assert capture.whole.read() == data
            assert bytes(capture._start) == data[:16]
        capture.close()
    finally:
        for name, value in kept.items():
            setattr(output, name, value)


def test_more_than_the_most_is_cut_and_said_so(monkeypatch):
    monkeypatch.setattr(output, "MOST_BYTES", INLINE_BYTES + 10)
    capture = captured(b"a" * INLINE_BYTES, b"b" * 7, b"c" * 7, b"d" * 7)
    assert capture.whole is not None
    assert capture.whole.read() == b"a" * INLINE_BYTES + b"b" * 7 + b"c" * 3
    said = capture.output()
    assert said.size == INLINE_BYTES + 21
    assert said.tail.endswith("d" * 7)
    assert "first" in said.note
    capture.close()


def test_a_command_that_prints_without_end_is_held_in_constant_memory(monkeypatch):
    monkeypatch.setattr(output, "MOST_BYTES", 200_000)
    capture = captured(*[b"y\n" * 32_000] * 200)
    assert capture.size == 12_800_000
    assert len(capture._start) == HEAD_BYTES
    assert len(capture._tail) == TAIL_BYTES
    assert len(capture.whole.read()) == 200_000  # type: ignore[union-attr]
    capture.close()


def test_binary_output_is_not_shown():
    for data in (b"\x7fELF\x00\x01", b"text first\x00" + b"x" * INLINE_BYTES):
        capture = captured(data)
        said = capture.output()
        assert (said.binary, said.head, said.tail) == (True, "", "")
        assert "binary" in said.note
        assert said.size == len(data)
        capture.close()


def test_output_that_turns_binary_late_shows_no_bytes_that_cannot_be_stored():
    capture = captured(b"x" * INLINE_BYTES, b"\x00\xff" * TAIL_BYTES)
    said = capture.output()
    assert "\x00" not in said.head + said.tail
    capture.close()


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", ""),
        ("ä€😀".encode(), "ä€😀"),
        ("ä€😀".encode()[1:], "€😀"),
        ("😀b".encode()[3:], "b"),
        ("a😀".encode()[:-1], "a"),
        ("a😀".encode()[:-3], "a"),
        (b"a\xffb", "a\N{REPLACEMENT CHARACTER}b"),
        (b"\x80\x80\x80\x80a", "\N{REPLACEMENT CHARACTER}a"),
    ],
)
def test_a_character_cut_in_two_is_dropped_and_other_faults_are_shown(raw, text):
    assert text_of(raw) == text


@given(st.text(max_size=50), st.integers(0, 60), st.integers(0, 60))
def test_any_cut_of_good_text_decodes_without_a_fault(text, start, length):
    raw = text.encode(errors="replace")[start : start + length]
    assert text_of(raw).count("\N{REPLACEMENT CHARACTER}") <= text.count(
        "\N{REPLACEMENT CHARACTER}"
    )


@given(st.binary(max_size=200))
def test_any_bytes_become_text_that_can_be_stored(raw):
    text_of(raw).encode()
