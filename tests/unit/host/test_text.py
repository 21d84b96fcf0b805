"""Text as it comes: whole characters only, and nothing of a stop."""

from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from alula.host.text import Stream, Text, TextError, Writer, read_files

DENSE = Path(str(files("alula.host.bundled"))) / "dense"
TEXT = Text(read_files(DENSE))
SAMPLES = ["the window", "naïve café", "日本語", "👩‍🔬 of 🇨🇭", "a\n\n  b\tc", "\ufffd!", ""]


class Spelled:
    """A tokenizer whose tokens are bytes."""

    def decode(self, tokens, *, special=False):
        return bytes(tokens).decode(errors="replace")


def _streamed(stream, tokens):
    return [stream.push(token) for token in tokens]


@pytest.mark.parametrize("sample", SAMPLES)
def test_stream_gives_the_whole_text(sample):
    pieces = _streamed(Stream(TEXT), TEXT.encode(sample + " end"))
    assert "".join(pieces) == sample + " end"


def test_stream_of_a_long_text():
    sample = " ".join(SAMPLES) * 20 + "end"
    assert "".join(_streamed(Stream(TEXT), TEXT.encode(sample))) == sample


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 2047), max_size=80))
def test_stream_of_any_tokens(tokens):
    """Of tokens that are no text too, what is given out is what the whole would say."""
    given_out = "".join(_streamed(Stream(TEXT), tokens))
    whole = TEXT.decode(tokens)
    assert whole.startswith(given_out.rstrip("\ufffd")) and len(whole) - len(given_out) <= 3


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_stream_never_breaks_a_character(sample):
    if "\ufffd" in sample:
        return
    shown = ""
    stream = Stream(Spelled())
    for byte in sample.encode():
        piece = stream.push(byte)
        assert "\ufffd" not in piece
        shown += piece
        assert sample.startswith(shown)
    assert shown == sample


@settings(max_examples=300, deadline=None)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
       st.booleans())
def test_stops_that_straddle_tokens(sample, stops, keep):
    """The stop complete first ends the text, however it is cut; nothing of it was given out."""
    writer = Writer(Stream(Spelled()), stops, keep=keep)
    given_out = ""
    for byte in sample.encode():
        given_out += writer.push(byte)
        if writer.stop:
            break
    given_out += writer.finish()
    ends = [sample.find(stop) + len(stop) for stop in stops if stop in sample]
    expected = sample
    if ends:
        end = min(ends)
        longest = max((stop for stop in stops if sample[:end].endswith(stop)), key=len)
        assert writer.stop == longest
        expected = sample[:end] if keep else sample[:end - len(longest)]
    assert given_out == writer.text == expected


def test_stop_within_one_token():
    stream = Stream(Spelled())
    stream.push = lambda text: text
    writer = Writer(stream, ["END"])
    assert writer.push("abEN") == "ab" and writer.push("x") == "ENx"
    assert writer.push("yENDz") == "y" and writer.stop == "END" and writer.push("more") == ""


def test_stop_is_not_looked_for_early():
    writer = Writer(Stream(Spelled()), ["ab"])
    assert writer.push(ord("a"), may_stop=False) == "a"
    assert writer.push(ord("b")) == "b" and writer.stop is None


def test_special_tokens():
    tokens = [*TEXT.encode("the"), 0]
    assert TEXT.decode(tokens) == "the"
    assert TEXT.decode(tokens, special=True) == "the<|endoftext|>"


def test_tokenizer_wrong():
    with pytest.raises(TextError, match="^the model must have a tokenizer.json to work with text"):
        Text({})
    with pytest.raises(TextError, match="^tokenizer.json must be readable by `tokenizers`: "):
        Text({"tokenizer.json": b"{"})
