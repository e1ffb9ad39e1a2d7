"""What a release computes, in plain PyTorch: the transformer (layout "compact", frame by frame) and the causal VAE.

    python docs/pytorch_reference.py DIR          # a release, written by `lumos export`; needs torch and safetensors

For those who want to use released weights elsewhere. It reads the tensors of the folder, imports nothing of lumos, and is written to be
read, not to be fast: attention builds its mask, there is no cache. A test compares its logits, tokens and pixels with those of lumos.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file


def read(folder):
    """Return the config and the tensors of a release, float32."""
    folder, tensors = Path(folder), {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= {name: x.float() for name, x in load_file(file).items()}
    return json.loads((folder / "config.json").read_text()), tensors


class Transformer:
    """Predicts the codes of hidden cells: text, then the cells of all frames in raster order; a frame sees itself and those before."""

    def __init__(self, folder):
        self.config, self.w = read(folder)
        self.model, sequence = self.config["model"], self.config["sequence"]
        used = {
            "sequence.layout": (sequence["layout"], {"name": "compact", "block": [1, 0, 0]}),
            "sequence.attention": (sequence["attention"], {"name": "causal", "decay": 0.0}),
            "sequence.targets": (sequence["targets"]["name"], "in_place"),
            "model.mixer": (self.model["mixer"]["name"], "softmax"),
            "model.head": (self.model["head"]["name"], "categorical"),
            "model.rope": (self.model["rope"], "mm"),
            "model.level_embedding": (self.model["level_embedding"], False),
            "sequence.streams": (sequence["streams"], []),
            "sequence.copies": (sequence["copies"], 1),
        }
        for name, (value, known) in used.items():
            if value != known:
                sys.exit(f"config.{name}={value}: this reference has {known} alone")
        self.mask, self.first_code = (
            self.model["text_vocab"],
            self.model["text_vocab"] + 1,
        )  # token ids: text, [MASK], codes
        codes = slice(self.first_code, self.first_code + self.model["visual_vocab"])
        self.table, self.head = self.w["model.embed_tokens.weight"], self.w["lm_head.weight"][codes]
        if self.model["code_levels"]:  # codes that share a digit share a part of their rows
            digits = _digits(self.model["visual_vocab"], self.model["code_levels"])
            self.table[codes] += digits @ self.w["model.digit_embed"]
            self.head = self.head + digits @ self.w["model.digit_head"].T

    def logits(self, text, text_length, codes, hidden):
        """Return logits over the codes of every cell, [B, T * H * W, codes].

        text: ids [B, P], padding on the left; text_length: [B]. codes: [B, T, H, W]. hidden: bool [B, T, H, W], cells shown as [MASK].
        """
        batch, frames, rows, columns = codes.shape
        num_text, cells = text.shape[1], frames * rows * columns
        ids = torch.where(hidden, self.mask, codes + self.first_code).reshape(batch, cells)
        x = self.table[torch.cat([text, ids], dim=1)]
        rotation = self._rotation(num_text, frames, rows, columns)
        frame = torch.cat([torch.full((num_text,), -1), torch.arange(frames).repeat_interleave(rows * columns)])
        place = torch.arange(num_text + cells)
        seen = torch.where(
            frame[:, None] < 0, place[None] <= place[:, None], frame[None] <= frame[:, None]
        )  # [query, key]
        seen = seen[None] & (place[None] >= (num_text - text_length)[:, None])[:, None]  # not the padding
        for i in range(self.model["num_layers"]):
            attend = lambda y, i=i: self._attention(i, y, rotation, seen)
            mlp = lambda y, i=i: self._mlp(i, y)
            for norm, branch in (("input_layernorm", attend), ("post_attention_layernorm", mlp)):
                normed = lambda y, norm=norm, i=i: self._rms(y, f"model.layers.{i}.{norm}.weight")
                x = x + (normed(branch(x)) if self.model["post_norm"] else branch(normed(x)))
        x = self._rms(x[:, num_text:], "model.norm.weight")
        return x @ self.head.T

    def _attention(self, i, x, rotation, seen):
        m, name = self.model, f"model.layers.{i}.self_attn"
        heads, groups, dim = m["num_heads"], m["num_kv_heads"], m["head_dim"]
        q, k, v = (
            self._linear(x, f"{name}.{part}_proj").reshape(*x.shape[:2], -1, dim).transpose(1, 2)
            for part in ("q", "k", "v")
        )
        if m["qk_norm"] != "none":
            q, k = self._head_norm(q, f"{name}.q_norm"), self._head_norm(k, f"{name}.k_norm")
        q, k = _rotate(q, rotation), _rotate(k, rotation)
        k, v = (y.repeat_interleave(heads // groups, dim=1) for y in (k, v))
        scores = (q @ k.transpose(-1, -2)) / dim**0.5
        scores = scores.masked_fill(~seen[:, None], -1e30)  # rows of padding see nothing, and nobody sees them
        out = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        return self._linear(out, f"{name}.o_proj")

    def _mlp(self, i, x):
        name = f"model.layers.{i}.mlp"
        gated = F.silu(self._linear(x, f"{name}.gate_proj")) * self._linear(x, f"{name}.up_proj")
        return self._linear(gated, f"{name}.down_proj")

    def _linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def _rms(self, x, name):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.model["norm_eps"]) * self.w[name]

    def _head_norm(self, x, name):
        """Norm over the channels of a head; weight and bias are [groups, channels], each for an equal run of heads."""
        if self.model["qk_norm"] == "rms":
            return self._rms(x, f"{name}.weight")
        x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
        weight, bias = (
            self.w[f"{name}.{part}"].repeat_interleave(x.shape[1] // len(self.w[f"{name}.{part}"]), 0)
            for part in ("weight", "bias")
        )
        return x * weight[:, None] + bias[:, None]

    def _rotation(self, num_text, frames, rows, columns):
        """Return cos and sin [L, dim]: MM-RoPE. A cell is 4 frames x 8 rows x 8 columns; each axis takes every 16th run of channels."""
        dim = self.model["head_dim"]
        frequency = 1.0 / (self.model["rope_theta"] ** (np.arange(0, dim, 2) / dim)).astype(np.float32)
        t, y, x = np.indices((frames, rows, columns)).reshape(3, -1)
        cells = np.stack([4 * t, 8 * y, 8 * x], axis=-1) + num_text  # [cells, 3]
        axis = _axes(dim)
        text = np.repeat(np.arange(num_text)[:, None], dim // 2, axis=1)
        angle = np.concatenate([text, cells[:, axis]]).astype(np.float32) * frequency
        angle = torch.from_numpy(np.concatenate([angle, angle], axis=1))
        return angle.cos(), angle.sin()


class CausalVAE:
    """Video [B, F, Y, X, 3] in [-1, 1] <-> tokens [B, T, H, W]. Activations are [B, T, H, W, C], as the tensors lie."""

    def __init__(self, folder):
        config, self.w = read(folder)
        self.c = c = config["tokenizer"]
        known = {"body": "causal", "quantizer": "fsq", "composition": "single"}
        for name, value in known.items():
            if c[name] != value:
                sys.exit(f"config.tokenizer.{name}={c[name]!r}: this reference has {value!r} alone")
        self.levels = torch.tensor(c["levels"])
        self.basis = torch.cumprod(torch.tensor([1, *c["levels"][:-1]]), 0)

    def encode(self, video):
        x = self._conv_in_out("encoder.conv_in", _haar(video, self.c["patch_size"]))
        for level in range(len(self.c["channel_mult"])):
            x = self._blocks(f"encoder.down.{level}", x, self.c["num_res_blocks"])
            x = self._downsample(f"encoder.down.{level}.downsample", x)
        x = self._middle("encoder.mid", x)
        if "encoder.norm_out.scale" in self.w:
            x = F.silu(self._norm("encoder.norm_out", x))
        z = self._dense("quant_conv", self._factorized("encoder.conv_out", x))
        half, offset = (self.levels - 1) * 1.001 / 2, torch.where(self.levels % 2 == 0, 0.5, 0.0)
        digits = torch.round(torch.tanh(z + torch.atanh(offset / half)) * half - offset).long() + self.levels // 2
        return (digits * self.basis).sum(-1)

    def decode(self, tokens):
        digits = tokens[..., None] // self.basis % self.levels
        x = self._dense("post_quant_conv", (digits - self.levels // 2) / (self.levels // 2).float())
        x = self._middle("decoder.mid", self._factorized("decoder.conv_in", x))
        for level in reversed(range(len(self.c["channel_mult"]))):
            x = self._blocks(f"decoder.up.{level}", x, self.c["num_res_blocks"] + 1)
            x = self._upsample(f"decoder.up.{level}.upsample", x)
        if "decoder.norm_out.scale" in self.w:
            x = F.silu(self._norm("decoder.norm_out", x))
        return _unhaar(self._conv_in_out("decoder.conv_out", x), self.c["patch_size"])

    def _blocks(self, name, x, num):
        for i in range(num):
            x = self._block(f"{name}.block.{i}", x)
        return x

    def _block(self, name, x):
        branch = self._factorized(f"{name}.conv1", F.silu(self._norm(f"{name}.norm1", x)))
        branch = self._factorized(f"{name}.conv2", F.silu(self._norm(f"{name}.norm2", branch)))
        return (self._dense(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.kernel" in self.w else x) + branch

    def _middle(self, name, x):
        x = self._block(f"{name}.block_1", x)
        if f"{name}.attn_1.space.q.kernel" in self.w:
            x = self._attend(f"{name}.attn_1.time", self._attend(f"{name}.attn_1.space", x))
        return self._block(f"{name}.block_2", x)

    def _attend(self, name, x):
        """Attention with one head, within a frame, or along the time of a cell: there a frame sees those before."""
        q, k, v = (self._dense(f"{name}.{part}", self._norm(f"{name}.norm", x)) for part in "qkv")
        if name.endswith("space"):
            q, k, v = (y.flatten(2, 3) for y in (q, k, v))  # [B, T, H W, C]
            return x + self._dense(f"{name}.proj_out", F.scaled_dot_product_attention(q, k, v).reshape(x.shape))
        q, k, v = (y.flatten(2, 3).transpose(1, 2) for y in (q, k, v))  # [B, H W, T, C]
        ago = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])[None]
        seen = (ago >= 0) & (ago < (self.c["temporal_window"] or x.shape[1]))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return x + self._dense(f"{name}.proj_out", mixed.transpose(1, 2).reshape(x.shape))

    def _downsample(self, name, x):
        if f"{name}.conv3.kernel" not in self.w:
            return x
        if f"{name}.conv1.kernel" in self.w:
            pooled = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))
            x = self._spatial(f"{name}.conv1", x, stride=2) + pooled
        if f"{name}.conv2.kernel" in self.w:
            x = torch.cat([x[:, :1], x], dim=1)
            x = self._temporal(f"{name}.conv2", x, stride=2) + (x[:, ::2] + x[:, 1::2]) / 2
        return self._dense(f"{name}.conv3", x)

    def _upsample(self, name, x):
        if f"{name}.conv3.kernel" not in self.w:
            return x
        if f"{name}.conv1.kernel" in self.w:
            x = x.repeat_interleave(2, dim=1)[:, 1:]
            x = x + self._temporal(f"{name}.conv1", x)
        if f"{name}.conv2.kernel" in self.w:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = x + self._spatial(f"{name}.conv2", x)
        return self._dense(f"{name}.conv3", x)

    def _conv_in_out(self, name, x):
        return self._dense(name, x) if f"{name}.kernel" in self.w else self._factorized(name, x)

    def _factorized(self, name, x):
        return self._temporal(f"{name}.temporal", self._spatial(f"{name}.spatial", x))

    def _dense(self, name, x):
        return x @ self.w[f"{name}.kernel"] + self.w[f"{name}.bias"]

    def _spatial(self, name, x, stride=1):
        """3 x 3, kernel [rows, columns, in, out]; with stride 2 the padding is below and to the right."""
        images = x.flatten(0, 1).permute(0, 3, 1, 2)
        images = F.pad(images, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))
        y = F.conv2d(images, self.w[f"{name}.kernel"].permute(3, 2, 0, 1), self.w[f"{name}.bias"], stride)
        return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])

    def _temporal(self, name, x, stride=1):
        """Three frames, the last one is now, kernel [frames, in, out]; in front stand copies of the first frame."""
        x = torch.cat([x[:, :1]] * (3 - stride) + [x], dim=1)
        taps = self.w[f"{name}.kernel"]
        return sum(x[:, i : i + x.shape[1] - 2 : stride] @ taps[i] for i in range(3)) + self.w[f"{name}.bias"]

    def _norm(self, name, x):
        if self.c["norm"] == "position":
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.w[f"{name}.scale"]
        centred = x - x.mean((2, 3, 4), keepdim=True)
        normed = centred * torch.rsqrt(centred.square().mean((2, 3, 4), keepdim=True) + 1e-6)
        return normed * self.w[f"{name}.scale"] + self.w[f"{name}.bias"]


def _digits(num_codes, levels):
    """Return which digits each code has, 0 or 1 [codes, sum of levels]; the first digit is the least significant."""
    parts, code = [], torch.arange(num_codes)
    for level in levels:
        parts.append(F.one_hot(code % level, level))
        code = code // level
    return torch.cat(parts, dim=1).float()


def _axes(dim):
    """Return which axis (0 time, 1 row, 2 column) turns each pair of channels: of 16 channels time has 4, the others 6 each."""
    return np.resize(np.array([0] * 4 + [1, 1, 2, 2] * 3), dim)[: dim // 2]


def _rotate(x, rotation):
    first, second = x.chunk(2, dim=-1)
    return x * rotation[0] + torch.cat([-second, first], dim=-1) * rotation[1]


def _haar(video, p):
    """Turn 1 + k p frames into bands [B, 1 + k, Y / p, X / p, p^3 * 3]; the first frame fills a block of its own."""
    video = torch.cat([video[:, :1]] * (p - 1) + [video], dim=1)
    blocks = video.unflatten(1, (-1, p)).unflatten(3, (-1, p)).unflatten(5, (-1, p))
    return torch.einsum("BTtHyWxC,Ntyx->BTHWNC", blocks, _haar_matrix(p)).flatten(4)


def _unhaar(bands, p):
    bands = bands.unflatten(4, (p**3, -1))
    blocks = torch.einsum("BTHWNC,Ntyx->BTtHyWxC", bands, p**3 * _haar_matrix(p))
    return blocks.flatten(5, 6).flatten(3, 4).flatten(1, 2)[:, p - 1 :]


def _haar_matrix(p):
    """Return [bands, p, p, p]: sums and differences along the three axes, again on every band until a block is one cell."""
    rounds, pair = p.bit_length() - 1, np.array([[1.0, 1.0], [1.0, -1.0]])
    matrix = np.ones((1, 1))
    for _ in range(rounds):
        matrix = np.kron(matrix, np.kron(pair, np.kron(pair, pair)) / 8)
    bits = matrix.reshape(-1, *(2,) * (3 * rounds))
    order = [1 + 3 * bit + axis for axis in range(3) for bit in range(rounds)]
    return torch.from_numpy(bits.transpose(0, *order).reshape(p**3, p, p, p)).float()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if (folder / "tokenizer").is_dir():
        model, vae = Transformer(folder), CausalVAE(folder / "tokenizer")
        grid, length = model.config["sequence"]["grid"], model.config["sequence"]["text_length"]
        text, everything = torch.zeros(1, length, dtype=torch.long), torch.ones(1, *grid, dtype=torch.bool)
        logits = model.logits(
            text, torch.zeros(1, dtype=torch.long), torch.zeros(1, *grid, dtype=torch.long), everything
        )
        print(
            f"logits {tuple(logits.shape)}; a clip of the likeliest codes: {tuple(vae.decode(logits.argmax(-1).view(1, *grid)).shape)}"
        )
    else:
        print(f"a tokenizer of {CausalVAE(folder).levels.prod()} codes")
