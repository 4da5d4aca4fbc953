"""How well the scores of a model agree with preferences (data.preferences), with standard errors.

    evaluate_sources(program, params, {name: EvalPairs}, batch_size)     as held_out's, of text

The scores are a reward model's, and of a model without such a head the log-probabilities of the answers (scored.py).
Axes: E prompts, K answers, P pairs.
"""

import dataclasses
import functools

import numpy as np

from gptjax.config import task_heads
from gptjax.data import tokenizers
from gptjax.data.pairs import store
from gptjax.data.pairs.rows import EvalPairs
from gptjax.errors import imported
from gptjax.evaluation import labelled, metrics, preference_metrics, scored
from gptjax.evaluation import texts as evaluation_text
from gptjax.models import labelled as labelled_model
from gptjax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class PreferenceEvaluation:
    loss: metrics.Estimate  # nats a prompt: -log sigmoid of the difference of two scores, the mean over pairs
    numbers: dict[str, metrics.Estimate]
    calibration: list[dict[str, float]]  # of preference_metrics.calibration; [] of thumbs
    examples: int
    pairs: int

    def as_dict(self) -> dict:
        values = {name: value for name, (value, _) in self.numbers.items()}
        errors = {f"{name}_error": error for name, (_, error) in self.numbers.items()}
        curve = {"calibration": self.calibration} if self.calibration else {}
        counts = {"examples": self.examples, "pairs": self.pairs}
        return {"loss": self.loss.value, "standard_error": self.loss.error, **values, **errors, **counts, **curve}

    def __str__(self) -> str:
        shown = [name for name in ("accuracy", "auc", "margin", "ece", "length_correlation") if name in self.numbers]
        numbers = "".join(
            f"  {name} {self.numbers[name].value:.4f} +- {self.numbers[name].error:.4f}" for name in shown
        )
        counts = f"{self.examples:,} prompts, {self.pairs:,} pairs" if self.pairs else f"{self.examples:,} answers"
        return f"loss {self.loss.value:.4f} +- {self.loss.error:.4f}{numbers}  ({counts})"


def evaluate_sources(
    program, params, rows: dict[str, EvalPairs], batch_size: int, should_stop=lambda: False, report=None
) -> dict[str, PreferenceEvaluation] | None:
    """{source: PreferenceEvaluation}; of several also "all", their examples taken as one set, first. None: should_stop() said
    so. report: as held_out.evaluate_sources has it."""
    outcomes = {}
    for name, source in rows.items():
        tell = functools.partial(report, name, source.num_rows) if report else None
        scores = scores_of(program, params, source, batch_size, should_stop, tell)
        if scores is None:
            return None
        outcomes[name] = (list(source.examples), scores)
    if len(outcomes) > 1:
        pooled = tuple(sum(parts, []) for parts in zip(*outcomes.values()))
        outcomes = {"all": pooled} | outcomes
    return {name: summarise(*outcome) for name, outcome in outcomes.items()}


def scores_of(
    program, params, rows: EvalPairs, batch_size: int, should_stop=lambda: False, report=None
) -> list[np.ndarray] | None:
    """Of each example float64 [K], on the mesh in context, batch_size examples at a time. None: should_stop() said so."""
    compute, scores = rows.scores or (scored.of_likelihood if rows.head is None else scored.of_head), []
    loss_sum = 0.0
    for first in range(0, rows.num_rows, batch_size):
        if should_stop():
            return None
        batch = labelled.placed_batch(program, rows, first, batch_size)
        score_BK = sharding.on_host(compute(program.graph, params, batch))
        examples = rows.examples[first : first + batch_size]
        scores += [np.float64(score_BK[b, : len(example.sequences)]) for b, example in enumerate(examples)]
        if report is not None:
            loss_sum += float(_losses(examples, scores[first:]).sum())
            report(len(scores), loss_sum, float(len(scores)))
    return scores


def summarise(examples: list, scores: list[np.ndarray]) -> PreferenceEvaluation:
    loss = metrics.mean(_losses(examples, scores))
    if examples[0].label is not None:
        numbers = preference_metrics.of_thumbs([score_K[0] for score_K in scores], [each.label for each in examples])
        return PreferenceEvaluation(loss, numbers, [], len(examples), 0)
    pairs = preference_metrics.pairs_of(examples, scores)
    curve = preference_metrics.calibration(pairs.difference_P, pairs.weight_P)
    return PreferenceEvaluation(loss, preference_metrics.of_pairs(pairs), curve, len(examples), len(pairs.prompt_P))


def _losses(examples: list, scores: list[np.ndarray]) -> np.ndarray:
    """float64 [E]: nats; of a thumb -log sigmoid of the score, or of its negative where it is down."""
    if examples[0].label is not None:
        signed_E = [(2 * example.label - 1) * score_K[0] for example, score_K in zip(examples, scores)]
        return preference_metrics.log_loss(signed_E)
    pairs = preference_metrics.pairs_of(examples, scores)
    return preference_metrics.mean_by_prompt(preference_metrics.log_loss(pairs.difference_P), pairs)


# ---- a run's own preferences, and others


@dataclasses.dataclass(frozen=True)
class PreferenceReading:
    """In the place of a run_loss.Reading."""

    rows: dict[str, EvalPairs]
    about: dict[str, str]  # what each set is
    texts: dict = dataclasses.field(default_factory=dict)

    def convention(self, run) -> dict:
        """JSON values: what the numbers of an evaluation mean."""
        return {
            "task": f"data.preferences={run.config.data.preferences!r}",
            "task_head": run.config.model.task_head,
            "loss": "nats per prompt, the mean over its pairs, without margin",
            "standard_error": "accuracy, margin and loss: over prompts; others: over"
            f" {metrics.RESAMPLES} bootstrap samples of the prompts",
            "scores": "of the reward model" if run.config.model.task_head else f"implicit, of {run.config.train.loss}",
            "examples": self.about,
            "dtype": run.model_config.dtype,
        }


def reading_of(run, texts=None, max_tokens: int | None = None) -> PreferenceReading:
    """The run's held-out preferences, or all of other sets. texts: SPECs, as run_loss.reading_of takes them.

    Raises UserError: preferences that cannot be had."""
    if texts is None:
        run.directory.check_trained("evaluated on its preferences; give --data=KIND:PATH")
        opened = open_own(run)
        sets, about = {opened.name: opened.examples.val.examples}, {opened.name: "the run's held-out preferences"}
    else:
        specs, form = evaluation_text.named(texts), run.chat_format()
        sets = {name: store.other_examples(spec, run.config, form, run.tokenizer) for name, spec in specs.items()}
        about = {name: f"all of {spec}" for name, spec in specs.items()}
    rows = {name: rows_of(run, examples, max_tokens) for name, examples in sets.items()}
    if run.config.model.task_head is None and run.config.data.preferences is not None:
        imported(run.config.data.examples.ready, "data.preferences")(run, rows)
    return PreferenceReading(rows, about)


def open_own(run) -> store.PairStore:
    """Raises UserError: they are not what the run was started with."""
    opened = store.open_pairs(run.config)
    tokenizers.check_same(opened.tokenizer, run.tokenizer)
    run.directory.check_text(opened)
    return opened


def rows_of(run, examples, max_tokens: int | None = None) -> EvalPairs:
    unit = labelled_model.length_unit(run.model.kernel, run.mesh)
    return store.rows_of(examples, task_heads.of(run.config.model), run.tokenizer, run.config, unit, max_tokens)
