"""The parity certificate: a config's miniature gives on every mesh of eight devices what it gives on one.

Every factorisation of the devices over the mesh axes is run at least once, with gradients accumulated or not and with
each remat policy; the choice of runs covers every pair of (axis in use, axis in use), (axis, remat), (axis,
microbatches) and (remat, microbatches) that the config accepts. All are compared with one run: one device, one
microbatch, nothing recomputed, from the same random parameters, none of which is at its initial zero or one.

Every mesh computes its own gradients and updates, but all update along the gradients of that one run. Lion's steps are
signs of the gradient, and Adam's nearly so: where an entry is zero but for rounding it may move either way, and a step
later the loss is another one. Equal gradients at equal parameters, and equal updates along equal gradients, are what
equal training is made of, and hold to rounding under every optimizer.

What is compared, each relative and against TOLERANCE:

    loss        of every step
    gradient    of the first step: for each parameter |g - g1| / max(|g1|, floor), in Euclidean norms. The floor is
                FLOOR of the norm that the average gradient entry would give that parameter: some gradients are zero
                but for rounding.
    parameter   after the last step, averages too: |p - p1| / |p1|, where each entry of p - p1 is first reduced by its
                slack: what one device does if every gradient entry changes by TOLERANCE (of its parameter's
                root mean square, no less than the floor's). Clipping and moments round differently on a mesh, which
                turns the sign of a sum that is zero but for rounding.
"""

import dataclasses
import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import schedule
from gptjax.config import catalogue
from gptjax.diagnostics import miniature
from gptjax.errors import UserError
from gptjax.models import architectures, attention
from gptjax.parallel import meshes, numerics
from gptjax.training import program as programs
from gptjax.training import step, trainable

TOLERANCE = 1e-5
FLOOR = 0.01
KINDS = ("loss", "gradient", "parameter")


@dataclasses.dataclass(frozen=True)
class Case:
    mesh: tuple[tuple[str, int], ...]  # MeshConfig fields that are not 1
    microbatches: int
    remat: str

    @property
    def mesh_name(self) -> str:
        return " x ".join(f"{axis}={size}" for axis, size in self.mesh) or "one device"

    @property
    def pairs(self) -> set:
        """What the run exercises together."""
        axes = [axis for axis, _ in self.mesh]
        traits = [f"remat={self.remat}", f"microbatches={self.microbatches}"]
        return {frozenset(pair) for pair in itertools.combinations([*axes, *traits], 2)} | {frozenset(axes)}


@dataclasses.dataclass(frozen=True)
class Outcome:
    case: Case
    refused: str | None = None  # the config's own reason
    worst: dict | None = None  # kind -> (relative difference, where)
    seconds: float = 0.0

    @property
    def differs(self) -> list[str]:
        """The kinds that differ by more than the tolerance, or are not numbers."""
        return [kind for kind, (value, _) in (self.worst or {}).items() if not value <= TOLERANCE]

    def as_dict(self) -> dict:
        worst = {kind: {"relative": value, "where": where} for kind, (value, where) in (self.worst or {}).items()}
        mesh = {"mesh": dict(self.case.mesh), "microbatches": self.case.microbatches, "remat": self.case.remat}
        return {**mesh, "refused": self.refused, "differs": self.differs, **worst, "seconds": round(self.seconds, 2)}


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """What is compared, in NumPy."""

    loss_S: np.ndarray
    gradient_S: dict  # of each step
    parameters: dict  # and the average, if one is kept


