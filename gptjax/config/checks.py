"""What a Config may be: every check that needs no device and no data, made once when the Config is made.

Names that select code (an optimizer, a norm, a source ...) are checked where their table stands, by
`errors.choose`; meshes against the devices there are, in `sharding`; how large a number may be, in `bounds`.
"""

import dataclasses
import math

from gptjax import schedule
from gptjax.config import bounds, catalogue, text_kinds
from gptjax.config.mixture_weights import check_weights
from gptjax.errors import UserError, choose, naming, shorten

MOST_RAMP_SIZES = 1000
OF_LAYERS = ("band_width", "window_pattern", "rope_pattern", "rope_scaling", "linear_bias")  # see layer_patterns


def check(config) -> None:
    """Raises UserError for the first value that cannot work."""
    bounds.check_config(config)
    _check_model(config.model)
    _check_architecture(config)
    _check_data(config.data, is_text=config.rl.prompts is None)
    _check_mixture(config.data)
    _check_objective(config.data)
    _check_optim(config.optim)
    _check_mesh(config)
    _check_train(config)
    _check_cadence(config)
    if config.model.task_head is not None or config.data.task is not None:
        from gptjax.config import task_heads  # of no use to pretraining

        task_heads.check(config)
    if config.rl != type(config.rl)():
        from gptjax.config import rl_checks  # of those who asked for reinforcement learning

        rl_checks.check(config)
    if config.model.critic is not None:
        _check_critic(config)
    if config.data.preferences is not None:
        from gptjax.config import preference_checks  # likewise

        preference_checks.check(config)


def _require(condition, message: str) -> None:
    if not condition:
        raise UserError(message)


def _at_least(low, section, name: str, *fields: str) -> None:
    for field in fields:
        value = getattr(section, field)
        _require(value is None or value >= low, f"{name}.{field}={value} is too small; use at least {low}.")


def _in_unit_interval(section, name: str, *fields: str) -> None:
    for field in fields:
        value = getattr(section, field)
        _require(value is None or 0 <= value < 1, f"{name}.{field}={value} is not in [0, 1).")


def _shown(value) -> str:
    """As it was typed, however long that is."""
    return shorten(repr(value), 80)


def _one_of(value, allowed: tuple, key: str) -> None:
    _require(value in allowed, f"{key}={_shown(value)} is not known; expected one of: {', '.join(allowed)}.")


def _not_both(section, name: str, a: str, b: str) -> None:
    both = getattr(section, a) is not None and getattr(section, b) is not None
    _require(not both, f"{name}.{a} and {name}.{b} are both set; set one to None.")


def _check_model(m) -> None:
    _at_least(1, m, "model", "vocab_size", "context_length", "n_layers", "d_model", "n_heads", "n_kv_heads")
    _at_least(1, m, "model", "head_dim", "d_ff", "band_width", "scan_unroll")
    _at_least(0, m, "model", "init_std", "position_init_std")
    for field in ("norm_eps", "rope_theta", "logit_softcap"):
        value = getattr(m, field)
        _require(value is None or value > 0, f"model.{field}={value} must be positive.")
    _in_unit_interval(m, "model", "embed_dropout", "attention_dropout", "residual_dropout")
    _one_of(m.norm_position, ("pre", "post"), "model.norm_position")
    _check_parametrization(m)
    if m.has_attention:
        _check_attention(m)
        if m.adapter is not None:
            with naming(m.adapter, "model.adapter"):
                catalogue.adapter(m.adapter).check(m)
        if m.critic is not None:
            with naming(m.critic, "model.critic"):
                catalogue.critic(m.critic).check(m)
                if (trunk := catalogue.critic(m.critic).trunk(m)) is not None:
                    _check_model(trunk)


def _check_attention(m) -> None:
    _require(
        m.head_dim or m.d_model % m.n_heads == 0,
        f"model.n_heads={m.n_heads} does not divide model.d_model={m.d_model}; use a divisor, or give model.head_dim.",
    )
    _require(
        m.n_heads % m.kv_heads == 0,
        f"model.n_kv_heads={m.n_kv_heads} does not divide model.n_heads={m.n_heads}; use a divisor of it.",
    )
    _require(
        m.position != "rope" or m.head_size % 2 == 0,
        f"model.position='rope' rotates pairs, but a head has {m.head_size} dimensions; use an even model.head_dim.",
    )
    if any(getattr(m, field) != getattr(type(m), field) for field in OF_LAYERS):
        from gptjax.config import layer_patterns

        layer_patterns.check(m)


