"""What a run is worth on a text: the loss of every token but the first, or of the last words of passages.

    found = evaluate_run(run, "text:book.txt", stride=128)      {name: Evaluation}, "all" first where there are several

`held_out.py` sums losses over windows, `texts.py` finds the text, `protocols.py` has the conventions of known
data sets.
"""

import dataclasses

from gptjax.config.values import typed
from gptjax.data.rows import objectives
from gptjax.data.rows.pipeline import EvalRows, held_out_rows
from gptjax.errors import UserError, choose, did_you_mean, imported
from gptjax.evaluation import held_out, protocols, scoring
from gptjax.evaluation import texts as evaluation_text
from gptjax.evaluation.held_out import Evaluation
from gptjax.parallel import numerics

RUNS_OWN = object()  # of max_tokens: as the run's config has it
HOW_READ = ("text_field", "separator")
SETTINGS = ("protocol", "stride", "max_tokens", *HOW_READ)  # that `reading_of` takes


@dataclasses.dataclass(frozen=True)
class Reading:
    """Texts cut into windows for a run: the same for all its steps."""

    rows: dict[str, EvalRows]
    texts: dict[str, evaluation_text.Text]

    def convention(self, run) -> dict:
        """JSON values: what the numbers of an evaluation mean."""
        rows = next(iter(self.rows.values()))
        is_chat = any(each.tokens.weights is not None for each in self.rows.values())
        clusters = "rows of whole conversations" if is_chat else f"windows of {rows.window} predicted tokens"
        return {
            "loss": "nats per token",
            "standard_error": f"of a ratio of means over {clusters}",
            "window": rows.window,
            "stride": rows.stride,
            "documents_apart": run.config.data.documents_apart,
            "tokenizer": run.tokenizer.kind,
            "vocab_size": run.tokenizer.vocab_size,
            "tokenizer_hash": run.tokenizer.hash,
            "dtype": run.model_config.dtype,
            "text": {name: text.said for name, text in self.texts.items()},
        } | ({"conversations": True} if is_chat else {})


def evaluator(data):
    """`held_out.evaluate_sources`, or that of other rows where a DataConfig has such."""
    return held_out.evaluate_sources if data.examples is None else _of_examples(data).evaluate_sources


def _of_examples(data):
    """The module that judges by them."""
    return imported(data.examples.evaluation, "data")


def reading_of(
    run,
    texts=None,
    *,
    protocol: str | None = None,
    stride: int | None = None,
    max_tokens=RUNS_OWN,
    **how,
) -> Reading:
    """texts: SPECs (see evaluation_text.named); None: the run's held-out text. protocol: of protocols.DETOKENIZERS.

    stride: tokens between two windows' starts; None: the context length. max_tokens: of each text, from its start; None:
    all; left out: all, but eval.max_tokens of the run's own text. how: text_field, separator, as in the data config.

    Raises UserError: text that cannot be had, a stride or protocol that cannot be.
    """
    config, tokenizer = run.config, run.tokenizer
    stride = _count("stride", stride)
    max_tokens = max_tokens if max_tokens is RUNS_OWN else _count("max_tokens", max_tokens)
    if config.data.examples is not None:
        own = config.eval.max_tokens if texts is None else None
        _check_settings(config.data, {"protocol": protocol, "stride": stride, **how})
        return _of_examples(config.data).reading_of(run, texts, own if max_tokens is RUNS_OWN else max_tokens)
    for name in how:
        if name not in HOW_READ:
            raise UserError(f"{name!r} is no setting{did_you_mean(name, SETTINGS)}; expected: {', '.join(SETTINGS)}.")
        if texts is None:
            raise UserError(f"--{name} says how --data are read; give --data too.")
    if protocol is not None:
        _check_protocol_fits(run, protocol, texts, max_tokens)
    if texts is None:
        found = evaluation_text.own(run)
    else:
        specs, base = evaluation_text.named(texts), dataclasses.replace(config.data, **how, chat=_chat(run))
        if protocol is None:
            found = evaluation_text.others(specs, tokenizer, base)
        else:
            found = protocols.detokenised(specs, tokenizer, base, protocol)
    if max_tokens is RUNS_OWN:
        max_tokens = config.eval.max_tokens if texts is None else None
    return windows_of(run, found, stride, max_tokens)


def _check_settings(data, settings: dict) -> None:
    """Raises UserError: a flag of `gptjax eval` is of running text."""
    for name, value in settings.items():
        if value is not None:
            raise UserError(f"--{name}={value}: a run of {data.examples_field} is judged by examples; leave it out.")


