"""The coordinate check (Yang et al. 2022, appendix D.1): does what training does to activations depend on width, or depth?

Models that differ in width alone take some optimizer steps, in a parametrisation and in the standard form as a control.
Measured is, for each part of the network, the root mean square of how much its output on fixed text has changed since
initialisation. Where updates are as the parametrisation promises, it is the same at every width: a slope of 0 in log-log. In
the standard form it grows, which is why a learning rate tuned small is too large at large widths.

Over depths, layers are compared by where they stand: the first, the last, the residual stream halfway and at the end. What
one layer adds to it shrinks with depth by completep's promise; what all of them add together is to stay.

Axes: B rows, L length, D width, V vocabulary.
"""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptjax import schedule
from gptjax.config.neutral import neutral
from gptjax.data.rows.pipeline import TrainRows, open_text
from gptjax.errors import UserError
from gptjax.models import attention
from gptjax.parallel import numerics
from gptjax.training import program as programs

FLAT = (
    0.2  # slopes up to this are flat: ten steps at widths of a factor 16 scatter by a tenth; the control's are 0.5 to 1
)
FORMS = ("standard", "mup", "completep")


@dataclasses.dataclass(frozen=True)
class Measured:
    """One part of one model after `step` steps: root mean squares over rows, places and coordinates."""

    form: str
    size: int  # width, or depth
    part: str
    step: int
    value: float
    change: float  # since initialisation


@dataclasses.dataclass(frozen=True)
class Slope:
    """d ln(change) / d ln(size) of one part in one form after the last step."""

    form: str
    part: str
    slope: float

    @property
    def flat(self) -> bool:
        return abs(self.slope) <= FLAT


@numerics.settings()
def check(config, form: str, sizes: list[int], steps: int, rows: int, of_depth: bool = False, say=lambda line: None):
    """[Measured] of both forms at every size. Raises UserError: a size that the model cannot have.

    form: that of the promise; "standard" is run beside it. say: takes a line as each model is done.
    """
    store, objective = open_text(config.data, config.model.context_length)
    config = config.with_vocabulary(store.tokenizer.vocab_size)
    variants = {
        (name, size): variant(config, name, size, min(sizes), rows, of_depth)
        for name in ("standard", form)
        for size in sizes
    }
    read = TrainRows(store, config.data, config.model.context_length, objective)
    found = []
    for (name, size), one in variants.items():
        found += _measure(one, name, size, steps, read, of_depth)
        say(f"{name}, {'depth' if of_depth else 'width'} {size}: loss {found[-1].value:.3f}")
        found.pop()
    return found