def _check_architecture(config) -> None:
    """What an architecture has no part for stands at its default: else it would be taken for something that counts."""
    m, entry = config.model, catalogue.entry(config.model.architecture)
    defaults = {field.name: field.default for field in dataclasses.fields(m)}
    for field in entry.foreign:
        value = getattr(m, field)
        _require(
            value == defaults[field],
            f"model.{field}={value!r} has no effect with model.architecture={m.architecture!r};"
            f" leave it out, or at its default {defaults[field]!r}.",
        )
    choose({name: None for other in catalogue.ARCHITECTURES.values() for name in other.remat}, m.remat, "model.remat")
    _require(
        m.remat in entry.remat,
        f"model.remat={m.remat!r} keeps parts of a layer that model.architecture={m.architecture!r} does not have; use"
        f" {' or '.join(map(repr, entry.remat))}.",
    )
    _require(
        entry.sees_ahead or not config.data.sees_ahead,
        f"data.objective={config.data.objective!r} lets tokens be seen by earlier ones, and"
        f" model.architecture={m.architecture!r} reads in one direction; use 'next_token' or 'fim'.",
    )


def _check_critic(config) -> None:
    asked = f"model.critic={_shown(config.model.critic)}"
    _require(
        config.rl.prompts is not None,
        f"{asked} is of reinforcement learning, but rl.prompts is None; set rl.prompts, or leave it out.",
    )
    _require(
        config.optim.layer_lr_decay is None,
        f"optim.layer_lr_decay={config.optim.layer_lr_decay} is of one model's layers, and {asked} has its own; set it to None.",
    )


def _check_parametrization(m) -> None:
    _one_of(m.parametrization, ("standard", "mup", "completep"), "model.parametrization")
    _one_of(m.attention_scale or "sqrt", ("sqrt", "linear"), "model.attention_scale")
    _at_least(1, m, "model", "base_width", "base_depth", "base_d_ff")
    for field, users in (("base_width", ("mup", "completep")), ("base_depth", ("completep",))):
        given, used = getattr(m, field) is not None, m.parametrization in users
        _require(
            given == used,
            f"model.{field}={getattr(m, field)} with model.parametrization={m.parametrization!r}; "
            + (
                f"set model.{field} to that of the model whose optim numbers you use."
                if used
                else f"set model.{field} to None."
            ),
        )
    _require(
        m.base_d_ff is None or m.parametrization != "standard",
        f"model.base_d_ff={m.base_d_ff} with model.parametrization='standard'; set model.base_d_ff to None.",
    )
    _require(
        m.parametrization != "completep" or m.norm_position == "pre",
        "model.parametrization='completep' scales residual branches, which model.norm_position='post' normalises away;"
        " use 'pre', or 'mup'.",
    )


def _check_data(d, is_text: bool = True) -> None:
    """is_text: whether it is what a run learns from, and not prompts."""
    _at_least(1, d, "data", "tokenizer_vocab_size")
    _at_least(0, d, "data", "prefetch_workers", "seed")
    _in_unit_interval(d, "data", "val_fraction")
    _one_of(d.val_split, ("tail", "document"), "data.val_split")
    if is_text and (d.chat, d.chat_loss, d.chat_overflow) != (None, "assistant", "drop"):
        from gptjax.config import chat_checks  # of those who asked for conversations

        chat_checks.check(d)
    if (kind := text_kinds.SOURCES.get(d.source)) is None or kind.needs is None:
        return
    _require(getattr(d, kind.needs), f"data.source={d.source!r} needs data.{kind.needs}, {kind.example}.")
    _require(
        d.path is None or kind.needs == "path",
        f"data.path={_shown(d.path)} is set, but data.source={d.source!r} reads data.{kind.needs}; set one.",
    )


def _check_mixture(d) -> None:
    if d.mixture is None:
        _require(d.weights is None and not d.weight_stages, "data.weights belong to data.mixture; set that too.")
        return
    _require(d.mixture, "data.mixture has no source; give {name: folder or 'KIND:PATH'}, or None.")
    _require(
        "all" not in d.mixture,
        "data.mixture: evaluations use the name 'all' for the whole text; give the source another name.",
    )
    _require(
        d.source == "corpus" and d.path is None,
        f"data.mixture and data.source={d.source!r}, data.path={_shown(d.path)} are both set; give the text in one of them.",
    )
    starts = [tokens for tokens, _ in d.weight_stages]
    _require(
        starts == sorted(set(starts)) and all(start > 0 for start in starts),
        f"data.weight_stages start at {starts} tokens; expected increasing numbers above 0 (before them data.weights hold).",
    )

    weights = d.weights or dict.fromkeys(d.mixture, 1.0)
    check_weights(tuple(d.mixture), [weights, *(later for _, later in d.weight_stages)])


