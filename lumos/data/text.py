"""Captions to token ids: sentencepiece with byte fallback, so that every string has a code.

A model file that ends in .json is a Hugging Face tokenizer instead, as the released Lumos-1 models need.

Of a sentencepiece model, ids 0 to 3 are padding, unknown, beginning and end of text. The model that ships with lumos
(`default_text.model`, 512 pieces, 256 of them single bytes, 8 KB) was made by
`train_vocab(default_corpus(), "lumos/data/default_text.model", 512)`: the captions of moving_shapes and words that are
common in video captions. Train one on your own captions with `lumos data vocab`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from absl import logging

from lumos.config import Config
from lumos.data.captions import clean, without_controls
from lumos.errors import UserError
from lumos.geometry import frame_size
from lumos.layouts import timing

DEFAULT_MODEL = Path(__file__).with_name("default_text.model")
PAD_ID, UNK_ID, BOS_ID, EOS_ID = range(4)
_NUM_FIXED = 4 + 256  # the ids above and one piece per byte


class TextTokenizer:
    """Encode captions to fixed-length, right-aligned rows of ids.

    Right-aligned: padding is on the left, so that the last word touches the video that follows it.
    """

    pad_id, bos_id, eos_id = PAD_ID, BOS_ID, EOS_ID

    def __init__(self, model: str | Path = ""):
        """Load a model file; "" is the one that ships. Raises UserError when it cannot be used."""
        path = Path(model) if model else DEFAULT_MODEL
        self.num_truncated = 0
        if path.suffix == ".json":
            self._pieces = _HuggingFacePieces(path)
            self.pad_id, self.bos_id, self.eos_id = (self._pieces.id(piece) for piece in ("<s>", "<s>", "</s>"))
            return
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        except (OSError, RuntimeError) as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else "not a sentencepiece model"
            raise UserError(f"text model {path}: {reason}; train one with `lumos data vocab`") from error
        ids = tuple(getattr(self._pieces, name)() for name in ("pad_id", "unk_id", "bos_id", "eos_id"))
        if ids != (PAD_ID, UNK_ID, BOS_ID, EOS_ID):
            raise UserError(f"text model {path}: pad, unk, bos, eos must be ids 0, 1, 2, 3, got {ids}")

    @property
    def vocab_size(self) -> int:
        return self._pieces.get_piece_size()

    def encode(self, text: str, length: int) -> tuple[np.ndarray, int]:
        """Return (int32 [length] ids with the padding on the left, number of ids that are not padding).

        The first of them is the beginning-of-text id. A text that is too long loses its end: the first one is
        logged, all are counted in `num_truncated`.
        """
        return self.place([self.bos_id, *self._pieces.encode(text)], length)

    def place(self, ids: Sequence[int], length: int) -> tuple[np.ndarray, int]:
        """Return ids as a row of `encode`."""
        if len(ids) > length:
            self.num_truncated += 1
            if self.num_truncated == 1:
                logging.warning(
                    "a text of %d tokens is cut to config.sequence.text_length=%d; others may be", len(ids), length
                )
            ids = ids[:length]
        row = np.full(length, self.pad_id, np.int32)
        row[length - len(ids) :] = ids
        return row, len(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of a row; padding, beginning and end are left out."""
        return self._pieces.decode([int(i) for i in ids if i not in (self.pad_id, self.bos_id, self.eos_id)])

    def pieces(self, text: str) -> list[str]:
        """Return the pieces that a text splits into, for people to look at."""
        return self._pieces.encode(text, out_type=str)


class _HuggingFacePieces:
    """The part of a sentencepiece processor that is used, on a tokenizer.json. Padding is the beginning id, as in Lumos-1."""

    def __init__(self, path: Path):
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UserError(
                f"text model {path} needs the tokenizers package: pip install 'lumos-video[lumos1]'"
            ) from error
        if not path.is_file():
            raise UserError(f"text model {path}: no such file")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises nothing more specific
            raise UserError(f"text model {path}: not a tokenizer.json ({error})") from error

    def id(self, piece: str) -> int:
        found = self._tokenizer.token_to_id(piece)
        if found is None:
            raise UserError(f"the text model has no {piece!r} token")
        return found

    def get_piece_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str, out_type: type = int) -> list:
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids if out_type is int else encoded.tokens

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)