def variant(config, form: str, size: int, base: int, rows: int, of_depth: bool):
    """config at one width (its heads and MLP scaled along, heads of the size they have) or depth."""
    model = config.model
    fields = {
        "parametrization": form,
        "base_width": None,
        "base_depth": None,
        "base_d_ff": None,
        "attention_scale": None,
    }
    if of_depth:
        fields |= {"n_layers": size, "d_ff": model.d_ff}
        fields |= {"base_width": model.d_model} if form != "standard" else {}
        fields |= {"base_depth": base} if form == "completep" else {}
    else:
        if size % model.head_size:
            raise UserError(f"--widths: {size} is not a multiple of a head of {model.head_size}; use multiples of it.")
        ratio = size / model.d_model
        kv = None if model.n_kv_heads is None else max(1, round(model.n_kv_heads * ratio))
        fields |= {"d_model": size, "n_heads": size // model.head_size, "head_dim": model.head_size, "n_kv_heads": kv}
        fields |= {"d_ff": None if model.d_ff is None else round(model.d_ff * ratio)}
        fields |= {"base_width": base} if form != "standard" else {}
        fields |= {"base_depth": model.n_layers} if form == "completep" else {}
    fields |= {"remat": "none", "attention": "auto"}  # no part of what is measured, and not everywhere to be had
    optim = {
        "schedule": "constant",
        "warmup_steps": None,
        "warmup_tokens": None,
        "decay_steps": None,
        "decay_tokens": None,
    }
    return neutral(config, model=fields, train={"batch_size": rows, "steps": 10**6}, optim=optim)


def _measure(config, form: str, size: int, steps: int, read, of_depth: bool) -> list[Measured]:
    """Of a model after the first and the last step; its last entry is the loss of the last step, as `value`."""
    program = programs.of(config, jax.devices()[:1])
    token_BL = jnp.asarray(_batch(read, config, 0)["token_BT"][:, :-1])
    with numerics.on_mesh(program.mesh):
        state, found, loss = program.init(), [], math.nan
        shown = _of_depth if of_depth else _of_width
        before = shown(parts(program.graph, state.params, token_BL))
        for taken in range(1, steps + 1):
            batch = {name: jnp.asarray(array)[None] for name, array in _batch(read, config, taken - 1).items()}
            rate = np.array([schedule.learning_rate(config, taken - 1)], np.float32)
            state, metrics = program.train(state, batch, rate)
            if taken in (1, steps):
                after = shown(parts(program.graph, state.params, token_BL))
                found += [
                    Measured(form, size, name, taken, _rms(after[name]), _rms(after[name] - before[name]))
                    for name in after
                ]
                loss = float(metrics["loss"][0])
    return [*found, Measured(form, size, "loss", steps, loss, math.nan)]


def _batch(read, config, number: int) -> dict:
    """Arrays [B, ...] of the text of a step."""
    first = number * config.train.batch_size
    return read.rows(first, first + config.train.batch_size)


def _rms(array) -> float:
    return float(jnp.sqrt(jnp.mean(jnp.square(array.astype(jnp.float32)))))


@functools.partial(jax.jit, static_argnums=0)
def parts(graph, params, token_BL) -> dict[str, jax.Array]:
    """What each part of a GPT puts out, dropout off: "embedding", of each layer "scores" (q k as the softmax takes it, of each
    place with itself), "attention" (before its output matrix), "block" (what the layer adds to the stream) and "stream" (after
    it), "logits"."""
    gpt = nnx.merge(graph, params)
    position_BL = jnp.broadcast_to(jnp.arange(token_BL.shape[1]), token_BL.shape)
    x_BLD = gpt.embed(token_BL, position_BL)
    found = {"embedding": x_BLD}
    for number, block in enumerate(gpt.apart(), start=1):
        kind = gpt.layer_kinds[(number - 1) % len(gpt.layer_kinds)]

        def attend(q_BLHK, k_BLGK, v_BLGK, window=kind.window, number=number):
            options = {"window": window, "segment_BL": None, "prefix_BL": None}
            out = attention.attend(gpt.kernel, q_BLHK, k_BLGK, v_BLGK, dropout_rate=0.0, key=None, **options)
            k_BLHK = jnp.repeat(k_BLGK, q_BLHK.shape[2] // k_BLGK.shape[2], axis=2)
            scores_BLH = jnp.sum(q_BLHK.astype(jnp.float32) * k_BLHK, axis=-1) * q_BLHK.shape[-1] ** -0.5
            found.update({f"scores {number}": scores_BLH, f"attention {number}": out})
            return out, None

        next_BLD, _ = block(x_BLD, attend, position_BL if kind.rotary else None)
        found |= {f"block {number}": next_BLD - x_BLD, f"stream {number}": next_BLD}
        x_BLD = next_BLD
    return found | {"logits": gpt.logits(gpt.finish(x_BLD))}


def _of_width(found: dict) -> dict:
    """Of `parts`, what models of one depth are compared by: their layers one by one."""
    return {name: array for name, array in found.items() if not name.startswith("stream")}


def _of_depth(found: dict) -> dict:
    """Of `parts`, what models of several depths are compared by."""
    last = sum(name.startswith("stream") for name in found)
    return {
        "embedding": found["embedding"],
        "attention, first": found["attention 1"],
        "attention, last": found[f"attention {last}"],
        "stream, half": found[f"stream {max(1, last // 2)}"],
        "stream, end": found[f"stream {last}"],
        "logits": found["logits"],
    }


def slopes(found: list[Measured]) -> list[Slope]:
    """Of every part that all sizes have, by least squares over sizes."""
    last = max(one.step for one in found)
    groups: dict[tuple[str, str], list[Measured]] = {}
    for one in found:
        if one.step == last:
            groups.setdefault((one.form, one.part), []).append(one)
    most = max(map(len, groups.values()))
    return [
        Slope(form, part, _slope([one.size for one in group], [one.change for one in group]))
        for (form, part), group in groups.items()
        if len(group) == most
    ]


def _slope(sizes: typing.Sequence[float], changes: typing.Sequence[float]) -> float:
    """NaN where a change is 0 or not finite: training did nothing there, or diverged."""
    if not all(math.isfinite(change) and change > 0 for change in changes):
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(changes), 1)[0])