def _check_objective(d) -> None:
    for field in ("fim_rate", "fim_spm_rate"):
        value = getattr(d, field)
        _require(0 <= value <= 1, f"data.{field}={value} is not in [0, 1].")
    _require(0 < d.mask_rate < 1, f"data.mask_rate={d.mask_rate} is not in (0, 1).")
    _at_least(1, d, "data", "span_length")
    most = d.span_length / (d.span_length + 1)
    _require(
        d.objective != "span_corruption" or d.mask_rate <= most,
        f"data.mask_rate={d.mask_rate} leaves no token between spans of data.span_length={d.span_length};"
        f" use a rate of at most {most:.3g}, or longer spans.",
    )


def _check_optim(o) -> None:
    _require(o.peak_lr >= 0, f"optim.peak_lr={o.peak_lr} is negative.")
    _require(o.eps > 0, f"optim.eps={o.eps} must be positive.")
    _at_least(0, o, "optim", "warmup_steps", "warmup_tokens", "weight_decay", "muon_lr_ratio", "critic_lr_ratio")
    _at_least(1, o, "optim", "decay_steps", "decay_tokens")
    _in_unit_interval(o, "optim", "beta1", "beta2", "momentum", "ema_decay")
    _require(0 <= o.final_lr_fraction <= 1, f"optim.final_lr_fraction={o.final_lr_fraction} is not in [0, 1].")
    _require(0 < o.cooldown_fraction <= 1, f"optim.cooldown_fraction={o.cooldown_fraction} is not in (0, 1].")
    _require(
        o.clip_norm is None or o.clip_norm > 0,
        f"optim.clip_norm={o.clip_norm} must be positive; None turns clipping off.",
    )
    _require(
        o.layer_lr_decay is None or 0 < o.layer_lr_decay <= 1,
        f"optim.layer_lr_decay={o.layer_lr_decay} is not in (0, 1]; None turns it off.",
    )
    for field in ("moment_dtype", "param_dtype"):
        _one_of(getattr(o, field), ("float32", "bfloat16"), f"optim.{field}")
    _one_of(o.skip, ("none", "nonfinite", "outliers"), "optim.skip")
    _at_least(2, o, "optim", "skip_window")
    _require(o.skip_sigma > 0, f"optim.skip_sigma={o.skip_sigma} must be positive; optim.skip='none' is off.")
    _not_both(o, "optim", "warmup_steps", "warmup_tokens")
    _not_both(o, "optim", "decay_steps", "decay_tokens")
    schedule.check(o)


def _check_mesh(config) -> None:
    mesh = config.mesh
    _at_least(1, mesh, "mesh", "cpu_devices", "pipeline_microbatches", "pipeline_repeats")
    for axes in (mesh.AXES, tuple(f"dcn_{axis}" for axis in mesh.DCN_AXES)):
        for axis in axes:
            size = getattr(mesh, axis)
            _require(
                size == -1 or size >= 1,
                f"mesh.{axis}={size} is not a size; use a positive number, or -1 for all remaining devices.",
            )
        free = [axis for axis in axes if getattr(mesh, axis) == -1]
        _require(len(free) <= 1, f"mesh has -1 for {' and '.join(free)}; only one axis can use all remaining devices.")
    catalogue.check_stages(config.model, mesh.stage)


