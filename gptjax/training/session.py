"""What a run is made of before its first step: text, resolved config, mesh, kernel and compiled program."""

import dataclasses
import math
import typing

import jax

from gptjax import hardware, schedule
from gptjax.data.rows import objectives
from gptjax.data.rows.pipeline import EvalRows, TrainRows, open_text
from gptjax.data.tokens.store import TokenStore
from gptjax.evaluation import held_out
from gptjax.optim import optimizers
from gptjax.parallel import compiling, meshes
from gptjax.tasks import task_evaluation
from gptjax.tasks import task_set as tasks
from gptjax.training import executable, report
from gptjax.training import program as programs


@dataclasses.dataclass(frozen=True)
class Session:
    """Everything a run needs that does not change while it goes on."""

    config: typing.Any  # resolved: with vocab_size
    store: TokenStore
    objective: objectives.Objective
    rows: TrainRows
    eval_rows: dict[str, EvalRows]  # of each source
    tasks: tasks.TaskSet | None
    program: programs.Program
    peak_flops: float  # per device and second; NaN but in process 0
    peak_source: str

    @property
    def device_count(self) -> int:
        return self.program.mesh.size


def prepare(config, devices=None, alive=lambda: None) -> Session:
    """Data, mesh, kernel and program of a config. Raises UserError for what does not fit together.

    alive: is called now and then while text is read.
    """
    mesh = meshes.make_mesh(config, devices)  # first, because it is quick to find a wrong one
    schedule.learning_rate(config, 0)
    optimizers.check(config)
    task_set = task_evaluation.open_tasks(config)
    store, objective = open_text(config.data, config.model.context_length, alive)
    config = config.with_vocabulary(store.tokenizer.vocab_size)
    report.check_sample(config, store.tokenizer)
    program = programs.of(config, devices)
    rows = TrainRows(store, config.data, config.model.context_length, objective, alive)
    eval_rows = held_out.held_out_rows(config, store, objective)
    chosen = {"program": program, "tasks": task_set}
    peak, source = _peak(config, mesh)
    session = Session(config, store, objective, rows, eval_rows, **chosen, peak_flops=peak, peak_source=source)
    task_evaluation.check(session)
    return session


def _peak(config, mesh) -> tuple[float, str]:
    """FLOP/s of one device, and where that is from. On CPUs without a data sheet, process 0 measures its own."""
    kind = mesh.devices.flat[0].device_kind
    if peak := hardware.peak_flops(kind):
        return peak, f"published for {kind}"
    here = jax.process_index() == 0
    measured = hardware.measure_matmul_flops(config.model.dtype) if here else math.nan
    return measured / len(mesh.local_devices), "measured here, a plain matmul"


def with_executable(session: Session, path: str) -> Session:
    """session with the compiled train step of a file; a batch ramp's smaller batches are still compiled here."""
    program = session.program
    loaded = executable.load(path, session.config, program.mesh, program.kernel)
    compiling.meet(program.mesh.devices.flat, "loaded --executable")
    full = (session.config.train.steps_per_call, session.config.train.batch_size)

    def train_call(state, batch, learning_rate_S):
        call = loaded if batch["token_BT"].shape[:2] == full else program.train
        return call(state, batch, learning_rate_S)

    return dataclasses.replace(session, program=dataclasses.replace(program, train=train_call))
