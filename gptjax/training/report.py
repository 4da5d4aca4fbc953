"""What a training run says to the person who watches it: the header and the ending."""

import pathlib

from gptjax import flops, schedule
from gptjax.models import attention
from gptjax.training import trainable


def header(session, directory, resumed: bool) -> list[str]:
    """Model, exact parameters, tokens, FLOPs, devices, mesh, attention kernel: one line each."""
    config, mesh = session.config, session.program.mesh
    model, counts = config.model, flops.parameters(config.model)
    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    tokens, steps = schedule.run_tokens(config), schedule.total_steps(config)
    return [
        f"run        {shown_path(directory)}{' (resuming)' if resumed else ''}",
        f"model      {model.shown_shape}, context {model.context_length}, vocabulary {model.vocab_size}, {model.dtype}",
        f"parameters {counts.total:,} ({counts.non_embedding:,} without embeddings)",
        *_optimizer_lines(config.optim),
        *_trainable_lines(session),
        *(_text_lines(session.store) if config.rl.prompts is None else _prompt_lines(session.store)),
        *_conversation_lines(session),
        f"training   {steps:,} steps of {config.train.batch_size} x {model.context_length} tokens:"
        f" {tokens:,} tokens, {flops.train_flops(config):.3g} FLOPs",
        f"devices    {session.devices}, mesh {axes}",
        f"attention  {session.program.kernel} ({session.program.kernel_reason})",
        *attention_lines(config, mesh, session.program.kernel),
        *compiler_lines(mesh),
        f"MFU        {_mfu(session)}",
    ]


def _mfu(session) -> str:
    if session.peak_flops is None:
        return f"not shown: {session.peak_source}"
    return f"of {session.peak_flops / 1e12:.4g} TFLOP/s per device ({session.peak_source}); FLOPs: 6N + attention, as in the PaLM paper"


def attention_lines(config, mesh, kernel: str) -> list[str]:
    """A warning where the config keeps the device's own attention kernel from running."""
    advice = attention.advice(config, mesh.devices.flat[0].platform, kernel, mesh.shape["sequence"])
    return [] if advice is None else [f"warning    {advice}"]


def compiler_lines(mesh) -> list[str]:
    """One where the train step is compiled without the options that TPUs need to overlap links and matmuls."""
    device = mesh.devices.flat[0]
    if device.platform != "tpu":
        return []
    from gptjax.parallel import tpu

    if device.device_kind in tpu.KINDS:
        return []
    return [
        f"compiler   default options, because gptjax/parallel/tpu.py does not list {device.device_kind}; it lists {', '.join(tpu.KINDS)}"
    ]


def _optimizer_lines(config) -> list[str]:
    """What is unusual about an optimizer, if anything is."""
    from gptjax.optim import optimizers, probe

    return [f"optimizer  {note}" for note in probe.said(config.name, optimizers.OPTIMIZERS[config.name])]


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


def _prompt_lines(store) -> list[str]:
    """One: prompts are answered, and are no text that is learnt."""
    (prompts,) = store.sources.values()
    train, held_out = prompts.train, prompts.val
    return [
        f"prompts    {len(train.prompts):,} to train on ({train.n_tokens:,} tokens), {len(held_out.prompts):,} held out"
        f" ({held_out.n_tokens:,}) ({store.tokenizer.kind} tokenizer)"
    ]


def _conversation_lines(session) -> list[str]:
    """What becomes of the conversations that are longer than a row, of each source and its held-out text."""
    if session.config.data.chat is None or session.config.data.preferences is not None:
        return []
    rows = [*session.rows.by_source.values(), *session.eval_rows.values()]
    return [f"           {each.overflow}" for each in rows]


def shown_path(directory) -> str:
    """As short as it can be typed from here."""
    here = pathlib.Path.cwd()
    path = pathlib.Path(directory.path)
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(directory.path)


def stopping(doing: str, calls: int, steps_per_call: int, call_seconds: float | None) -> str:
    """What a run does when it is asked to stop. doing: a word of the watchdog's. calls: those of the train step that have to
    come to their end, at most; call_seconds: of each, where it is known."""
    if doing != "training":
        return f"{doing} first has to reach a point where it can stop; then the run saves a checkpoint and stops"
    seconds = None if call_seconds is None else calls * call_seconds
    about = "" if seconds is None else f" (about {max(1, round(seconds))} s)"
    steps = calls * steps_per_call
    return f"the run finishes up to {steps:,} steps that are under way{about}, then saves a checkpoint and stops"


def ending(session, directory) -> list[str]:
    """What lies in the run directory, and what to do next."""
    where, drawn = shown_path(directory), session.config.train.tensorboard
    sampled = _sampled(session.config, where, "corpus" in session.store.sources)
    return [
        f"{where}/config.json, manifest.json: the config, and the code and data of the run",
        f"{where}/metrics.jsonl{', tensorboard/' if drawn else ''}: the numbers of every logged step and evaluation",
        f"{where}/checkpoints/, tokenizer/: what evaluation, sampling and resuming need",
        "next:",
        *([f"  {sampled}"] if sampled else []),
        *([f"  gptjax eval --workdir={where}"] if session.config.rl.prompts is None else []),  # which has no text
        f"  gptjax watch {where}",
        *([f"  tensorboard --logdir={where}"] if drawn else []),
    ]


def _sampled(config, where: str, is_corpus: bool) -> str | None:
    """The command that shows what a run learned to write; None: it learned no text."""
    data = config.data
    if config.model.task_head is not None or not data.writes_on:
        return None
    if data.chat is not None:
        return f"gptjax sample --workdir={where} --chat"
    prompt = " --prompt='ROMEO:'" if is_corpus else ""
    return f"gptjax sample --workdir={where}{prompt} --temperature=0.8"