def instruct(config: Config, caption: str, grid: tuple[int, int, int]) -> str:
    """Return the cleaned caption inside `text.template`, for a clip of this latent grid.

    Training and generation both come through here. A caption that is inside a template already stays there, line ends of
    the template included; where it is the template of this very clip, the caption in it is cleaned.
    """
    if not config.text.template:
        return clean(caption)
    fps, duration = timing(config, grid[0])
    height, width = frame_size(config.tokenizer, *grid[1:])
    size = {"width": width, "height": height, "frames": fps * duration, "fps": fps}
    before, _, after = config.text.template.partition("{caption}")
    before, after = before.format(**size), after.format(**size)
    # Told by its first line, as long texts are cut at the end; by its last where nothing comes before the caption.
    first, last = before.split("\n")[0], after.split("\n")[-1]
    inside = caption.startswith(first) if first.strip() else bool(last.strip()) and caption.endswith(last)
    if inside and caption.startswith(before) and caption.endswith(after) and len(caption) >= len(before + after):
        caption, inside = caption[len(before) : len(caption) - len(after)], False
    # Of another clip, or cut: which part is the caption is not known.
    return without_controls(caption) if inside else before + clean(caption) + after


def train_vocab(captions: Iterable[str], out: str | Path, vocab_size: int) -> TextTokenizer:
    """Train byte-pair encoding on cleaned captions and write it to `out`; a small corpus gives a smaller vocabulary.

    Raises:
      UserError: no captions, or a vocabulary without room for the 256 byte pieces.
    """
    captions = list(filter(None, map(clean, captions)))
    if not captions:
        raise UserError("no captions to train a text vocabulary on")
    characters = len(set("".join(captions)) | {"▁"} - {" "})
    if vocab_size < _NUM_FIXED + characters:
        raise UserError(
            f"vocabulary of {vocab_size} is too small: 4 special ids, 256 bytes and the {characters} characters of "
            f"these captions need {_NUM_FIXED + characters}"
        )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=model,
        # Not unigram: on a few hundred distinct words its seeding keeps hardly any of them whole.
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        # Text comes back exactly as it was, and the file carries no normalisation table (240 KB).
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pad_id=PAD_ID,
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        num_threads=1,
        minloglevel=2,
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    temporary.write_bytes(model.getvalue())
    os.replace(temporary, out)
    return TextTokenizer(out)


def default_corpus() -> list[str]:
    """Return the lines that the shipped model was trained on."""
    from lumos.data.shapes_caption import write_caption
    from lumos.data.shapes_scene import sample_scene

    lines = []
    for level in ("easy", "medium", "hard"):
        for clip in range(400):
            lines.append(write_caption(sample_scene(level, (17, 64, 64), 0, "train", clip), 0, "train", clip))
    # The counts of moving_shapes drown those of the general words unless these are repeated.
    return lines + 40 * [line.strip() for line in _GENERAL.strip().splitlines()]


_GENERAL = """
a person is walking along the street at night with a dog
a man and a woman are sitting at a table in the kitchen, talking
a video recorded from a moving car, showing the road, trees and buildings
the camera follows a young girl who is running through the park
close-up of a hand making a sign, then holding a book
a slow aerial shot over the city, the river and the mountains at sunset
people are standing in front of a large white house near the water
a boy in a blue shirt plays with a ball on the beach
two black birds fly above the green field, and one of them turns away
an old wooden boat floats on the sea while the sun goes down behind it
the scene shows a small cat looking out of the window of a room
bottles pass on a conveyor, seen from the side
a woman with long hair is eating food from a plate
the camera zooms in on her face, then out again
cars and other vehicles drive around the corner in the rain
"""
