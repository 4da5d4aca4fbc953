"""What a study file declares, and the runs it stands for. No JAX: a study is planned on any machine.

Study  --runs()-->  PlannedRuns, each with a Config of its own, in stages:

    tune    each size at several learning rates     trunk   long runs that others branch from
    grid    sizes x budgets x seeds x what else     target  larger runs, predicted before they start
"""

import dataclasses
import functools
import itertools
import math
import pathlib
import typing

from gptjax.config import config_file
from gptjax.errors import UserError
from gptjax.study.declare import lengths, recipes

STAGES = ("tune", "trunk", "grid", "target")
LENGTHS = ("budgets", "tokens", "tokens_per_param")


@dataclasses.dataclass(frozen=True)
class Target:
    """A run beyond the grid, predicted by the grid's fit before it starts."""

    shapes: dict[str, dict]  # by name, as recipes make them
    budget: float  # FLOPs


@dataclasses.dataclass(frozen=True)
class Study:
    """A base config and the rules that turn it into runs. One of budgets, tokens and tokens_per_param is given."""

    base: typing.Any  # what get_config() returns, or the path of a config file, from the study file
    sizes: dict[str, dict]  # {name: {"section.field": value}}: changes of the base, as recipes make them
    budgets: tuple[float, ...] | None = None  # FLOPs of a run
    tokens: tuple[float, ...] | None = None  # of a run
    tokens_per_param: tuple[float, ...] | None = None  # parameters are all there are, embeddings included
    seeds: tuple[int, ...] = (0,)  # of initialisation, dropout and data order
    grid: dict[str, tuple] = dataclasses.field(default_factory=dict)  # {"section.field": values}, all combinations
    learning_rate: typing.Any = None  # a recipes.Rule, recipes.tuned(...), or None: the base's
    batch: typing.Any = None  # a Rule for sequences; None: the base's
    warmup: typing.Any = None  # a Rule for steps; None: the base's
    keep: typing.Callable[[dict], bool] = lambda factors: True  # which runs, by family, size, budget, seed, stage, grid
    cooldown: float | None = None  # the part of a run that cools down, branched from a trunk; None: no branches
    targets: tuple[Target, ...] = ()
    evaluations: int = 1  # in a run, the one at its end included
    flops: str = "exact"  # convention that budgets are counted in, see flops.flops_per_token

    def __post_init__(self):
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) != 1:
            raise UserError(f"a study's runs get their lengths from one of {', '.join(LENGTHS)}; given: {given}.")
        if not self.sizes or not getattr(self, given[0]) or not self.seeds:
            raise UserError(f"a study needs sizes, {given[0]} and seeds, at least one of each.")
        if min(getattr(self, given[0])) <= 0:
            raise UserError(f"{given[0]} of a study are positive; given: {getattr(self, given[0])}.")
        if self.cooldown is not None and not 0 < self.cooldown < 1:
            raise UserError(
                f"cooldown={self.cooldown} of a study is not a share of a run; use a number in (0, 1) such as 0.2."
            )

    @property
    def length_name(self) -> str:
        return next(name for name in LENGTHS if getattr(self, name) is not None)


@dataclasses.dataclass(frozen=True)
class Branch:
    """A run that goes on from another one's checkpoint."""

    trunk: str  # name of the run
    step: int


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a study."""

    name: str  # such as "w64-C1e+12-seed0"
    stage: str  # one of STAGES
    factors: dict[str, typing.Any]  # size, budget, seed, learning_rate ...: what the study varies, as JSON
    config: typing.Any  # Config; None: its learning rate is what the stage "tune" will find
    branch: Branch | None = None
    outline: typing.Any = None  # Config, with the base's learning rate while config is None


def load(path: str) -> Study:
    """The Study of a file's get_study(). Raises UserError: no such file, no get_study(), it returns something else."""
    study = config_file.run_file(path, "STUDY", "get_study", "Study")
    if not isinstance(study, Study):
        raise UserError(f"get_study() of {path} returned {type(study).__name__}; expected a gptjax.study.Study.")
    if isinstance(study.base, str):
        file = pathlib.Path(path).parent / study.base
        study = dataclasses.replace(study, base=config_file.run_file(str(file), "base", "get_config", "ConfigDict"))
    return study


def runs(study: Study, vocab_size: int | None, results: dict[str, float] | None = None) -> list[PlannedRun]:
    """All runs of a study, in stages and in the order declared.

    vocab_size: of the tokenizer, for a base that leaves it out. results: {name of a tuning run: its final loss, inf if it
    diverged}; runs whose size lacks one wait for it. Raises UserError: a value that cannot be, two runs of one name.
    """
    builder = _Builder(study, vocab_size, results or {})
    planned = builder.tuning() + builder.grid() + builder.target()
    names = [run.name for run in planned]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"a study declares {name} twice; give every size, budget, seed and grid value once.")
    return sorted(planned, key=lambda run: STAGES.index(run.stage))  # stable


def family(model) -> str:
    """What a law is fitted through: runs of one architecture and one parametrisation."""
    return (
        model.architecture if model.parametrization == "standard" else f"{model.architecture}-{model.parametrization}"
    )