def _check_train(config) -> None:
    t = config.train
    _at_least(
        1, t, "train", "steps", "tokens", "batch_size", "microbatches", "steps_per_call", "vocab_chunks", "log_every"
    )
    _at_least(1, t, "train", "batch_ramp_start", "batch_ramp_increment", "batch_ramp_tokens")
    _at_least(0, t, "train", "seed", "z_loss", "max_rollbacks", "neftune_alpha")
    _in_unit_interval(t, "train", "label_smoothing")
    _require(
        not t.lm_coef or config.model.task_head is not None,
        f"train.lm_coef={t.lm_coef} weighs the language model's loss beside a task head's, and model.task_head is None; leave it"
        " out.",
    )
    _at_least(1, t, "train", "max_skips", "stop_patience")
    _at_least(0, t, "train", "stop_change")
    _check_judged(config)
    stall = t.stall_seconds
    _require(stall is None or stall > 0, f"train.stall_seconds={stall} must be positive; None is off.")
    _check_start(t)
    for pair in (("steps", "tokens"), ("steps", "epochs"), ("tokens", "epochs")):
        _not_both(t, "train", *pair)
    _require(t.epochs is None or t.epochs > 0, f"train.epochs={t.epochs} must be positive.")
    _require(t.steps or t.tokens or t.epochs, "the run has no length; set train.steps or train.tokens.")
    _require(
        t.batch_size % t.microbatches == 0,
        f"train.microbatches={t.microbatches} does not divide train.batch_size={t.batch_size}; use a divisor.",
    )
    _require(
        t.microbatches >= 2 or not t.log_noise_scale,
        f"train.log_noise_scale compares a step's microbatches, but train.microbatches={t.microbatches}; use at least 2.",
    )
    if config.model.vocab_size:
        padded = config.model.padded_vocab_size
        _require(
            padded % t.vocab_chunks == 0,
            f"train.vocab_chunks={t.vocab_chunks} does not divide the padded vocabulary of"
            f" {padded}; use {_nearest_divisor(padded, t.vocab_chunks)}.",
        )
    if t.profile_steps is not None:
        _require(
            len(t.profile_steps) == 2 and 1 <= t.profile_steps[0] <= t.profile_steps[1],
            f"train.profile_steps={t.profile_steps} is not (first, last) with 1 <= first <= last; use None for no trace.",
        )
    _check_ramp(t)


def _check_judged(config) -> None:
    """A metric of evaluations needs more than the one at the end."""
    judges = {"train.stop_metric": config.train.stop_metric, "checkpoint.keep_best": config.checkpoint.keep_best}
    for key, metric in judges.items():
        _require(
            metric is None or config.eval.every_steps is not None,
            f"{key}={_shown(metric)} judges evaluations, but eval.every_steps=None has one at the end alone; set both.",
        )
    for name in ("stop_patience", "stop_change"):
        value = getattr(config.train, name)
        _require(
            config.train.stop_metric is not None or value == getattr(type(config.train), name),
            f"train.{name}={value} is of train.stop_metric, which is None; set it, such as train.stop_metric='loss'.",
        )


def _check_start(t) -> None:
    _require(
        t.start_step is None or t.start_from is not None,
        f"train.start_step={_shown(t.start_step)} needs train.start_from, which is None; give both, or neither.",
    )
    _require(
        t.critic_from is None or t.start_from is not None,
        f"train.critic_from={_shown(t.critic_from)} needs train.start_from, the run that the policy starts from; give both.",
    )
    _require(
        t.start_step in (None, "best") or bounds.whole_number(t.start_step) is not None,
        f"train.start_step={_shown(t.start_step)} is not a step; give the step of a checkpoint, 'best', or None.",
    )
    _require(
        t.trainable is None or all(pattern.strip() for pattern in t.trainable.split(",")),
        f"train.trainable={_shown(t.trainable)} has an empty name in it; give names or globs with a comma between, or None.",
    )


def _check_ramp(t) -> None:
    ramp = (t.batch_ramp_start, t.batch_ramp_increment, t.batch_ramp_tokens)
    _require(all(ramp) or not any(ramp), "a batch ramp needs all of train.batch_ramp_start, _increment and _tokens.")
    if t.batch_ramp_start:
        _require(
            t.batch_ramp_start < t.batch_size and (t.batch_size - t.batch_ramp_start) % t.batch_ramp_increment == 0,
            f"train.batch_ramp_start={t.batch_ramp_start} plus multiples of"
            f" train.batch_ramp_increment={t.batch_ramp_increment} never gives"
            f" train.batch_size={t.batch_size}; use an increment that divides the difference.",
        )
        sizes = (t.batch_size - t.batch_ramp_start) // t.batch_ramp_increment
        _require(
            sizes <= MOST_RAMP_SIZES,
            f"train.batch_ramp_increment={t.batch_ramp_increment} makes {sizes} batch sizes on the way, each of which is"
            f" compiled by itself; use a larger one, of at most {MOST_RAMP_SIZES} sizes.",
        )
        _require(
            t.steps_per_call == 1, "train.steps_per_call > 1 needs one batch size; set it to 1 or drop the batch ramp."
        )


