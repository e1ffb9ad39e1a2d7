"""A frozen teacher: a trained transformer whose distribution over the codes the student's loss follows.

The loss is that of Hinton et al. 2015 (arXiv 1503.02531, section 2): KL(teacher || student) of both distributions at
temperature T, times T^2, so that its gradients keep their size whatever T is.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lumos import config_loading, sharding
from lumos.checkpoint import Checkpointer, read_config
from lumos.config import Config, ModelConfig, SequenceConfig
from lumos.errors import UserError, short
from lumos.model import transformer
from lumos.model.cross_entropy import Chunks, axes_of
from lumos.model.definition import Definition
from lumos.model.heads import Head
from lumos.objective import ExtraState
from lumos.sequence.layout import Vocabulary
from lumos.training.match_data import tokenizer_fingerprints
from lumos.typed_values import from_dict, to_dict

# What makes token ids: a teacher that read others would say nothing about these.
_SAME = """model.head model.text_vocab model.visual_vocab text.model text.template tokenizer.body tokenizer.quantizer
    tokenizer.composition tokenizer.parts tokenizer.levels tokenizer.spatial_compression tokenizer.temporal_compression""".split()
_SAME += [f"sequence.{field.name}" for field in dataclasses.fields(SequenceConfig)]


class Teacher:
    """The teacher of a run: its model, and its weights as the extra state {"teacher": parameters}.

    `saved` is what `facts` was when the run began: from then on its workdir is not needed, its weights lie in the run's own
    checkpoints. Without it everything is read from the workdir, when it is first used.

    Raises UserError if the config names another teacher than the one the run began with.
    """

    def __init__(self, config: Config, vocabulary: Vocabulary, saved: Mapping[str, Any] | None = None):
        self._config, self._vocabulary, self._saved = config, vocabulary, saved
        if saved and saved["workdir"] != config.loss.teacher:
            raise UserError(
                f"config.loss.teacher={config.loss.teacher!r}, but this run began with {saved['workdir']!r}, whose weights are in its "
                "checkpoints; give that name (its folder is not needed), or start a new run in another --workdir"
            )

    @functools.cached_property
    def model(self) -> ModelConfig:
        """The teacher's model; kernels are chosen as for the student, because they go with the machine."""
        saved = self._saved
        model = from_dict(ModelConfig, saved["model"], "teacher") if saved else _read(self._config).model
        return dataclasses.replace(model, attention=self._config.model.attention)

    @functools.cached_property
    def definition(self) -> Definition:
        return transformer.make_definition(self.model, self._vocabulary)

    @property
    def facts(self) -> dict[str, Any]:
        return {"workdir": self._config.loss.teacher, "model": to_dict(self.model)}

    def extra_state(self) -> ExtraState:
        return ExtraState({"teacher": self.definition.abstract}, {"teacher": self.definition.axes}, self._start)

    def _start(self, places):
        """Read the weights (the EMA where there is one)."""
        place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
        checkpointer = Checkpointer(self._config.loss.teacher, read_only=True)
        try:
            wanted = jax.tree.map(place, self.definition.abstract, places["teacher"])
            return {"teacher": checkpointer.restore_params(wanted)}
        finally:
            checkpointer.close()


def _read(config: Config) -> Config:
    """Return the config of the teacher. Raises UserError unless it reads and predicts the tokens of this run."""
    workdir = config.loss.teacher
    teacher = config_loading.parse(read_config(workdir))
    if teacher.task != "transformer":
        raise UserError(
            f"config.loss.teacher={workdir!r} holds a run with task {teacher.task!r}; a teacher is a transformer run"
        )
    if type(config.model.head).factors is Head.factors:
        raise UserError(
            f"config.loss.teacher compares softmaxes, which model.head={config.model.head.name!r} has not; use 'categorical', 'digits' or 'axes'"
        )
    for dotted in _SAME:
        its, ours = (operator.attrgetter(dotted)(c) for c in (teacher, config))
        if its != ours:
            raise UserError(
                f"config.loss.teacher={workdir!r} has {dotted}={short(its)}, this run {short(ours)}: a teacher must have been trained on the "
                "same tokens; choose another, or change the config"
            )
    its, ours = tokenizer_fingerprints(teacher), tokenizer_fingerprints(config)
    if its and ours and its != ours:
        raise UserError(
            f"config.loss.teacher={workdir!r} was trained on tokens of tokenizer {', '.join(sorted(its))}, this run has those of "
            f"{', '.join(sorted(ours))}; choose another teacher, or the tokens of its tokenizer"
        )
    return teacher


