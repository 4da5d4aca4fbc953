"""The page of one run."""

import time

from gptjax import flops, schedule
from gptjax.errors import UserError
from gptjax.pages import numbers, page
from gptjax.pages.blocks import Code, Notice, Table, folded
from gptjax.rundir import run_directory
from gptjax.study.running import status
from gptjax.terminal import duration, si
from gptjax.watch import charts, goodput, view
from gptjax.watch.record import Record
from gptjax.watch.view import View

NOT_STARTED, STARTING, TRAINING, FINISHING, STOPPED, DIVERGED, DONE = STATES = (
    "not started", "starting", "training", "finishing", "stopped", "diverged", "done",
)  # fmt: skip
GOING_ON = (STARTING, TRAINING, FINISHING)
ENDED = {DONE: "the run is done", DIVERGED: "the run diverged"}


class RunPage:
    """`look` gives what there is to see now; rows of the log that it has read once are not read again."""

    def __init__(self, directory: run_directory.RunDirectory):
        self.directory, self._record = directory, Record(directory.metrics)

    def look(self) -> View:
        """Raises UserError: this is no run directory."""
        config, record = self.directory.config(), self._record
        record.update()
        state = _state(record, schedule.total_steps(config), status.is_held(self.directory))
        parts = {
            "head": _head(self.directory.path.name, config, record, state),
            "notices": _notices(record, state),
            "charts": "",
            "time": _time(record),
            "samples": _samples(record, config, state),
            "events": _events(record),
            "facts": view.section("About this run", _facts(self.directory, config, record)),
        }
        drawn = charts.of_run(record)
        ended = ENDED.get(state, "")
        return View(self.directory.path.name, parts, drawn, state in GOING_ON, charts.marks(record), ended)


def _state(record: Record, total: int, held: bool) -> str:
    if held:
        return TRAINING if record.step < total and record.last else FINISHING if record.last else STARTING
    if record.diverged:
        return DIVERGED
    return NOT_STARTED if not record.last else DONE if record.step >= total or record.ended_early else STOPPED


def _head(name: str, config, record: Record, state: str) -> str:
    total, tokens = schedule.total_steps(config), schedule.run_tokens(config)
    done = min(1.0, record.step / total)
    seen = schedule.tokens_before(config, min(record.step, total))
    said = f"Step {record.step:,} of {total:,} ({done:.1%}), {numbers.count(seen) if seen else 0} of {numbers.count(tokens)} tokens."
    shown = {"held-out loss": _held_out(record), "training loss": _plain(record, "loss")}
    rate, mfu = record.train["tokens_per_second"].last(), record.train["mfu"].last()
    shown |= {"tokens/s": si(rate)} if rate else {}
    shown |= {"MFU": numbers.percent(mfu, 1)} if mfu else {}
    if state == TRAINING and record.last.get("seconds_left") is not None:
        left = max(0.0, record.last["seconds_left"] - (time.time() - record.last["time"]))
        shown |= {"time left": duration(left)}
    title = f"<h1>{view.escaped(name)} {view.badge(state)}</h1>"
    return f"{title}\n{view.progress(done)}\n<p>{said}</p>\n{view.tiles(shown)}"


def _held_out(record: Record) -> str:
    loss, error = record.held_out["loss"].last(), record.held_out["standard_error"].last()
    return numbers.loss(loss) + (f" ± {error:.4f}" if loss is not None and error is not None else "")


def _plain(record: Record, name: str) -> str:
    return numbers.loss(record.train[name].last())


def _notices(record: Record, state: str) -> str:
    said = []
    if state == STARTING:
        said.append("The run has started and has logged no step yet. The first step comes after compiling.")
    if state == NOT_STARTED:
        said.append("The run has logged no step, and no process is training it now.")
    if state == STOPPED:
        said.append("The run was stopped before its last step. The same gptjax train command goes on with it.")
    if state == DIVERGED:
        said.append(f"Training diverged: {record.diverged}.")
    if record.torn:
        said.append(f"{record.torn} lines of metrics.jsonl are damaged and left out.")
    return "\n".join(page.block(Notice(words, good=state == STARTING)) for words in said)