def factorisations(mesh_config, devices: int = miniature.DEVICES) -> list[tuple[tuple[str, int], ...]]:
    """Every way to lay devices over the mesh axes; for each axis that slices can lie along two with two slices; and two
    with a circular pipeline."""
    axes = meshes.AXES
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    sizes = [s for s in itertools.product(divisors, repeat=len(axes)) if np.prod(s) == devices]
    found = [{axis: n for axis, n in zip(axes, reversed(s)) if n > 1} for s in sorted(sizes, key=_spread)]
    for field in dataclasses.fields(mesh_config):
        if field.name.startswith("dcn_"):
            axis = field.name.removeprefix("dcn_")
            found += [{axis: devices // 2, field.name: 2}, {axes[-1]: devices // 2, field.name: 2}]
    circular = {"pipeline_repeats": 2}
    found += [{"stage": 2, "fsdp": devices // 2, **circular}, {"stage": 2, axes[-1]: 2, axes[-2]: 2, **circular}]
    return [tuple(mesh.items()) for mesh in found]


def _spread(sizes) -> tuple:
    return (sum(n > 1 for n in sizes), tuple(-n for n in sizes))


def cases(mini, every_mesh: bool = True) -> tuple[list[Case], list[Outcome]]:
    """The runs that cover every pair, each mesh in one at least if every_mesh; and the meshes the config refuses."""
    counts = (1, max(mini.train.microbatches, 2))
    policies = catalogue.entry(mini.model.architecture).remat
    by_mesh, refused = {}, []
    for mesh in factorisations(mini.mesh):
        options = [Case(mesh, count, remat) for remat in policies for count in counts]
        reasons = {case: refusal(mini, case) for case in options}
        by_mesh[mesh] = [case for case in options if reasons[case] is None]
        refused += [] if by_mesh[mesh] else [Outcome(options[0], refused=reasons[options[0]])]
    return _covering([options for options in by_mesh.values() if options], every_mesh), refused


def _covering(options_by_mesh: list[list[Case]], every_mesh: bool) -> list[Case]:
    """Greedily, the case that covers most pairs that are still open, until none is."""
    chosen, covered = [], set()

    def take(options):
        used = [(case.remat, case.microbatches) for case in chosen]
        best = max(options, key=lambda c: (len(c.pairs - covered), -used.count((c.remat, c.microbatches))))
        chosen.append(best)
        covered.update(best.pairs)

    everything = [case for options in options_by_mesh for case in options]
    wanted = set().union(*(case.pairs for case in everything)) if everything else set()
    if not every_mesh:  # that an axis is used alone, or with which two others, is no pair
        wanted = {pair for pair in wanted if len(pair) == 2}
        covered = set().union(*(case.pairs for case in everything)) - wanted if everything else set()
    for options in options_by_mesh if every_mesh else []:
        take(options)
    while wanted - covered:
        take(everything)
    return chosen


def case_config(mini, case: Case):
    """The miniature on the mesh of a case. Raises UserError if the config's own checks refuse it."""
    return mini.replace(mesh=dict(case.mesh), train={"microbatches": case.microbatches}, model={"remat": case.remat})


def refusal(mini, case: Case) -> str | None:
    """Why the config cannot run on the mesh of a case, or None."""
    try:
        config = case_config(mini, case)
        mesh = meshes.make_mesh(config, jax.devices()[: miniature.DEVICES])
        attention.choose_kernel(config, "cpu", mesh.shape["sequence"])
    except UserError as error:
        return str(error)
    return None


# One run


@functools.cache
def quick_compilation() -> dict:
    """Options that halve XLA:CPU's compile time; the program and its partitioning stay as they are.

    Those that this JAX does not know are left out.
    """
    wanted = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    return {name: value for name, value in wanted.items() if _knows(name, value)}


def _knows(option: str, value) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def initial_state(mini) -> step.TrainState:
    """In NumPy. Activations and logits of size 1 to 2, so that a wrong mask or a lost bias shows."""
    _, shapes, _ = architectures.abstract(mini.model)
    rng = np.random.default_rng(0)

    def value(path, leaf):
        center, spread = {"gain": (1.0, 0.2), "bias": (0.0, 0.2)}.get(
            path[-1].key, (0.0, 1.5 * mini.model.d_model**-0.5)
        )
        return np.float32(center + spread * rng.standard_normal(leaf.shape))

    params = jax.tree_util.tree_map_with_path(value, shapes)
    opt_state = jax.device_get(step.optimizer_of(mini).init(trainable.split(params, mini)[0]))
    return step.TrainState(np.int32(0), params, opt_state, None if mini.optim.ema_decay is None else params)


def batches(mini) -> dict[str, np.ndarray]:
    """Of every step: tokens that repeat, weights from 0 to 1 that differ between rows, documents if they are kept
    apart, and what the objective lets be seen ahead or predicted in place."""
    shape = (mini.train.steps, mini.train.batch_size, mini.model.context_length)
    rng = np.random.default_rng(1)
    token_SBT = rng.integers(0, 5, (*shape[:2], shape[2] + 1)).cumsum(-1) % mini.model.vocab_size
    weight_SBL = rng.random(shape) * (rng.random((*shape[:2], 1)) > 0.2)
    batch = {"token_BT": token_SBT.astype(np.int32), "weight_BL": weight_SBL.astype(np.float32)}
    if mini.data.documents_apart:
        starts_SBT = rng.random(token_SBT.shape) < 4 / shape[2]
        index_SBT = np.broadcast_to(np.arange(shape[2] + 1), token_SBT.shape)
        begin_SBT = np.maximum.accumulate(np.where(starts_SBT, index_SBT, 0), axis=-1)
        batch["segment_BT"] = starts_SBT.cumsum(-1).astype(np.int32)
        batch["position_BL"] = (index_SBT - begin_SBT)[..., :-1].astype(np.int32)
    if mini.data.sees_ahead:
        batch["prefix_BL"] = rng.random(shape) < 0.5
    if mini.data.predicts_in_place:
        batch["target_BL"] = (token_SBT[..., :-1] + 1).astype(np.int32) % mini.model.vocab_size
    return batch


def trajectory(state, batch, learning_rate_S, along_S, nudge, **program):
    """(losses [S], gradients [S], last state): the train step's own parts.

    along_S: the gradients that updates are made along; None: the run's own. nudge: None, or added to each entry of those
    in units of its parameter's root mean square.
    """

    def one(state, inputs):
        part, rate, along = inputs
        grads, metrics = step.mean_gradient(state, part, **program)
        spec, _ = trainable.split(program["param_spec"], program["config"])
        along = grads if along is None else step.place(along, spec)
        along = along if nudge is None else _nudged(along, nudge)
        state, _ = step.update(state, along, rate, config=program["config"])
        return state, (metrics["loss"], grads)

    state, (loss_S, grads_S) = jax.lax.scan(one, state, (batch, learning_rate_S, along_S))
    return loss_S, grads_S, state


def _nudged(grads, nudge):
    least = FLOOR * root_mean_square(jax.tree.leaves(grads))
    return jax.tree.map(lambda g: g + nudge * jnp.maximum(root_mean_square([g]), least), grads)


def root_mean_square(arrays):
    return (sum((a**2).sum() for a in arrays) / sum(a.size for a in arrays)) ** 0.5


@dataclasses.dataclass(frozen=True)
class Runner:
    """Runs cases of one miniature from one state on the same batches."""

    mini: object
    state: step.TrainState
    batch: dict
    learning_rate_S: np.ndarray

    @classmethod
    def of(cls, mini) -> "Runner":
        rates = [schedule.learning_rate(mini, s) for s in range(mini.train.steps)]
        return cls(mini, initial_state(mini), batches(mini), np.float32(rates))

    def compile(self, config, devices):
        """A function of along_S and nudge (see `trajectory`) that gives the Trajectory of a config on devices."""
        program = programs.of(config, devices)
        places = program.state_sharding
        param_spec = jax.tree.map(lambda place: place.spec, places.params)
        run = jax.jit(
            functools.partial(trajectory, graph=program.graph, config=config, param_spec=param_spec),
            in_shardings=(places, program.train_batch_sharding, None, None, None),
            out_shardings=(None, None, places),
            compiler_options=quick_compilation(),
        )
        arguments = (self.state, self.batch, self.learning_rate_S)

        def call(along_S, nudge=None):
            with numerics.on_mesh(program.mesh):
                placed = jax.device_put(arguments[:2], (places, program.train_batch_sharding))
                loss_S, grads_S, state = jax.device_get(run(*placed, arguments[2], along_S, nudge))
            averages = {} if state.ema is None else {"average": state.ema}
            return Trajectory(loss_S, grads_S, {**state.params, **averages})

        return call

    def reference(self) -> tuple[Trajectory, dict]:
        """On one device, and the slack of each parameter entry."""
        run = self.compile(case_config(self.mini, Case((), 1, "none")), jax.devices()[:1])
        plain = run(None)
        up, down = (run(plain.gradient_S, np.float32(nudge)) for nudge in (TOLERANCE, -TOLERANCE))
        slack = jax.tree.map(
            lambda p, a, b: np.maximum(abs(a - p), abs(b - p)), plain.parameters, up.parameters, down.parameters
        )
        return plain, slack

    def run(self, case: Case, reference: Trajectory, slack: dict) -> Outcome:
        started = time.monotonic()
        run = self.compile(case_config(self.mini, case), jax.devices()[: miniature.DEVICES])
        ours = run(reference.gradient_S)
        return Outcome(case, worst=compare(ours, reference, slack), seconds=time.monotonic() - started)


# Comparing


def compare(ours: Trajectory, reference: Trajectory, slack: dict) -> dict[str, tuple[float, str]]:
    """The worst relative difference of each kind and where it is; see the head of this file."""
    gradient_1, gradient = (jax.tree.map(lambda g: g[0], run.gradient_S) for run in (reference, ours))
    floor = FLOOR * root_mean_square([np.float64(g) for g in jax.tree.leaves(gradient_1)])
    loss_S = abs(np.float64(ours.loss_S) - reference.loss_S) / abs(reference.loss_S)

    def of_gradient(g, g1):
        return np.linalg.norm(g - g1) / max(np.linalg.norm(g1), floor * g1.size**0.5)

    def of_parameter(p, p1, slack):
        return np.linalg.norm(np.maximum(abs(p - p1) - slack, 0)) / np.linalg.norm(p1)

    worst_step = _first_worst(loss_S)
    return {
        "loss": (float(loss_S[worst_step]), f"step {worst_step + 1}"),
        "gradient": _worst(of_gradient, gradient, gradient_1),
        "parameter": _worst(of_parameter, ours.parameters, reference.parameters, slack),
    }


def _worst(difference, tree, *others) -> tuple[float, str]:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    leaves = zip(*(map(np.float64, jax.tree.leaves(t)) for t in (tree, *others)), strict=True)
    values = np.array([difference(*(a.ravel() for a in parts)) for parts in leaves])
    at = _first_worst(values)
    return float(values[at]), jax.tree_util.keystr(paths[at], simple=True, separator="/")


def _first_worst(values: np.ndarray) -> int:
    return int(np.argmax(np.where(np.isnan(values), np.inf, values)))


# The certificate


HEADER = f"{'mesh':<36} {'microbatches':>12} {'remat':<8} {'loss':>8} {'gradient':>9} {'parameter':>9}  worst at"


def line(outcome: Outcome) -> str:
    """A row of the table under HEADER."""
    case = outcome.case
    if outcome.refused:
        return f"{case.mesh_name:<36} refused: {outcome.refused}"
    numbers = " ".join(f"{outcome.worst[kind][0]:>{8 + (kind != 'loss')}.1e}" for kind in KINDS)
    where = ", ".join(dict.fromkeys(outcome.worst[kind][1] for kind in KINDS[1:]))
    verdict = f"  DIFFERS: {', '.join(outcome.differs)}" if outcome.differs else ""
    return f"{case.mesh_name:<36} {case.microbatches:>12} {case.remat:<8} {numbers}  {where}{verdict}"


def verdict(outcomes: list[Outcome]) -> str:
    """The last line: what was compared and what the worst is."""
    runs = [outcome for outcome in outcomes if not outcome.refused]
    refused = f", {len(outcomes) - len(runs)} meshes refused by the config" if len(runs) < len(outcomes) else ""
    if not runs:
        return f"no mesh of {miniature.DEVICES} devices is accepted by the config"
    count = f"{len(runs)} runs on {len({run.case.mesh for run in runs})} meshes{refused}"
    worst = {kind: max((run.worst[kind], run.case.mesh_name) for run in runs) for kind in KINDS}
    shown = "; ".join(f"{kind} {value:.1e} ({where}, {mesh})" for kind, ((value, where), mesh) in worst.items())
    failed = [run for run in runs if run.differs]
    same = (
        f"equal to one device within {TOLERANCE:g}"
        if not failed
        else f"{len(failed)} DIFFER by more than {TOLERANCE:g}"
    )
    return f"{count}: {same}; worst relative difference: {shown}"


def summary(config, steps: int, outcomes: list[Outcome]) -> dict:
    """The certificate as plain numbers."""
    return {
        "devices": miniature.DEVICES,
        "steps": steps,
        "tolerance": TOLERANCE,
        "passed": passed(outcomes),
        "left_out": miniature.differences(config),
        "miniature": miniature.shrink(config, steps).to_dict(),
        "runs": [outcome.as_dict() for outcome in outcomes],
    }


def passed(outcomes: list[Outcome]) -> bool:
    return any(not outcome.refused for outcome in outcomes) and not any(outcome.differs for outcome in outcomes)


@numerics.settings()
def certify(config, steps: int, every_mesh: bool = True, report=lambda outcome, done, total: None) -> list[Outcome]:
    """The outcomes of a config's cases. report is told of each as it comes, and of None before the first.

    Raises UserError if there are too few devices or the config itself cannot run.
    """
    if jax.device_count() < miniature.DEVICES:
        raise UserError(
            f"parity needs {miniature.DEVICES} CPU devices, but JAX started with {jax.device_count()}; unset XLA_FLAGS."
        )
    mini = miniature.shrink(config, steps)
    runs, outcomes = cases(mini, every_mesh)
    total = len(runs) + len(outcomes)
    report(None, 0, total)
    for done, outcome in enumerate(outcomes):
        report(outcome, done + 1, total)
    runner = Runner.of(mini)
    reference, slack = runner.reference()
    for case in runs:
        outcomes.append(runner.run(case, reference, slack))
        report(outcomes[-1], len(outcomes), total)
    return outcomes
