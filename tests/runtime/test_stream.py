from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel

from compress.runtime.stream import TextStream

TEXT = "naïve 日本 👩‍👩‍👧 ok"


def byte_level():
    """One token a byte: every character beyond ASCII spans tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_fallback():
    """Llama's way: words that carry their space as ▁, bytes for what is unknown."""
    words = ["▁Hello", "▁big", "▁world"]
    vocabulary = {f"<0x{i:02X}>": i for i in range(256)} | {w: 256 + i for i, w in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def pieces(stream, tokens):
    found = []
    for token in tokens:
        found.append(stream.push(token))
        if stream.stopped:
            break
    return [*found, stream.flush()]


@pytest.mark.parametrize("prompt", ["", "Say: "])
def test_characters_that_span_tokens_come_whole(prompt):
    tokenizer = byte_level()
    found = pieces(
        TextStream(tokenizer.decode, tokenizer.encode(prompt).ids), tokenizer.encode(TEXT).ids
    )
    assert "".join(found) == TEXT
    assert not any("\ufffd" in piece for piece in found)
    assert sum(map(bool, found)) == len(TEXT)


def test_bytes_and_words_join_as_the_decoder_joins_them():
    tokenizer = byte_fallback()
    tokens = [256, *"👩".encode(), *"é".encode(), 257, *"日本".encode(), 258]
    for size in range(len(tokens)):
        prompt, rest = tokens[:size], tokens[size:]
        if "\ufffd" in tokenizer.decode(prompt):
            continue  # a text prompt never ends inside a character
        found = "".join(pieces(TextStream(tokenizer.decode, prompt), rest))
        assert tokenizer.decode(prompt) + found == tokenizer.decode(tokens)


def test_bytes_that_never_become_a_character_are_shown_at_the_end():
    tokenizer = byte_level()
    tokens = tokenizer.encode("a日").ids[:-1]
    found = pieces(TextStream(tokenizer.decode, []), tokens)
    assert found == ["a", "", "", "\ufffd"]


def spell(tokens):
    return "".join(chr(token) for token in tokens)


def texts(text, stop):
    stream = TextStream(spell, [], stop)
    found = pieces(stream, [ord(c) for c in text])
    return "".join(found), stream.stopped, found


def test_a_stop_string_across_pieces_ends_the_text_and_is_left_out():
    assert texts("one END two", ["END"])[:2] == ("one ", True)


def test_what_only_begins_like_a_stop_string_is_given_back():
    text, stopped, found = texts("aab aac aaa", ["aaaa", "aad"])
    assert (text, stopped) == ("aab aac aaa", False)
    assert found[-1] == "aaa"  # held back until nothing followed


def test_the_first_of_several_stop_strings_wins():
    assert texts("x abc y", ["c", "ab"])[:2] == ("x ", True)


def test_a_stop_string_inside_one_piece_cuts_it():
    stream = TextStream(
        lambda tokens: "".join(["hello\nworld", "!"][t] for t in tokens), [], ["\n"]
    )
    assert stream.push(0) == "hello"
    assert stream.stopped
    assert stream.flush() == ""
