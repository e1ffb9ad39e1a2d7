"""Released Lumos-1 weights: against the official implementation (golden data), and on a small model made here."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from safetensors.numpy import save_file

from lumos import sharding
from lumos.config import MeshConfig
from lumos.errors import UserError
from lumos.generation import plan
from lumos.interop import lumos1, lumos1_prompt
from lumos.interop.lumos1_parse import parse
from lumos.sequence import vocabulary
from lumos.weights import safetensors_files

V = vocabulary.lumos1()
# A model of ours: its markers lie below 40, number token n is 40 + n, its 64 codes start at 64.
SPECIAL = dict(zip(vocabulary.RELEASED_SPECIAL, range(30, 37)))
SMALL = dict(special_tokens=SPECIAL, size_token_zero=40, visual_start=64)
CONFIG = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "rope_theta": 10000, "hidden_act": "silu", "mm_rope": True, "extra": {"kept": 1},
}  # fmt: skip


def write_checkpoint(folder, seed=0, dtype=np.float32, **changes):
    """Write a random checkpoint with official names; return its tensors."""
    c = {**CONFIG, **changes}
    rng = np.random.default_rng(seed)
    dim, mlp, vocab, kv = c["hidden_size"], c["intermediate_size"], c["vocab_size"], c["num_key_value_heads"]
    head, parts = dim // c["num_attention_heads"], c.get("model_parallel_size", 1)
    shapes = {"model.embed_tokens.weight": (vocab, dim), "model.norm.weight": (dim,), "lm_head.weight": (vocab, dim)}
    for i in range(c["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": (dim,), "post_attention_layernorm.weight": (dim,),
            "self_attn.q_proj.weight": (dim, dim), "self_attn.k_proj.weight": (kv * head, dim),
            "self_attn.v_proj.weight": (kv * head, dim), "self_attn.o_proj.weight": (dim, dim),
            "mlp.gate_proj.weight": (mlp, dim), "mlp.up_proj.weight": (mlp, dim), "mlp.down_proj.weight": (dim, mlp),
        }  # fmt: skip
        layer |= {f"self_attn.{n}_norm.{p}": (parts, head) for n in "qk" for p in ("weight", "bias")}
        if c.get("attention_bias"):
            layer |= {f"self_attn.{n}_proj.bias": (layer[f"self_attn.{n}_proj.weight"][0],) for n in "qkvo"}
        if c.get("mlp_bias"):
            layer |= {f"mlp.{n}_proj.bias": (layer[f"mlp.{n}_proj.weight"][0],) for n in ("gate", "up", "down")}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    tensors = {}
    for name, shape in shapes.items():
        x = rng.standard_normal(shape)
        is_norm = "norm" in name and name.endswith("weight")
        scale = 0.1 if len(shape) == 1 or "norm" in name else shape[-1] ** -0.5
        tensors[name] = (x * scale + is_norm).astype(dtype)
    safetensors_files.write(folder, tensors.items(), max_bytes=changes.pop("max_bytes", 10**9))
    (folder / "config.json").write_text(json.dumps({k: v for k, v in c.items() if k != "max_bytes"}))
    return tensors


def read_all(folder):
    with safetensors_files.SafetensorsFiles(folder) as files:
        return {name: files.read(name) for name in files.names}


def sequence(text, frames, rows=4, columns=4, seed=0, v=None):
    """Return ids of a small-vocabulary text + video sequence."""
    v = v or vocabulary.lumos1(64, 64, 40, SPECIAL)
    rng = np.random.default_rng(seed)
    block = []
    for _ in range(frames):
        codes = rng.integers(v.visual_start, v.visual_end, (rows, columns))
        cells = np.concatenate([codes, np.full((rows, 1), v.new_line)], axis=1).reshape(-1)
        block += [v.image_start, 40 + rows // 4, 40 + columns // 4, *cells, v.image_end]
    return [0, *rng.integers(1, 30, text), v.separator, v.video_start, 42, 43, *block, v.video_end, v.separator]


# --- positions and visibility -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["g3x4x8_L5", "g1x8x8_L0", "batch"])
def test_positions_equal_the_official_ones(golden, case):
    data = golden("mmrope.npz")
    flag = data[f"{case}/pos_flag" if case == "batch" else f"{case}/content_flag"]
    want = [data[f"{case}/pos_{name}"] for name in ("text", "t", "h", "w")] + [flag]
    for got, expected in zip(parse(np.atleast_2d(data[f"{case}/input_ids"]), V, 4).positions, want):
        np.testing.assert_array_equal(got, np.atleast_2d(expected))


@pytest.mark.parametrize("case", ["video3_text5", "image_only", "uncond_video2", "padded_batch_rowwise"])
def test_visibility_equals_the_official_mask(golden, case):
    data = golden("attention_mask.npz")
    ids = data[case.replace("rowwise", "official") + "/input_ids"]
    allow = np.unpackbits(data[case + "/allow"], axis=-1, count=ids.shape[1]).astype(bool)
    np.testing.assert_array_equal(
        parse(ids, V, 4).keys.dense(ids.shape[1]), np.broadcast_to(allow, (len(ids), *allow.shape[1:]))
    )


def test_visibility_is_the_predicate_row_by_row():
    v = vocabulary.lumos1(64, 64, 40, SPECIAL)
    rows = [sequence(3, 2, v=v), sequence(9, 1, columns=8, v=v), [0, 5, 6, 7], sequence(2, 3, v=v)[4:]]
    ids = np.zeros((4, max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    together = parse(ids, v, 4)
    for i, row in enumerate(rows):
        alone = parse(np.array([row]), v, 4)
        for a, b in zip(together.positions, alone.positions):
            np.testing.assert_array_equal(a[i, : len(row)], b[0])
        index = np.arange(len(row))
        # A frame sees itself; everything else is causal.
        in_frame = np.cumsum(np.array(row) == v.image_start) > np.cumsum(np.array([0, *row[:-1]]) == v.image_end)
        group = np.where(in_frame, np.cumsum(np.array(row) == v.image_start), -1 - index)
        expected = (index[None, :] <= index[:, None]) | (group[None, :] == group[:, None])
        np.testing.assert_array_equal(together.keys.dense(ids.shape[1])[i, : len(row), : len(row)], expected)


def test_frames_outside_a_complete_video_are_causal_but_keep_their_positions():
    v = vocabulary.lumos1(64, 64, 40, SPECIAL)
    video = sequence(2, 1, v=v)
    block = video[video.index(v.image_start) : video.index(v.image_end) + 1]
    ids = np.array([[0, 7, *block, *video[1:]]])
    parsed = parse(ids, v, 4)
    ends = np.asarray(parsed.keys.end_RBQ[0, 0])
    np.testing.assert_array_equal(ends[: 2 + len(block)], np.arange(2 + len(block)) + 1)
    start = list(ids[0]).index(v.image_start, 10)
    assert (ends[start : start + 24] == start + 24).all()
    assert parsed.positions.is_content.sum() == 40 and parsed.positions.t.max() - parsed.positions.t[0, 5] >= 4


def test_cut_frames_are_read_and_bad_sizes_refused():
    v = vocabulary.lumos1(64, 64, 40, SPECIAL)
    ids = np.array([sequence(2, 2, v=v)])
    whole, cut = parse(ids, v, 4), parse(ids[:, :40], v, 4)
    for a, b in zip(whole.positions, cut.positions):
        np.testing.assert_array_equal(a[:, :40], b)
    ids[0, list(ids[0]).index(v.image_start) + 1] = 3
    with pytest.raises(UserError, match="not a size token"):
        parse(ids, v, 4)
    with pytest.raises(UserError, match="integers"):
        parse(np.zeros((1, 4), np.float32), v, 4)


# --- the official model -------------------------------------------------------------------------------------------


def load_official(folder, facts):
    names = {"special_tokens": "special", "size_token_zero": "size_token_zero", "visual_start": "vis_tok_start"}
    return lumos1.load(folder, **{ours: facts[theirs] for ours, theirs in names.items()})


@pytest.fixture(scope="module")
def compact(tmp_path_factory, golden):
    folder = tmp_path_factory.mktemp("lumos_compact")
    save_file(dict(golden("lumos_compact_weights.npz")), folder / "model.safetensors", {"format": "pt"})
    shutil.copy(GOLDEN / "lumos_compact_config.json", folder / "config.json")
    facts = json.loads((GOLDEN / "lumos_compact.json").read_text())
    return load_official(folder, facts), golden("lumos_compact.npz"), facts, folder


def test_hidden_states_and_logits_equal_the_official_ones(compact):
    model, data, _, _ = compact
    ids = data["masked_input_ids"]
    np.testing.assert_array_equal(model.attention_allowed(ids), data["attention_allow"])
    for name, got in zip(("text", "t", "h", "w", "content_flag"), model.positions(ids)):
        np.testing.assert_array_equal(got, data[f"pos_{name}"])
    np.testing.assert_allclose(model.hidden(ids)[0], data["hidden_2"], atol=1e-5)
    logits = model.logits(ids)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits[0], data["logits_full"], atol=1e-5)


def test_loss_and_gradients_equal_the_official_ones(compact):
    model, data, facts, _ = compact
    ids, labels = data["masked_input_ids"], data["masked_labels"]
    (loss, frame_losses), grads = jax.value_and_grad(lambda m: m.loss(ids, labels), has_aux=True)(model)
    np.testing.assert_allclose(loss, data["loss"], atol=1e-5)
    np.testing.assert_allclose(frame_losses, data["frame_losses"], atol=1e-5)
    named = dict(grads.tensors())
    norms = [np.linalg.norm(named[name]) for name in facts["param_names"]]
    np.testing.assert_allclose(norms, data["grad_norms"], rtol=1e-5)
    for key in filter(lambda key: key.startswith("grad/"), data.files):
        visual = key == "grad/lm_head_visual"
        got = named["lm_head.weight"][facts["vis_tok_start"] :] if visual else named[key.removeprefix("grad/")]
        np.testing.assert_allclose(got, data[key], atol=1e-5 * np.abs(data[key]).max(), err_msg=key)
    assert not named["lm_head.weight"][: facts["vis_tok_start"]].any()


@pytest.mark.parametrize("case, key", [("batch_same_layout", "loss"), ("batch_padded_official", "loss_rowwise_mask")])
def test_batch_losses_equal_the_official_ones(compact, case, key):
    model, data, _, _ = compact
    loss, _ = model.loss(data[f"{case}/masked_input_ids"], data[f"{case}/masked_labels"])
    np.testing.assert_allclose(loss, data[f"{case}/{key}"], atol=1e-5)


def test_the_official_checkpoint_round_trips_bit_for_bit(compact, tmp_path):
    model, _, _, folder = compact
    model.save(tmp_path / "out")
    before, after = read_all(folder), read_all(tmp_path / "out")
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].shape == after[name].shape and before[name].tobytes() == after[name].tobytes()
    configs = [json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "out")]
    assert configs[0] == configs[1]


@pytest.fixture(scope="module")
def traced(tmp_path_factory, large_golden):
    folder = tmp_path_factory.mktemp("lumos_tiny")
    shutil.copy(large_golden("lumos_tiny.safetensors"), folder / "model.safetensors")
    shutil.copy(large_golden("lumos_tiny_config.json"), folder / "config.json")
    facts = json.loads(large_golden("decode_trace.json").read_text())
    model, data = load_official(folder, facts), np.load(large_golden("decode_trace.npz"))
    run = facts["notes"]["t2v_greedy"]
    settings = dict(
        size=(4, 4), fps=9, duration=1, steps=run["steps"], guidance=run["guidance"],
        history_ratio=run["mask_history_ratio"], temperature=run["temperature"],
    )  # fmt: skip
    per_step = (run["frames"], run["steps"])
    exponential = data["t2v_greedy/sample_E"].reshape(*per_step, 1, 16, 64)
    confidence = data["t2v_greedy/conf_uniform"].reshape(*per_step, 1, 16)
    noise = lambda frame, step: (np.exp(-exponential[frame, step].astype(np.float64)), confidence[frame, step])
    return model, {key.removeprefix("t2v_greedy/"): data[key] for key in data.files}, settings, noise


def test_the_recorded_run_is_replayed_token_for_token(traced):
    model, data, settings, noise = traced
    np.testing.assert_array_equal(model.generate(data["prompt"], **settings, noise=noise), data["result"])
    # Also next to a row of another text length.
    other = [0, *range(100, 112), 8710]
    both = model.generate([list(data["prompt"]), other], **settings, noise=noise)
    np.testing.assert_array_equal(both[0], data["result"])
    assert (both[1] != data["result"]).any()


def test_every_recorded_call_has_the_logits_of_the_whole_sequence(traced):
    """The cache of the recorded run holds what a pass over prompt, masked history and current frame gives."""
    model, data, _, _ = traced
    prefixes = {}
    for call, (past, uncond) in enumerate(zip(data["call_past_len"], data["call_is_uncond"])):
        ids = data[f"call{call:03d}_ids"]
        prefix = prefixes.get(int(uncond), [])[:past]
        got = model.logits(np.array([*prefix, *ids]))[0, past:, 9216:]
        np.testing.assert_allclose(got, data[f"call{call:03d}_logits"], atol=1e-4)
        prefixes[int(uncond)] = [*prefix, *ids]


def test_history_patterns_equal_the_official_ones(golden):
    data = golden("history_pattern.npz")
    for key in data.files:
        cells, ratio = key.removeprefix("n").split("_r")
        mask = plan.history_mask(int(cells), float(ratio), always=True)
        np.testing.assert_array_equal(np.flatnonzero(mask), data[key], err_msg=key)


# --- a checkpoint of ours -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_checkpoint(folder)
    return lumos1.load(folder, **SMALL)


def test_rows_of_a_batch_never_see_one_another(small):
    rows = [sequence(3, 2), sequence(7, 1), sequence(5, 1)[6:]]
    ids = np.zeros((3, max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    together = small.logits(ids)
    assert together.shape == (3, ids.shape[1], 128)
    for i in range(3):
        np.testing.assert_allclose(small.logits(ids[i])[0], together[i], atol=1e-5)


def test_frame_losses_go_by_the_true_frame(small):
    ids = np.array([sequence(3, 3)])
    labels, masked = np.full_like(ids, -100), ids.copy()
    visual = np.flatnonzero(ids[0] >= 64)
    chosen = [visual[0], visual[17], visual[18], visual[40]]  # 1, 2 and 1 of the frames
    labels[0, chosen], masked[0, chosen] = ids[0, chosen], SPECIAL["mask"]
    labels[0, -2] = ids[0, -2]  # a marker: no label
    loss, frames = small.loss(masked, labels)
    log_p = jax.nn.log_softmax(small.logits(masked)[0, :, 64:])
    nll = -log_p[np.array(chosen), ids[0, chosen] - 64]
    np.testing.assert_allclose(loss, nll.mean(), atol=1e-5)
    np.testing.assert_allclose(frames, [nll[0], nll[1:3].mean(), nll[3]], atol=1e-5)
    nothing = small.loss(masked, np.full_like(ids, -100))
    assert nothing[0] == 0 and not nothing[1].any()


@pytest.mark.parametrize(
    "changes",
    [
        dict(num_key_value_heads=1),
        dict(model_parallel_size=2),
        dict(attention_bias=True, mlp_bias=True, swin_norm=True),
        dict(dtype=jnp.bfloat16),
        dict(max_bytes=60_000),
    ],
    ids=lambda changes: ",".join(changes),
)
def test_variants_load_and_round_trip(tmp_path, changes):
    before = write_checkpoint(tmp_path / "in", **changes)
    model = lumos1.load(tmp_path / "in", **SMALL)
    assert np.isfinite(model.logits(sequence(2, 1))).all()
    model.save(tmp_path / "out", max_shard_bytes=100_000)
    after = read_all(tmp_path / "out")
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype and before[name].tobytes() == after[name].tobytes(), name
    assert json.loads((tmp_path / "out/config.json").read_text())["extra"] == {"kept": 1}


def test_qk_norm_groups_serve_runs_of_heads(tmp_path):
    """Two groups with equal vectors are one group."""
    tensors = write_checkpoint(tmp_path / "one")
    double = {n: np.repeat(t, 2, axis=0) if "q_norm" in n or "k_norm" in n else t for n, t in tensors.items()}
    safetensors_files.write(tmp_path / "two", double.items())
    (tmp_path / "two/config.json").write_text(json.dumps({**CONFIG, "model_parallel_size": 2}))
    one, two = (lumos1.load(tmp_path / name, **SMALL) for name in ("one", "two"))
    np.testing.assert_allclose(one.logits(sequence(2, 1)), two.logits(sequence(2, 1)), atol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(hidden_act="gelu"), "hidden_act='gelu'"),
        (dict(rope_scaling={"type": "linear", "factor": 2}), "rope_scaling"),
        (dict(tie_word_embeddings=True), "lm_head of its own"),
        (dict(num_attention_heads=4), "head_dim 16"),
        (dict(num_hidden_layers=3), "lacks 13 tensors.*model.layers.2"),
        (dict(num_hidden_layers=1), "13 tensors that config.json does not explain"),
        (dict(intermediate_size=128), "has shape"),
        (dict(vocab_size=60), "no visual tokens"),
    ],
)
def test_what_cannot_be_represented_is_refused_with_a_reason(tmp_path, changes, message):
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    with pytest.raises(UserError, match=message) as caught:
        lumos1.load(tmp_path, **SMALL)
    assert "\n" not in str(caught.value)


def test_unused_tensors_are_listed_and_missing_files_named(tmp_path):
    tensors = write_checkpoint(tmp_path / "a")
    tensors["model.vqmodel.quantize.weight"] = np.zeros((2, 2), np.float32)
    safetensors_files.write(tmp_path / "b", tensors.items(), max_bytes=60_000)
    shutil.copy(tmp_path / "a/config.json", tmp_path / "b")
    assert lumos1.load(tmp_path / "b", **SMALL).ignored == ("model.vqmodel.quantize.weight",)
    next((tmp_path / "b").glob("model-00002*")).unlink()
    with pytest.raises(UserError, match="model-00002-of"):
        lumos1.load(tmp_path / "b", **SMALL)
    with pytest.raises(UserError, match="no config.json"):
        lumos1.load(tmp_path)
    with pytest.raises(UserError, match="lie outside the text ids"):
        lumos1.load(tmp_path / "a", visual_start=64)


def test_parameters_are_read_straight_into_their_shards(tmp_path, small):
    write_checkpoint(tmp_path)
    mesh = sharding.make_mesh(MeshConfig(fsdp=4, tensor=2))
    sharded = lumos1.load(tmp_path, **SMALL, mesh=mesh)
    kernel = sharded.params["layers"]["mlp"]["gate_proj"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.shape == (2, 16, 48)
    for a, b in zip(jax.tree.leaves(sharded.params), jax.tree.leaves(small.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bfloat16_is_close_to_float32(tmp_path, small):
    write_checkpoint(tmp_path)
    low = lumos1.load(tmp_path, **SMALL, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(low.params)} == {jnp.dtype(jnp.bfloat16)}
    ids = sequence(3, 1)
    np.testing.assert_allclose(low.logits(ids), small.logits(ids), atol=0.1)


# --- prompts and decoding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reference", "paper"])
def test_generated_sequences_have_the_official_form(small, mode):
    given = np.arange(32).reshape(1, 4, 8)
    ids = small.generate([0, 5, 6], size=(4, 8), num_frames=3, steps=3, mode=mode, given_frames=given, guidance=2.0)
    parsed = parse(ids[None], vocabulary.lumos1(64, 64, 40, SPECIAL), 4)
    assert ids[0] == SPECIAL["video_start"] and ids[-1] == SPECIAL["video_end"] and len(ids) == 3 + 3 * 40 + 1
    codes = ids[ids >= 64].reshape(3, 4, 8) - 64
    np.testing.assert_array_equal(codes[0], given[0])
    assert parsed.frame_BL.max() == 2 and SPECIAL["mask"] not in ids
    again = small.generate(
        [0, 5, 6, SPECIAL["separator"]], size=(4, 8), num_frames=3, steps=3, mode=mode, given_frames=given, guidance=2.0
    )
    np.testing.assert_array_equal(ids, again)
    # The same given frame as part of the prompt.
    whole = [0, 5, 6, SPECIAL["separator"], *ids[: 3 + 40], SPECIAL["video_end"], SPECIAL["separator"]]
    np.testing.assert_array_equal(
        small.generate(whole, size=(4, 8), num_frames=3, steps=3, mode=mode, guidance=2.0), ids
    )


def test_prompts_that_do_not_fit_are_refused(small):
    with pytest.raises(UserError, match="multiples of 4"):
        small.generate([0, 5], size=(4, 6), num_frames=1)
    with pytest.raises(UserError, match="do not fit the vocabulary"):
        small.generate([0, 500], size=(4, 4), num_frames=1)
    with pytest.raises(UserError, match=r"must be \[batch 1, frames, 4, 4\]"):
        small.generate([0, 5], size=(4, 4), num_frames=2, given_frames=np.zeros((1, 4, 8), np.int32))
    with pytest.raises(UserError, match="multiples of 32"):
        lumos1_prompt.instruction("a", width=450, height=256, fps=12, duration=2)


def test_frame_counts_and_the_instruction_are_the_official_ones():
    assert [lumos1_prompt.num_latent_frames(*pair) for pair in ((12, 2), (12, 7), (1, 1), (9, 1))] == [7, 22, 1, 3]
    text = lumos1_prompt.instruction("a cat", width=448, height=256, fps=12, duration=2)
    assert text == (
        "Generate a video with a resolution of 448x256, consisting of 24 frames at 12 frames per second, according to the "
        "following prompt:\n a cat"
    )
