"""Laws of training objectives: methods that are special cases of each other agree, and each equals a second derivation."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lumos import sharding
from lumos.config import MeshConfig
from lumos.errors import UserError
from lumos.sequence.corruption import Corrupted
from lumos.sequence.key_ranges import KeyRanges, StaticRanges
from lumos.sequence.rule import StageCausal, visible
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective

GRID = (2, 2, 3)
NTP = dict(
    sequence__layout=slot("compact", block=(1, 1, 1)),
    sequence__targets=slot("next"),
    corruption__level=slot("constant", ratio=0.0),
    loss__weights=slot("all"),
)
COPIES = dict(
    sequence__copies=2,
    corruption__level=slot("counts"),
    corruption__frames=slot("independent"),
    corruption__cells=slot("frame"),
    loss__weights=slot("bound"),
)
NAR = NTP | dict(
    sequence__layout=slot("planes"), sequence__targets=slot("neighbours"), model__head=slot("axes")
)  # fmt: skip


def _config(**changes):
    defaults = dict(
        sequence__grid=GRID, sequence__text_length=4, data__batch_size=2, corruption__text_drop=0.0,
        model__init_std=0.3, model__attention="dense",
    )  # fmt: skip
    return tiny.transformer(**(defaults | changes))


class _Case:
    def __init__(self, config):
        self.config, self.objective = config, TransformerObjective(config)
        self.layout, self.batch = self.objective.layout, tiny.token_batch(config)
        self.params = self.objective.definition.init(jax.random.key(0))
        self.model = self.objective.definition.bind(self.params)

    def loss(self, grads=False):
        """Return the mean loss, or it and its gradients."""

        def mean(params):
            out = self.objective.loss(params, self.batch, jax.random.key(1))
            return out.sum / out.weight

        return jax.jit(jax.value_and_grad(mean) if grads else mean)(self.params)

    def hidden(self, mask_BTC=None, **changes):
        """Return hidden states with the cells of a mask hidden."""
        batch = self.batch | changes
        shape = (len(batch["tokens"]), *self.layout.content_index.shape)
        mask = np.zeros(shape, bool) if mask_BTC is None else np.broadcast_to(mask_BTC, shape)
        drawn = Corrupted(jnp.asarray(mask), jnp.asarray(mask.mean(-1), jnp.float32), jnp.ones(shape[:2], bool))
        objective, key = self.objective, jax.random.key(0)
        return np.asarray(
            objective._forward(self.layout, objective.definition, self.params, batch, drawn, None, key).hidden_BLD
        )


def _assert_close(got, want, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5), got, want)


# Next tokens and blocks ---------------------------------------------------------------------------------------------------


def test_blocks_of_one_are_next_token_prediction():
    """Against a plain decoder on the raster sequence: inputs without the last token, labels moved by one, a triangular mask."""
    case = _Case(_config(**NTP))
    batch, layout, v = case.batch, case.layout, case.layout.vocabulary
    num_text, num_codes = batch["text"].shape[1], np.prod(GRID)
    codes = batch["tokens"].reshape(2, -1)
    sequence = np.concatenate([batch["text"], np.full((2, 1), v.start), codes + v.visual_start], axis=1)
    np.testing.assert_array_equal(layout.assemble(batch["text"], batch["tokens"]), sequence)
    length = sequence.shape[1] - 1
    last = np.arange(length)

    def loss(params):
        model = case.objective.definition.bind(params)
        keys = KeyRanges.of(StaticRanges(0 * last[None], last[None] + 1), num_text - batch["text_length"])
        hidden = model.hidden(sequence[:, :-1], layout.positions.at(last), keys)
        logits = hidden[:, -num_codes:] @ model.head(v.visual_start, v.visual_end)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), codes[..., None], axis=-1).mean()

    _assert_close(case.loss(grads=True), jax.jit(jax.value_and_grad(loss))(case.params))


def test_frames_as_blocks_have_the_mask_of_lumos_between_codes():
    blocks = _Case(
        _config(**NTP | dict(sequence__layout=slot("compact"), sequence__targets=slot("next", first="block")))
    )
    frames = _Case(_config())
    masks = []
    for case in (blocks, frames):
        codes = case.layout.tokens.at(case.layout.visual_index)
        masks.append(visible(case.config.sequence.attention, codes, codes))
    t = np.arange(np.prod(GRID)) // (GRID[1] * GRID[2])
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], t[None] <= t[:, None])


@pytest.mark.parametrize(
    "changes",
    [
        dict(sequence__layout=slot("compact", block=(1, 1, 0))),
        dict(sequence__layout=slot("compact"), sequence__targets=slot("next", first="block")),
        dict(sequence__layout=slot("regions", rows=2, columns=1)),
    ],
)
def test_losses_of_blocks_are_those_of_every_code_at_its_source(changes):
    """All codes count, each at the hidden state of the token it belongs to: no two share one."""
    case = _Case(_config(**NTP | changes))
    hidden = case.hidden()
    where = case.config.sequence.targets(case.layout)
    v = case.layout.vocabulary
    logits = hidden[:, where.source[:, 0]] @ case.model.head(v.visual_start, v.visual_end)
    codes = case.batch["tokens"].reshape(2, -1)
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), codes[..., None], axis=-1)
    np.testing.assert_allclose(case.loss(), nll.mean(), rtol=1e-6)
    # No code reaches the logits that predict it.
    other = case.batch["tokens"].copy()
    other[:, 1, 1, 1] = (other[:, 1, 1, 1] + 1) % 30
    changed = (case.hidden(tokens=other) != hidden).any(axis=(0, 2))
    at = np.ravel_multi_index((1, 1, 1), GRID)
    assert not changed[where.source[at]].any() and changed[where.target[at]]


# Two copies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [(1, 0, 0), (1, 1, 0), (1, 1, 1), (0, 0, 0)])
def test_the_clean_copy_is_the_clean_sequence_and_the_noisy_one_does_not_see_it_ahead(block):
    layout = slot("compact", block=block)
    two, one = _Case(_config(**COPIES, sequence__layout=layout)), _Case(_config(sequence__layout=layout))
    mask = np.random.default_rng(0).random((2, 2, 6)) < 0.5
    hidden, stage, num_read = two.hidden(mask), two.layout.tokens.stage, two.layout.num_read
    noisy, clean = two.layout.visual_index, two.layout.clean_index
    # The last stage of the clean copy is left out: nothing sees it.
    assert num_read == two.layout.length - np.sum(stage[clean] == stage[clean].max())
    assert not visible(
        two.config.sequence.attention, two.layout.tokens.at(noisy), two.layout.tokens.at(slice(num_read, None))
    ).any()
    num_clean = num_read - len(noisy)
    _assert_close(hidden[:, :num_clean], one.hidden()[:, :num_clean], atol=1e-5)
    cell = 4  # its code changes; hidden in the noisy copy, so that only the clean one does
    mask[:, 0, cell] = True
    other = two.batch["tokens"].copy().reshape(2, -1)
    other[:, cell] = (other[:, cell] + 1) % 30
    before, after = two.hidden(mask), two.hidden(mask, tokens=other.reshape(two.batch["tokens"].shape))
    changed = (before != after).any(axis=(0, 2))
    np.testing.assert_array_equal(changed[noisy], stage[noisy] > stage[clean[cell]])
    run = clean[clean < num_read]
    np.testing.assert_array_equal(changed[run], stage[run] >= stage[clean[cell]])


def test_two_copies_in_one_block_are_the_masked_model():
    layout = slot("compact", block=(0, 0, 0))
    two, one = _Case(_config(**COPIES, sequence__layout=layout)), _Case(_config(sequence__layout=layout))
    mask = np.random.default_rng(0).random((2, 2, 6)) < 0.5
    _assert_close(two.hidden(mask)[:, two.layout.visual_index], one.hidden(mask)[:, one.layout.visual_index], atol=1e-5)
    one_loss = _Case(_config(**COPIES | dict(sequence__copies=1), sequence__layout=layout)).loss()
    _assert_close(two.loss(), one_loss, atol=1e-5)


def test_all_at_once_is_one_group_in_which_everything_sees_everything():
    case = _Case(_config(sequence__layout=slot("compact", block=(0, 0, 0))))
    assert len(case.layout.groups) == 1
    codes = case.layout.tokens.at(case.layout.visual_index)
    assert visible(StageCausal(), codes, codes).all()


# Heads --------------------------------------------------------------------------------------------------------------------


def test_neighbours_average_the_logits_of_the_heads_that_reach_a_cell():
    case = _Case(_config(**NAR))
    hidden, layout = case.hidden(), case.layout
    arms = np.asarray(case.config.model.head.arms(case.model, jnp.asarray(hidden)))
    kernel = np.asarray(case.model.lm_head.kernel[...])
    place = layout.visual_index.reshape(GRID)
    losses = []
    for t, y, x in np.ndindex(*GRID):
        heads = [(0, (t, y, x - 1)), (1, (t, y - 1, x)), (2, (t - 1, y, x))]
        found = [arms[:, place[at], a] @ kernel[a] for a, at in heads if min(at) >= 0]
        if (t, y, x) == (0, 0, 0):
            found = [arms[:, layout.prefix_length - 1, 0] @ kernel[0]]
        log_p = jax.nn.log_softmax(jnp.asarray(np.mean(found, axis=0)))
        losses.append(-np.take_along_axis(np.asarray(log_p), case.batch["tokens"][:, t, y, x][:, None], axis=-1))
    np.testing.assert_allclose(case.loss(), np.mean(losses), rtol=1e-5)


def test_digits_are_a_sum_of_losses_and_one_digit_is_a_categorical():
    sizes = (5, 2, 3)
    case = _Case(_config(model__head=slot("digits", sizes=sizes)))
    mask = np.random.default_rng(0).random((2, 2, 6)) < 0.5
    hidden = case.hidden(mask)[:, case.layout.visual_index]
    codes, kernel = case.batch["tokens"].reshape(2, -1), np.asarray(case.model.lm_head.kernel[...])
    rest, first, want, right = codes, 0, 0, 1
    for size in sizes:
        log_p = np.asarray(jax.nn.log_softmax(hidden @ kernel[:, first : first + size]))
        digit = rest % size
        want = want - np.take_along_axis(log_p, digit[..., None], axis=-1)[..., 0]
        right = right * (log_p.argmax(-1) == digit)
        rest, first = rest // size, first + size
    weights = jnp.asarray(np.random.default_rng(1).random((2, 12)), jnp.float32)
    got = case.config.model.head.loss(case.model, jnp.asarray(hidden), jnp.asarray(codes), weights, chunk=5)
    np.testing.assert_allclose(got.loss, want * weights, rtol=1e-5)
    np.testing.assert_allclose(got.correct, right * weights, rtol=1e-6)

    one, categorical = _Case(_config(model__head=slot("digits", sizes=(30,)))), _Case(_config())
    v = categorical.layout.vocabulary
    one.params = categorical.params | {
        "lm_head": {"kernel": categorical.params["lm_head"]["kernel"][:, v.visual_start : v.visual_end]}
    }
    np.testing.assert_array_equal(one.loss(), categorical.loss())


# Weights ------------------------------------------------------------------------------------------------------------------


class _Fixed(TransformerObjective):
    """Hides cells by their codes, so that any split of a batch hides the same."""

    def _corruption(self, layout, batch, key):
        shape = layout.content_index.shape
        codes = batch["tokens"].reshape(-1, *shape)
        level = 1 + batch["text_length"] % shape[1]
        hidden = jnp.argsort(jnp.argsort(codes + jnp.arange(shape[1]) / 64, axis=-1), axis=-1) < level[:, None, None]
        ratio = jnp.broadcast_to(level[:, None] / shape[1], (len(codes), shape[0]))
        return Corrupted(hidden, ratio, jnp.ones(hidden.shape[:2], bool)), batch["text"][:, -1] % 4 == 0


def _mean(config, parts=1, objective=_Fixed, params=None):
    """Return loss and gradients of a batch of eight rows, summed over strided microbatches as the step does."""
    case = objective(config)
    batch = tiny.token_batch(config)
    params = params or case.definition.init(jax.random.key(0))

    def sums(params, batch, totals):
        out = case.loss(params, batch, jax.random.key(1), totals=totals)
        return out.sum, (out.weight, out.metrics)

    split = [jax.tree.map(lambda x, i=i: x[i::parts], batch) for i in range(parts)]
    weights = [case.weights(part, jax.random.key(1)) for part in split]
    totals = jax.tree.map(lambda *x: sum(x), *weights)
    total = None
    run = jax.jit(jax.value_and_grad(sums, has_aux=True))
    for part in split:
        out = run(params, part, totals)
        total = out if total is None else jax.tree.map(jnp.add, total, out)
    (loss, (weight, metrics)), grads = total
    return jax.tree.map(lambda x: x / weight, (loss, metrics, grads))


SUMS = {
    "masked": dict(loss__frame_weights=(1.0, 0.25)),
    "bound": COPIES | dict(loss__frame_weights=(0.5, 1.5)),
    "next": NTP | dict(loss__text_weight=0.5),
    "neighbours": NAR,
    "hybrid": NTP | dict(sequence__layout=slot("compact", block=(1, 1, 0))),
}


@functools.cache
def _whole(name):
    return _mean(_config(data__batch_size=8, **SUMS[name], model__attention="flash"))


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["bound", "next", *map(slow, ("masked", "neighbours", "hybrid"))])
def test_microbatches_add_up(name):
    _assert_close(_mean(_config(data__batch_size=8, **SUMS[name]), parts=2), _whole(name), atol=2e-5)


@pytest.mark.fast("next-mesh2")
@pytest.mark.parametrize("name, mesh", [
    ("neighbours", dict(fsdp=2)), ("bound", dict(fsdp=1, context=2)), ("next", dict(fsdp=1, context=2)),
    slow("neighbours", dict(fsdp=1, context=2)), slow("bound", dict(fsdp=2)), slow("next", dict(fsdp=2)),
])  # fmt: skip
def test_two_devices_compute_what_one_does(name, mesh):
    config = _config(data__batch_size=8, **SUMS[name], model__attention="flash")
    with jax.set_mesh(sharding.make_mesh(MeshConfig(**mesh), jax.devices()[:2])):
        got = _mean(config)
    _assert_close(got, _whole(name), atol=1e-5)


def test_weights_say_what_counts():
    """Masked: the mean over hidden codes; frame weights: the weighted mean; all: every code."""

    def parts(**changes):
        case = _Case(_config(**changes))
        objective = _Fixed(case.config)
        drawn, dropped = objective._corruption(case.layout, case.batch, None)
        run = objective._forward(
            case.layout, objective.definition, case.params, case.batch, drawn, dropped, jax.random.key(0)
        )
        v = case.layout.vocabulary
        logits = run.hidden_BLD[:, case.layout.visual_index] @ case.model.head(v.visual_start, v.visual_end)
        codes = case.batch["tokens"].reshape(2, -1)[..., None]
        nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), codes, axis=-1)[..., 0]
        out = objective.loss(case.params, case.batch, jax.random.key(0))
        return float(out.sum / out.weight), nll, np.asarray(drawn.mask_BTC).reshape(2, -1), np.asarray(drawn.ratio_BT)

    loss, nll, mask, _ = parts()
    np.testing.assert_allclose(loss, nll[mask].mean(), rtol=1e-5)
    loss, nll, mask, _ = parts(loss__frame_weights=(1.0, 0.25))
    weight = mask * np.repeat([1.0, 0.25], 6)
    np.testing.assert_allclose(loss, (nll * weight).sum() / weight.sum(), rtol=1e-5)
    loss, nll, _, _ = parts(loss__weights=slot("all"))
    np.testing.assert_allclose(loss, nll.mean(), rtol=1e-5)
    bound = dict(loss__weights=slot("bound"), corruption__level=slot("counts"))
    loss, nll, mask, ratio = parts(**bound)
    np.testing.assert_allclose(loss, (nll * mask / np.repeat(ratio, 6, axis=1)).mean(), rtol=1e-5)


@pytest.mark.parametrize("copies, block", [(1, (0, 0, 0)), (2, (1, 1, 2)), (2, (1, 1, 0)), (2, (1, 1, 1))])
def test_the_bound_is_the_mean_over_masks(copies, block):
    """A frame of four cells: masks of k cells, each as likely, weigh 1/k; enumerated, against 40,000 draws.

    The loss of a row is at most the largest of any mask, so the error of the mean of N rows is known from their deviation.
    """
    config = _config(
        **COPIES | dict(sequence__copies=copies), sequence__layout=slot("compact", block=block), sequence__grid=(1, 1, 4),
        data__batch_size=1,
    )  # fmt: skip
    case = _Case(config)
    masks = [np.array(m, bool) for m in itertools.product([0, 1], repeat=4) if any(m)]
    rows = len(masks)
    batch = jax.tree.map(lambda x: np.repeat(x, rows, axis=0), case.batch)
    hidden = case.hidden(np.stack(masks)[:, None], **batch)[:, case.layout.visual_index]
    v = case.layout.vocabulary
    logits = hidden @ np.asarray(case.model.head(v.visual_start, v.visual_end))
    log_p = np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))
    nll = -np.take_along_axis(log_p, batch["tokens"].reshape(rows, 4, 1), axis=-1)[..., 0]
    of_mask = np.array(
        [(row * mask).sum() / mask.sum() for row, mask in zip(nll, masks)]
    )  # mean over 4 cells of nll * 4 / k
    count = np.stack(masks).sum(1)
    share = 1 / 4 / np.array([0, 4, 6, 4, 1])[count]
    np.testing.assert_allclose(share.sum(), 1)
    want = (share * of_mask).sum()

    num = 40_000
    drawn, _ = case.objective._corruption(case.layout, {"tokens": np.zeros((num, 1, 1, 4))}, jax.random.key(5))
    weights, counts = case.objective._weights(case.layout, drawn)
    np.testing.assert_array_equal(counts, 1)
    code = np.asarray(drawn.mask_BTC)[:, 0] @ (2 ** np.arange(3, -1, -1)) - 1  # index of the mask in `masks`
    losses = (np.asarray(weights) * nll[code]).mean(1)
    np.testing.assert_allclose(losses, of_mask[code], rtol=1e-5)
    error = losses.std() / num**0.5
    assert abs(losses.mean() - want) < 4 * error < 0.02 * want
    if block == (1, 1, 1):  # single cells given clean ones: the exact likelihood of next-token order
        hidden = case.hidden(np.ones((1, 1, 4), bool))[0, case.layout.visual_index]
        log_p = jax.nn.log_softmax(hidden @ case.model.head(v.visual_start, v.visual_end))
        codes = case.batch["tokens"].reshape(4, 1)
        np.testing.assert_allclose(want, -np.take_along_axis(np.asarray(log_p), codes, axis=-1).mean(), rtol=1e-5)


def test_the_level_embedding_begins_at_zero():
    for changes in ({}, COPIES):
        plain, level = _Case(_config(**changes)), _Case(_config(**changes, model__level_embedding=True))
        level.params = plain.params | {"level_embed": level.params["level_embed"]}
        (loss, grads), (want, want_grads) = level.loss(grads=True), plain.loss(grads=True)
        np.testing.assert_array_equal(loss, want)
        assert np.asarray(grads.pop("level_embed")).any()
        _assert_close(grads, want_grads)


# Refusals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        (NTP | dict(sequence__attention=slot("full")), "attention='full' sees later groups"),
        (
            COPIES | dict(sequence__attention=slot("full")),
            "attention='full' sees later groups",
        ),
        (dict(sequence__attention=slot("prefix"), loss__text_weight=0.1), "text_weight: with attention='prefix'"),
        (NTP | dict(sequence__layout=slot("planes")), "blocks of one size"),
        (NAR | dict(sequence__layout=slot("compact")), "cannot predict each other"),
        (COPIES | dict(corruption__level=slot("uniform")), "level='counts'"),
        (dict(model__head=slot("digits", sizes=(5, 6)), loss__text_weight=0.1), "head='categorical'"),
    ],
)
def test_objectives_that_see_their_answers_or_mean_nothing_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        TransformerObjective(_config(**changes))


def test_evaluation_tells_the_model_what_is_hidden():
    """Where codes are predicted from clean ones, nothing is hidden at evaluation either."""
    case = _Case(_config(**NTP, model__level_embedding=True))
    seen = []

    class Watch(TransformerObjective):
        def _forward(self, layout, definition, params, batch, drawn, *rest):
            seen.append(drawn)
            return super()._forward(layout, definition, params, batch, drawn, *rest)

    Watch(case.config).evaluate_batch(case.params, case.batch)
    assert not np.asarray(seen[0].mask_BTC).any() and not np.asarray(seen[0].ratio_BT).any()