def _time(record: Record) -> str:
    seconds = record.goodput.seconds()
    total = sum(seconds.values())
    if not total:
        return ""
    share = seconds.get(goodput.TRAINING, 0.0) / total
    words = f"Goodput {share:.1%}: the part of {view.duration(total)} that went into training steps which were kept."
    return view.section("Where the time went", f"<p>{words}</p>\n{view.shares(seconds, goodput.ORDER)}")


def _samples(record: Record, config, state: str) -> str:
    if not record.samples:
        if not config.eval.sample_tokens or state in (DONE, DIVERGED):
            return ""
        every = config.eval.sample_every_steps
        when = f"every {every:,} steps" if every else "at the end of the run; eval.sample_every_steps asks for more"
        return view.section("Samples", f"<p>A sample is written {when}.</p>")
    shown = [
        f'<p>Step {row["step"]:,}:</p><pre class="sample"><b>{view.escaped(row.get("prompt", ""))}</b>'
        f"{view.escaped(row.get('text', ''))}</pre>"
        for row in reversed(record.samples)
    ]
    return view.section("Samples", "\n".join(shown))


def _events(record: Record) -> str:
    if not record.events:
        return ""
    rows = [[f"{event.step:,}", view.clock(event.time), event.said] for event in reversed(record.events)]
    hidden = sum(record.counts[name] for name in record.counts if name not in ("first_call", "rows_read", "sample"))
    table = Table(["step", "time", "event"], rows, words=("event",))
    earlier = f"<p>The newest {len(rows)} of {hidden}.</p>" if hidden > len(rows) else ""
    return view.section("Events", earlier + page.block(folded(table, "All events")))


def _facts(directory, config, record: Record) -> str:
    model, counts = config.model, flops.parameters(config.model)
    manifest = _manifest(directory)
    shown = {
        "directory": str(directory.path),
        "model": f"{model.shown_shape}, context {model.context_length}, vocabulary {model.vocab_size}, {model.dtype}",
        "parameters": f"{counts.total:,} ({counts.non_embedding:,} without embeddings)",
        "text": _text(manifest),
        "training": f"{schedule.total_steps(config):,} steps of {config.train.batch_size} x {model.context_length} tokens:"
        f" {schedule.run_tokens(config):,} tokens, {numbers.flops(flops.train_flops(config))} FLOPs",
        "optimizer": f"{config.optim.name}, peak learning rate {numbers.setting(config.optim.peak_lr)},"
        f" schedule {config.optim.schedule}",
        "devices": record.devices or numbers.NONE,
        "first row": view.clock(record.began),
        "newest row": view.clock(record.written),
        "code": _code(manifest),
    }
    command = " ".join(map(str, manifest.get("command") or []))
    return view.facts(shown) + (page.block(Code(command)) if command else "")


def _manifest(directory) -> dict:
    """{} where it is missing or damaged: the page shows what is left."""
    try:
        return directory.manifest()
    except UserError:
        return {}


def _text(manifest: dict) -> str:
    text = manifest.get("data") or {}
    splits, tokenizer = text.get("splits") or {}, (text.get("tokenizer") or {}).get("kind")
    sizes = [f"{splits[name]['tokens']:,} {said}" for name, said in (("train", "training tokens"), ("val", "held out"))
             if "tokens" in splits.get(name, {})]  # fmt: skip
    return ", ".join([*sizes, *([f"{tokenizer} tokenizer"] if tokenizer else [])]) or numbers.NONE


def _code(manifest: dict) -> str:
    git = manifest.get("git") or {}
    changed = len(git.get("changed_files") or [])
    revision = str(git.get("revision", ""))[:12]
    return f"{revision}{f', {changed} files changed since' if changed else ''}" if revision else numbers.NONE
