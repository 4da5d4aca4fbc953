"""What a training run says to the person who watches it: the header, the live line, the ending."""

import pathlib

from gptjax import flops, schedule
from gptjax.errors import UserError
from gptjax.generation.engine import Engine
from gptjax.generation.sampling import Settings
from gptjax.generation.text import generate
from gptjax.parallel import tpu
from gptjax.terminal import duration, si
from gptjax.training import trainable


def header(session, directory, resumed: bool) -> list[str]:
    """Model, exact parameters, tokens, FLOPs, devices, mesh, attention kernel: one line each."""
    config, mesh = session.config, session.program.mesh
    model, counts = config.model, flops.parameters(config.model)
    devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    tokens, steps = schedule.run_tokens(config), schedule.total_steps(config)
    return [
        f"run        {shown_path(directory)}{' (resuming)' if resumed else ''}",
        f"model      {model.shown_shape}, context {model.context_length}, vocabulary {model.vocab_size}, {model.dtype}",
        f"parameters {counts.total:,} ({counts.non_embedding:,} without embeddings)",
        *_trainable_lines(session),
        *_text_lines(session.store),
        f"training   {steps:,} steps of {config.train.batch_size} x {model.context_length} tokens:"
        f" {tokens:,} tokens, {flops.train_flops(config):.3g} FLOPs",
        f"devices    {devices}, mesh {axes}",
        f"attention  {session.program.kernel} ({session.program.kernel_reason})",
        *compiler_lines(mesh),
        f"MFU        of {session.peak_flops / 1e12:.4g} TFLOP/s per device ({session.peak_source});"
        " FLOPs as PaLM counts them",
    ]


def compiler_lines(mesh) -> list[str]:
    """One where the train step is compiled without the options that TPUs need to overlap links and matmuls."""
    device = mesh.devices.flat[0]
    if device.platform != "tpu" or device.device_kind in tpu.KINDS:
        return []
    return [
        f"compiler   no options: {device.device_kind} is not in gptjax/parallel/tpu.py, which has {', '.join(tpu.KINDS)}"
    ]


def _trainable_lines(session) -> list[str]:
    """One where some parameters are frozen."""
    if session.config.train.trainable is None:
        return []
    part = trainable.share(session.program.abstract_params, session.config)
    return [f"trainable  {part:.3%} of the parameters: {session.config.train.trainable}"]


def _text_lines(store) -> list[str]:
    """A line, and for a mixture one for each source."""
    counts = {name: (text.train.n_tokens, text.val.n_tokens) for name, text in store.sources.items()}
    train, held_out = (sum(n) for n in zip(*counts.values()))
    whole = f"text       {train:,} training tokens, {held_out:,} held out ({store.tokenizer.kind} tokenizer)"
    each = [f"           {name}: {train:,}, {held_out:,}" for name, (train, held_out) in counts.items()]
    return [whole, *(each if len(each) > 1 else [])]


def shown_path(directory) -> str:
    """As short as it can be typed from here."""
    here = pathlib.Path.cwd()
    path = pathlib.Path(directory.path)
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(directory.path)


def progress_line(taken: int, total: int, numbers: dict, speed: dict) -> str:
    line = f"step {taken}/{total}  loss {numbers['loss']:.4f}  grad {numbers['grad_norm']:.2f}"
    line += f"  lr {numbers['learning_rate']:.2e}"
    if numbers.get("skipped_updates"):
        line += f"  left out {numbers['skipped_updates']}"
    if speed:
        line += (
            f"  {si(speed['tokens_per_second'])} tok/s  MFU {speed['mfu']:.1%}  left {duration(speed['seconds_left'])}"
        )
    return line


def ending(session, directory, state) -> list[str]:
    """A sample if the config asks for one, what lies in the run directory, and what to do next."""
    lines, config, writes_on = [], session.config.eval, session.config.data.writes_on
    if config.sample_tokens:
        text = sample_text(session, state.params, config.sample_prompt, max_tokens=config.sample_tokens)
        lines += ["", "a sample:", text, ""]
    where = shown_path(directory)
    prompt = " --prompt='ROMEO:'" if "corpus" in session.store.sources else ""
    drawn = session.config.train.tensorboard
    return [
        *lines,
        f"{where}/config.json, manifest.json: what was run, on which code and data",
        f"{where}/metrics.jsonl{', tensorboard/' if drawn else ''}: the numbers of every logged step and evaluation",
        f"{where}/checkpoints/, tokenizer/: all that evaluation, sampling and resuming need",
        "next:",
        *([f"  gptjax sample --workdir={where}{prompt} --temperature=0.8"] if writes_on else []),
        f"  gptjax eval --workdir={where}",
        *([f"  tensorboard --logdir={where}"] if drawn else []),
    ]


def check_sample(config, tokenizer) -> None:
    """Raises UserError, before the first step and not after the last: the sample at the end has nothing to start from."""
    prompt = config.eval.sample_prompt
    if not config.eval.sample_tokens or (prompt is None and tokenizer.eot_id is not None):
        return
    try:
        tokenizer.encode("\n" if prompt is None else prompt)
    except UserError as error:
        if prompt is not None:
            raise UserError(f"eval.sample_prompt={prompt!r}: {error}") from None
        raise UserError(
            f"eval.sample_tokens={config.eval.sample_tokens}, but the tokenizer {tokenizer.kind!r} has neither end-of-text"
            " nor a line break that a sample could start from; set eval.sample_prompt, or 0."
        ) from None


def sample_text(session, params, prompt: str | None, **settings) -> str:
    """A prompt (None: a line break, or end-of-text where the tokenizer has it) and its continuation."""
    tokenizer = session.store.tokenizer
    if prompt is None and tokenizer.eot_id is None:
        prompt = "\n"
    engine = Engine(session.program.graph, params, entries=tokenizer.vocab_size)
    [completion] = generate(engine, tokenizer, prompt, Settings(**settings))
    return str(completion)
