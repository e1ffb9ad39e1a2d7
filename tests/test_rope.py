import numpy as np
import pytest

from lumos.model import rope
from lumos.sequence.layout import Positions


@pytest.mark.parametrize("dim", [32, 64, 128])
def test_mm_rope_equals_the_official_tables(golden, dim):
    data = golden("mmrope.npz")
    case = "g3x4x8_L5"
    positions = Positions(*(data[f"{case}/pos_{n}"] for n in ("text", "t", "h", "w")), data[f"{case}/content_flag"])
    cos, sin = rope.mm_rope(positions, dim)
    np.testing.assert_allclose(cos, data[f"{case}/cos_d{dim}"], atol=2e-6)
    np.testing.assert_allclose(sin, data[f"{case}/sin_d{dim}"], atol=2e-6)
    if dim > 32:
        q_NLA, want = data[f"{case}/q_d{dim}"], data[f"{case}/q_rot_d{dim}"]
        rotated = rope.rotate(q_NLA.transpose(1, 0, 2)[None], cos[::5], sin[::5])[0]
        np.testing.assert_allclose(rotated.transpose(1, 0, 2), want, atol=5e-5)


def test_mm_rope_axes_of_channels(golden):
    np.testing.assert_array_equal(rope.channel_axis(64), golden("mmrope.npz")["axis_of_channel_d64"])


@pytest.mark.parametrize("scheme", ["mm", "3d", "1d"])
def test_rotation_keeps_norms_and_depends_on_differences_only(scheme):
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 5, 1, 32)).astype(np.float32)
    grid = rng.integers(0, 40, (4, 5)).astype(np.int32)

    def logits(shift):
        cos, sin = rope.mm_rope(Positions(*(grid + shift), np.ones(5, np.int32)), 32, 10_000.0, scheme)
        a, b = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
        np.testing.assert_allclose(np.linalg.norm(a, axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-5)
        return np.einsum("blna,bsna->bls", a, b)

    np.testing.assert_allclose(logits(0), logits(7), atol=2e-4)


def test_head_dim_must_keep_pairs_on_one_axis():
    with pytest.raises(ValueError, match="multiple of 32"):
        rope.mm_rope(Positions(*np.zeros((5, 2), np.int32)), 48)
