"""Captions to ids and back."""

import numpy as np
import pytest

from lumos import cli
from lumos.config import Config, TextConfig
from lumos.data import index
from lumos.data.text import DEFAULT_MODEL, TextTokenizer, default_corpus, instruct, train_vocab
from lumos.errors import UserError


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
    monkeypatch.setattr(index, "read_manifest", lambda path: [{"caption": "a red circle moves left"}] * 9)
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