class _Options(NamedTuple):
    chunk: int
    temperature: float


def linear_kl(
    student_BLD: jax.Array,
    student_head_DV: jax.Array,
    teacher_BLE: jax.Array,
    teacher_head_EV: jax.Array,
    weights_BL: jax.Array,
    *,
    chunk: int,
    temperature: float = 1.0,
) -> jax.Array:
    """Return weight * T^2 * KL(softmax(teacher @ head / T) || softmax(student @ head / T)) of every position, float32 [B, L].

    Logits exist for one chunk of positions at a time, as in `linear_cross_entropy`; the backward pass makes them again. Only
    the student's hidden states and head have a gradient.

    Args:
      student_BLD, teacher_BLE: final hidden states; widths may differ.
      student_head_DV, teacher_head_EV: columns of the heads for the same V tokens.
      weights_BL: float32; 0 removes a position.
      chunk: positions per device whose logits exist at once.
    """
    options = _Options(chunk, temperature)
    return _kl(options, student_BLD, student_head_DV, teacher_BLE, teacher_head_EV, weights_BL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kl(options, student, head, teacher, teacher_head, weights):
    rows, axes, teacher_axes = _places(student, head, teacher, teacher_head)

    def local(student, head, teacher, teacher_head, weights):
        log_p = _log_probabilities(options.temperature, (head, axes), (teacher_head, teacher_axes))
        split = Chunks(weights != 0, options.chunk)

        def one(_, student, teacher, weights):
            ours, its = log_p(student, teacher)
            kl = sharding.psum((jnp.exp(its) * (its - ours)).sum(-1), axes[1])
            return (), (options.temperature**2 * kl * weights,)

        _, (kl,) = split.scan(one, (), (student, teacher, weights))
        return split.join(kl)

    place = sharding.per_device(local, ((*rows, None), axes, (*rows, None), teacher_axes, rows), rows)
    return place(student, head, teacher, teacher_head, weights)


def _kl_fwd(options, *arrays):
    return _kl(options, *arrays), arrays


def _kl_bwd(options, arrays, cotangent):
    student, head, teacher, teacher_head, weights = arrays
    rows, axes, teacher_axes = _places(student, head, teacher, teacher_head)
    embed, vocab = axes

    def local(student, head, teacher, teacher_head, weights, cotangent):
        log_p = _log_probabilities(options.temperature, (head, axes), (teacher_head, teacher_axes))
        full = sharding.all_gather(head, embed, 0)
        split = Chunks(weights != 0, options.chunk)

        def one(dhead, student, teacher, scale):
            ours, its = log_p(student, teacher)
            # The gradient of T^2 KL with respect to logits that are divided by T.
            dlogits = options.temperature * (jnp.exp(ours) - jnp.exp(its))
            dlogits = (dlogits * scale[:, None]).astype(student.dtype)
            dstudent = jnp.dot(dlogits, full.T, preferred_element_type=jnp.float32)
            return dhead + jnp.dot(student.T, dlogits, preferred_element_type=jnp.float32), (dstudent,)

        start = jnp.zeros(full.shape, jnp.float32)
        dhead, (dstudent,) = split.scan(one, start, (student, teacher, weights * cotangent))
        dhead = sharding.psum_except(dhead.astype(head.dtype), rows, without=embed)
        dhead = sharding.reduce_scatter(dhead, embed, 0)
        return sharding.psum(split.join(dstudent), vocab).astype(student.dtype), dhead

    arguments = ((*rows, None), axes, (*rows, None), teacher_axes, rows, rows)
    place = sharding.per_device(local, arguments, ((*rows, None), axes))
    return (*place(student, head, teacher, teacher_head, weights, cotangent), None, None, None)


_kl.defvjp(_kl_fwd, _kl_bwd)


def _places(student, head, teacher, teacher_head):
    """Return the logical axes of positions and of both heads."""
    rows, axes = axes_of(student, head)
    return rows, axes, axes_of(teacher, teacher_head)[1]


def _log_probabilities(temperature, *heads):
    """Return a function from hidden states, one array for each head, to log-probabilities of this device's columns."""
    full = [(sharding.all_gather(head, embed, 0), vocab) for head, (embed, vocab) in heads]

    def one(hidden, head, vocab):
        logits = jnp.dot(hidden, head, preferred_element_type=jnp.float32) / temperature
        logits -= sharding.pmax(logits.max(-1), vocab)[:, None]
        return logits - jnp.log(sharding.psum(jnp.exp(logits).sum(-1), vocab))[:, None]

    return lambda *hidden: [one(x, *head) for x, head in zip(hidden, full, strict=True)]