def _check_tasks(config) -> None:
    for name in ("tasks_every_steps", "tasks_limit", "tasks_num_fewshot"):
        value = getattr(config.eval, name)
        _require(
            config.eval.tasks is not None or value is None,
            f"eval.{name}={value} is of tasks, but there are none; set eval.tasks, or eval.{name} to None.",
        )
    _require(
        config.data.writes_on or config.eval.tasks is None,
        f"eval.tasks={_shown(config.eval.tasks)}, but a model of data.objective={config.data.objective!r} does not go on with a"
        " text; use None.",
    )


def _check_cadence(config) -> None:
    """Everything that happens between steps happens between calls: its period is a multiple of steps_per_call."""
    _at_least(1, config.checkpoint, "checkpoint", "every_steps", "keep", "keep_every")
    _one_of(config.checkpoint.on_save_failure, ("stop", "continue"), "checkpoint.on_save_failure")
    _require(
        config.checkpoint.every_minutes is None or config.checkpoint.every_minutes > 0,
        f"checkpoint.every_minutes={config.checkpoint.every_minutes} must be positive; None turns it off.",
    )
    _at_least(1, config.eval, "eval", "every_steps", "batch_size", "max_tokens", "tasks_every_steps", "tasks_limit")
    _at_least(1, config.eval, "eval", "sample_every_steps")
    _require(
        config.eval.sample_tokens or config.eval.sample_every_steps is None or config.rl.prompts is not None,
        f"eval.sample_every_steps={config.eval.sample_every_steps}, but eval.sample_tokens=0 asks for no sample; set both.",
    )
    _at_least(0, config.eval, "eval", "sample_tokens", "tasks_num_fewshot")
    _check_tasks(config)
    _require(
        config.data.writes_on or not config.eval.sample_tokens,
        f"eval.sample_tokens={config.eval.sample_tokens}, but a model of data.objective={config.data.objective!r} does not"
        " go on with a text; use 0.",
    )
    _check_rollback(config)
    _check_kept(config)
    per_call = config.train.steps_per_call
    periods = {
        "train.steps": config.train.steps,
        "train.log_every": config.train.log_every,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "eval.every_steps": config.eval.every_steps,
        "eval.tasks_every_steps": config.eval.tasks_every_steps,
        "eval.sample_every_steps": config.eval.sample_every_steps,
    }
    for key, steps in periods.items():
        _require(
            steps is None or steps % per_call == 0,
            f"{key}={steps} is not a multiple of train.steps_per_call={per_call};"
            f" use {-(-(steps or 0) // per_call) * per_call}.",
        )


def _check_kept(config) -> None:
    """Steps that are never reached would never be saved, and nobody told. A length in epochs is checked as steps later."""
    if config.train.epochs is not None:
        return
    per_call, last = config.train.steps_per_call, schedule.total_steps(config)
    _require(
        last <= bounds.INT32,
        f"train.tokens={config.train.tokens} are {last} steps, which int32 does not count; use fewer, or larger batches.",
    )
    for step in config.checkpoint.keep_steps:
        _require(
            0 < step <= last,
            f"checkpoint.keep_steps has {step}, but the run's steps are 1 to {last}; leave it out.",
        )
        _require(
            step % per_call == 0,
            f"checkpoint.keep_steps has {step}, which is not a multiple of train.steps_per_call={per_call};"
            f" use {-(-step // per_call) * per_call}.",
        )


def _check_rollback(config) -> None:
    """A row of skipped updates may span checkpoints, and one from before it has to be left."""
    every, keep = config.checkpoint.every_steps, config.checkpoint.keep
    if not config.train.max_rollbacks or every is None:
        return
    needed = 1 + -(-(config.train.max_skips - 1) // every) if config.optim.skip != "none" else 1
    _require(
        keep >= needed,
        f"train.max_rollbacks={config.train.max_rollbacks} needs a checkpoint from before train.max_skips="
        f"{config.train.max_skips} bad steps, but checkpoint.keep={keep} of checkpoint.every_steps={every} may all be"
        f" younger; use checkpoint.keep={needed}.",
    )


def _nearest_divisor(n: int, k: int) -> int:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return min(sorted({*small, *(n // d for d in small)}), key=lambda d: abs(d - k))
