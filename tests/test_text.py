"""Captions to ids and back."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumos import cli
from lumos.config import Config, SequenceConfig, TextConfig
from lumos.data import captions, manifest
from lumos.data.captions import clean
from lumos.data.text import DEFAULT_MODEL, TextTokenizer, default_corpus, instruct, train_vocab
from lumos.errors import UserError
from lumos.interop import lumos1_prompt


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer()


def test_shipped_model(tokenizer):
    assert DEFAULT_MODEL.stat().st_size <= 64 * 1024
    assert tokenizer.vocab_size == 512
    words = "red green blue yellow circle square triangle cross left right up down moving moves the small large"
    for word in words.split():
        assert tokenizer.pieces(word) == ["▁" + word]


def test_the_vocabulary_size_is_set_without_a_config_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(manifest, "read_manifest", lambda path: [{"caption": "a red circle moves left"}] * 9)
    arguments = ["data", "vocab", "--manifest=clips.jsonl", f"--out={tmp_path / 'text.model'}"]
    assert cli.main([*arguments, "--config.text.vocab_size=280"]) == 0
    assert "280 pieces" in capsys.readouterr().out
    assert cli.main([*arguments, "--config.text.vocabsize=280"]) == 2
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize(
    "template", ["{caption}, {frames} frames at {fps} fps", "A clip of {width}x{height}.\n{caption}", "\n{caption}"]
)
def test_a_template_surrounds_a_caption_once(template):
    config = Config(text=TextConfig(template=template))
    once = instruct(config, "a red circle", (5, 8, 8))
    assert once != "a red circle" and "a red circle" in once
    if template.strip() != "{caption}":
        assert instruct(config, once, (5, 8, 8)) == once


# One caption as people and programs write it.
SPELLINGS = (
    "a red circle moves", "  a red circle  moves\n", "a\u00a0red circle\tmoves", "a red\r\ncircle\x0bmoves", "a red\u2028circle\x00moves",
    "a\u3000red circle \u2009moves\x85", "a red circle\x1f moves \udce9",
)  # fmt: skip


@pytest.mark.parametrize("template", ["", "A clip of {width}x{height}.\n {caption}", "{caption}\n at {fps} fps"])
def test_a_prompt_gives_the_tokens_of_the_same_caption(template, tokenizer, tmp_path):
    """The caption of a file beside a clip, cleaned when it was indexed, against the prompt of generation."""
    config = Config(text=TextConfig(template=template))
    encode = lambda text: tokenizer.encode(instruct(config, text, (5, 8, 8)), 128)[0].tolist()
    expected = instruct(config, "a red circle moves", (5, 8, 8))
    assert expected == (
        template.replace("{caption}", "a red circle moves").format(width=64, height=64, fps=12) or SPELLINGS[0]
    )
    for text in SPELLINGS:
        (tmp_path / "clip.txt").write_text(text, errors="replace")
        assert encode(clean(captions.read_beside(tmp_path / "clip.mp4")[0]).removesuffix(" ?")) == encode(text)
        assert instruct(config, text, (5, 8, 8)) == expected
        if template:  # what is inside already keeps the lines of the template, and is cleaned alike
            assert instruct(config, expected.replace("a red circle moves", text), (5, 8, 8)) == expected


def test_an_instructed_prompt_of_another_clip_keeps_its_lines():
    config = Config(text=TextConfig(template="A clip.\nOf {width}x{height}.\n {caption}"))
    other = instruct(config, "a red circle", (5, 4, 4))
    assert other == "A clip.\nOf 32x32.\n a red circle" == instruct(config, other, (5, 8, 8))
    assert instruct(config, other + "\x00\udce9!", (5, 8, 8)) == other + "  !"


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.text(st.characters() | st.sampled_from(" \n\t\xa0\x00\udcff\u200b\ufeff"), max_size=20))
def test_cleaning_is_done_once(text):
    once = clean(text)
    assert clean(once) == once == once.strip() and once.isspace() is False
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c.isspace() and c != " " for c in once)
    assert "".join(once.split()) == "".join(
        c for c in text if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cs")
    )
    once.encode()
    assert instruct(Config(), text, (5, 8, 8)) == once


def test_long_captions_lose_their_end_in_indexing_and_generation_alike():
    text = " word" * 10_000
    assert clean(text) == " ".join(["word"] * 2_000) == instruct(Config(), text, (5, 8, 8))


def test_the_released_instruction_is_what_it_was():
    """Text of the released models, letter for letter: a line break and a blank before the caption."""
    config = Config(text=TextConfig(template=lumos1_prompt.TEMPLATE), sequence=SequenceConfig(fps=12, duration=2))
    text = lumos1_prompt.instruction("a cat", width=448, height=256, fps=12, duration=2)
    assert text == (
        "Generate a video with a resolution of 448x256, consisting of 24 frames at 12 frames per second, according to the "
        "following prompt:\n a cat"
    )
    for prompt in ("a cat", text, " a\n cat ", "a\xa0cat"):
        assert instruct(config, prompt, (7, 32, 56)) == text


def test_a_vocabulary_is_learnt_from_cleaned_captions(tmp_path):
    corpus = ["a red circle", "a blue square"] * 3
    clean_model = train_vocab(corpus, tmp_path / "a.model", 300)
    train_vocab([f" {text.replace(' ', chr(160))}\n\x00" for text in corpus] + ["\n", ""], tmp_path / "b.model", 300)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes() and clean_model.vocab_size <= 300


def test_ids_are_right_aligned_after_the_beginning(tokenizer):
    ids_P, count = tokenizer.encode("a red circle", 8)
    assert ids_P.dtype == np.int32 and ids_P.shape == (8,)
    assert count == 4
    np.testing.assert_array_equal(ids_P[:4], 0)
    assert ids_P[4] == tokenizer.bos_id == 2
    assert (ids_P[5:] > 3).all()
    np.testing.assert_array_equal(tokenizer.encode("", 3)[0], [0, 0, 2])


@pytest.mark.parametrize(
    "text", ["a red circle moves up-right", "Ein großer  Äpfel\n 🎈 日本語", " leading, trailing ", "UPPER 123 <0x41>"]
)
def test_any_text_survives_by_byte_fallback(tokenizer, text):
    ids_P, count = tokenizer.encode(text, 128)
    assert 1 not in ids_P  # the unknown id
    assert tokenizer.decode(ids_P) == text
    assert count == (ids_P != 0).sum()


def test_long_captions_keep_their_beginning_and_are_counted(caplog):
    tokenizer = TextTokenizer()
    whole_P, count = tokenizer.encode("a red circle moves right over a dark background", 32)
    cut_P, cut_count = tokenizer.encode("a red circle moves right over a dark background", 5)
    np.testing.assert_array_equal(cut_P, whole_P[32 - count :][:5])
    assert cut_count == 5
    assert tokenizer.num_truncated == 1
    assert f"a text of {count} tokens is cut to config.sequence.text_length=5" in caplog.text


def test_training_is_reproducible_and_shrinks_to_the_corpus(tmp_path):
    corpus = default_corpus()
    first = train_vocab(corpus, tmp_path / "a.model", 400)
    train_vocab(corpus, tmp_path / "b.model", 400)
    assert first.vocab_size == 400
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()

    small = train_vocab(["a red circle", "a blue square"], tmp_path / "small.model", 5000)
    assert 260 < small.vocab_size < 400
    assert small.decode(small.encode("a blue circle ü", 32)[0]) == "a blue circle ü"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.model", "b.model", "small.model"]


def test_errors(tmp_path):
    with pytest.raises(UserError, match="no captions"):
        train_vocab(["", " "], tmp_path / "m.model", 400)
    with pytest.raises(UserError, match="vocabulary of 262 is too small"):
        train_vocab(["a red circle"], tmp_path / "m.model", 262)
    with pytest.raises(UserError, match="absent.model: no such file"):
        TextTokenizer(tmp_path / "absent.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="bad.model: not a sentencepiece model"):
        TextTokenizer(tmp_path / "bad.model")