def _chat(run) -> str | None:
    """The run's data.chat, as the run keeps it."""
    if run.config.data.chat is None:
        return None
    from gptjax.data.chat import kinds

    return kinds.kept_name(run.config.data.chat, run.directory.tokenizer)


def _count(name: str, value) -> int | None:
    """Raises UserError: no whole number above 0, nor None."""
    value = typed(int | None, value, f"--{name}")
    if value is not None and value < 1:
        raise UserError(f"--{name}={value} is too small; use at least 1.")
    return value


def windows_of(run, texts: dict[str, evaluation_text.Text], stride: int | None, max_tokens: int | None) -> Reading:
    """Texts in the tokens of the run's tokenizer, cut for it. Raises UserError: a stride that cannot be."""
    return Reading({name: _rows(run, text, name, stride, max_tokens) for name, text in texts.items()}, texts)


def _check_protocol_fits(run, protocol: str, texts, max_tokens) -> None:
    if texts is None:
        raise UserError(f"--protocol={protocol} is for a data set; give --data too.")
    if max_tokens is not RUNS_OWN and max_tokens is not None:
        raise UserError(f"--protocol={protocol} counts the words of a whole text; leave out --max_tokens={max_tokens}.")
    if run.config.data.sees_ahead:
        raise UserError(
            f"--protocol={protocol} needs the loss of each next token, but a model of"
            f" data.objective={run.config.data.objective!r} is judged by that."
        )


def _rows(run, text: evaluation_text.Text, name: str, stride: int | None, max_tokens: int | None) -> EvalRows:
    length = run.config.model.context_length
    objective = objectives.make_objective(run.config.data, run.tokenizer, length)
    said = f"the text of {name!r}"
    make = held_out_rows(text.tokens)
    return make(text.tokens, run.tokenizer, length, run.config.data, objective, max_tokens, said, stride)


def batch_rows(run, batch_size: int | None) -> int:
    """Rows that go through the model at once: as many as asked for, or as in training, and a multiple of the devices."""
    size, batch_size = run.mesh.size, _count("batch_size", batch_size)
    return -(-(batch_size or run.config.eval_batch_size) // size) * size


def evaluate_on(run, reading: Reading, batch_size: int | None = None, **options) -> dict[str, Evaluation] | None:
    """{name: Evaluation}, and of several texts also "all", first. None if options["should_stop"]() said so."""
    with numerics.on_mesh(run.mesh):
        batch = batch_rows(run, batch_size)
        found = evaluator(run.config.data)(run.program, run.params, reading.rows, batch, **options)
    if found is None:
        return None
    return {
        name: dataclasses.replace(result, words=reading.texts[name].words) if name in reading.texts else result
        for name, result in found.items()
    }


def evaluate_run(run, texts=None, *, batch_size: int | None = None, **settings) -> dict[str, Evaluation]:
    """{name: Evaluation} of a run on its held-out text, or on others; "all" first where there are several.

    settings: of `reading_of`. Raises UserError as it does."""
    batch_size = _count("batch_size", batch_size)  # before text is read for long
    return evaluate_on(run, reading_of(run, texts, **settings), batch_size)


def last_words(run, texts, *, batch_size: int | None = None, should_stop=lambda: False, **how) -> dict | None:
    """{name: LastWords} of data sets in LAMBADA's form. how: text_field, separator. None if should_stop() said so."""
    if not run.config.data.writes_on:
        raise UserError(
            f"--protocol=lambada: a model of data.objective={run.config.data.objective!r} does not continue text."
        )
    found, base = {}, dataclasses.replace(run.config.data, **how)
    for name, spec in evaluation_text.named(texts).items():
        requests = [scoring.Request(*passage) for passage in protocols.passages(spec, run.tokenizer, base)]
        scores = scoring.score(
            run.graph, run.params, run.mesh, requests, batch_size=batch_rows(run, batch_size), should_stop=should_stop
        )
        if scores is None:
            return None
        found[name] = protocols.last_words(
            [score.log_likelihood for score in scores],
            [score.greedy for score in scores],
            [score.likeliest_L[-1] for score in scores],
        )
    return found


def check_protocol(name: str | None) -> None:
    """Raises UserError: there is no such protocol."""
    if name is not None:
        choose(dict.fromkeys(protocols.PROTOCOLS), name, "--protocol")