class _Builder:
    def __init__(self, study: Study, vocab_size: int | None, results: dict[str, float]):
        self.study, self.vocab_size, self.results = study, vocab_size, results
        self.tuned = study.learning_rate if isinstance(study.learning_rate, recipes.Tuned) else None

    def tuning(self) -> list[PlannedRun]:
        if self.tuned is None:
            return []
        return [
            run
            for size, shape in self.study.sizes.items()
            for rate in self.tuned.rates
            if (run := self._run("tune", size, shape, {"budget": self.tuned.budget}, self.tuned.seed, {}, rate))
        ]

    @functools.cached_property
    def tuned_sizes(self) -> dict[str, dict[float, str]]:
        """{size: {learning rate: name of its tuning run}}"""
        found = {}
        for run in self.tuning():
            found.setdefault(run.factors["size"], {})[run.factors["learning_rate"]] = run.name
        return found

    def grid(self) -> list[PlannedRun]:
        study, singular = self.study, {"budgets": "budget"}.get(self.study.length_name, self.study.length_name)
        points = itertools.product(study.sizes.items(), itertools.product(*study.grid.values()), study.seeds)
        made = []
        for (size, shape), values, seed in points:
            lengths_ = [{singular: value} for value in getattr(study, study.length_name)]
            fields = dict(zip(study.grid, values))
            family = [run for length in lengths_ if (run := self._run("grid", size, shape, length, seed, fields))]
            made += family if study.cooldown is None else lengths.branched(family, study.cooldown, Branch)
        return made

    def target(self) -> list[PlannedRun]:
        return [
            run
            for target in self.study.targets
            for size, shape in target.shapes.items()
            if (run := self._run("target", size, shape, {"budget": target.budget}, self.study.seeds[0], {}))
        ]

    def _run(self, stage: str, size: str, shape: dict, length: dict, seed: int, fields: dict, rate=None):
        """A PlannedRun, or None where the study leaves it out."""
        config = self._config(shape | fields | {"train.seed": seed, "data.seed": seed})
        factors = {"family": family(config.model), "size": size, "budget": None, **length, "seed": seed, **fields}
        factors |= {"stage": stage, "learning_rate": rate}
        if not self.study.keep(dict(factors)):
            return None
        config, waits = self._with_rules(lengths.facts(self.study, config, length), size, rate)
        factors["learning_rate"] = None if waits else config.optim.peak_lr
        name = "-".join([*self._words(stage, size, length, fields, rate), f"seed{seed}"])
        return PlannedRun(name, stage, factors, None if waits else config, outline=config)

    def _words(self, stage: str, size: str, length: dict, fields: dict, rate) -> list[str]:
        short = {"budget": "C", "tokens": "D", "tokens_per_param": "DN"}
        words = ([stage] if stage != "grid" else []) + [size]
        words += [f"{short[name]}{value:.3g}" for name, value in length.items()] if stage != "tune" else []
        words += [f"{name.rpartition('.')[2]}={value}" for name, value in fields.items()]
        return words + ([] if rate is None else [f"lr{rate:.3g}"])

    def _config(self, changes: dict):
        values = config_file.as_dict(self.study.base)
        for key, value in changes.items():
            section, _, field = key.partition(".")
            values.setdefault(section, {})[field] = value
        if values.get("model", {}).get("vocab_size") is None:
            if self.vocab_size is None:
                raise UserError("the base of a study leaves model.vocab_size to its tokenizer, which was not opened.")
            values.setdefault("model", {})["vocab_size"] = self.vocab_size
        train = values.setdefault("train", {})
        if train.get("stop_metric") is not None:
            raise UserError(
                f"train.stop_metric={train['stop_metric']!r} ends runs early, but those of a study have the lengths that it"
                " declares; use None."
            )
        train |= {
            "steps": train.get("steps_per_call", 1),
            "tokens": None,
            "epochs": None,
        }  # stands in until the length is known
        return config_file.from_dict(values)

    def _with_rules(self, facts: recipes.Facts, size: str, rate) -> tuple:
        """(config with batch, length, warmup and learning rate, whether the latter is still to be found)."""
        study, config = self.study, facts.config
        if study.batch is not None:
            config = config.replace(train={"batch_size": int(study.batch(facts))})
        config = lengths.with_length(study, config, facts)
        facts = dataclasses.replace(facts, config=config)
        if study.warmup is not None:
            steps = max(1, round(study.warmup(facts)))
            config = config.replace(optim={"warmup_steps": steps, "warmup_tokens": None})
        waits = False
        if rate is None:
            rate, waits = self._rate(dataclasses.replace(facts, config=config), size)
        return (config if rate is None else config.replace(optim={"peak_lr": rate})), waits

    def _rate(self, facts: recipes.Facts, size: str) -> tuple[float | None, bool]:
        if self.tuned is None:
            return None if self.study.learning_rate is None else self.study.learning_rate(facts), False
        runs = self.tuned_sizes[size if size in self.tuned_sizes else self._nearest_tuned(facts)]
        if not all(name in self.results for name in runs.values()):
            return None, True
        return recipes.best_rate({rate: self.results[name] for rate, name in runs.items()}), False

    def _nearest_tuned(self, facts: recipes.Facts) -> str:
        """Of the same family, by parameters. Raises UserError: none was tuned."""
        distances = {}
        for size in self.tuned_sizes:
            other = recipes.Facts(self._config(self.study.sizes[size]), facts.flops, facts.tokens)
            if family(other.config.model) == family(facts.config.model):
                distances[size] = abs(math.log(other.params / facts.params))
        if not distances:
            raise UserError(f"no {family(facts.config.model)} size of the study is tuned; keep some tuning runs.")
        return min(distances, key=distances.get)
