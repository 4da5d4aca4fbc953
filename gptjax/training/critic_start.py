"""A separate critic that starts from another run (train.critic_from): a reward model's, as InstructGPT's did (Ouyang et al.
2022, appendix C.4), or a language model's, such as the policy's own.

Their parameters become those of the second model, and the score head the value head; without one the value head starts at 0.
An output matrix of theirs has no place here. Where the critic came from stands in manifest.json, in "started_from".
"""

import dataclasses

from flax.traverse_util import flatten_dict, unflatten_dict

from gptjax.checkpoints import consistency, loading
from gptjax.config import catalogue
from gptjax.errors import UserError
from gptjax.rundir import run_directory
from gptjax.training.branching import config_at, digest
from gptjax.training.origins import listed, origin_of, refused, shapes_of

MODEL, VALUE, SCORE_HEAD = "critic/model/", "critic/value/", "task_head/"  # where parameters are, here and there


def lineage(config, directory, tokenizer, abstract_params: dict) -> dict:
    """{"critic": ...} for "started_from" of the manifest; {}: the critic is initialised. Raises UserError: it cannot start
    there."""
    name = config.train.critic_from
    if name is None:
        return {}
    trunk = None if config.model.critic is None else catalogue.critic(config.model.critic).trunk(config.model)
    if trunk is None:
        raise UserError(
            f"train.critic_from={name!r} is of a critic that is a model of its own, and model.critic={config.model.critic!r};"
            " set model.critic='separate', or leave it out."
        )
    origin = origin_of("train.critic_from", name, None, directory)
    if origin.run.manifest().get("tokenizer_hash") != tokenizer.hash:
        raise refused(str(origin), "its tokenizer is not the policy's", f"train one with {origin.run.tokenizer}")
    taken = _taken(origin, abstract_params, config_at(origin).model, trunk)
    about = {"run": str(origin.run.path), "step": origin.step, "run_id": origin.run.manifest().get("run_id")}
    return {"critic": about | {"checkpoint_sha256": digest(origin), "taken": taken}}


def _taken(origin, abstract_params: dict, theirs, ours) -> dict[str, str]:
    """{our parameter: theirs}. Raises UserError: theirs do not make this critic."""
    shapes = shapes_of(origin)
    taken, wrong = {}, []
    for name, leaf in flatten_dict(abstract_params["critic"], sep="/").items():
        name = f"critic/{name}"
        their_name = name.replace(MODEL, "").replace(VALUE, SCORE_HEAD)
        if their_name not in shapes and name.startswith(VALUE):
            continue
        if shapes.get(their_name) != leaf.shape:
            wrong.append(f"{name} has shape {leaf.shape}, and {their_name} there {shapes.get(their_name, 'is none')}")
        taken[name] = their_name
    if more := shapes.keys() - {*taken.values()} - {"head"}:
        wrong.append(f"there is no place for {listed(sorted(more))}")
    if wrong:
        before, now = (consistency.as_json({"model": dataclasses.asdict(each)}) for each in (theirs, ours))
        differing = (
            f" ({consistency.shown(differences)})" if (differences := consistency.differences(before, now)) else ""
        )
        why = f"it does not make this critic: {listed(wrong)}{differing}"
        raise refused(str(origin), why, "give model.critic='separate(...)' its shape")
    return taken


def with_critic(params: dict, about: dict, config, program) -> dict:
    """Parameters with those that the critic takes. about: of the manifest."""
    ours = [flatten_dict(tree, sep="/") for tree in (program.abstract_params, program.param_sharding)]
    trees = (unflatten_dict({there: tree[name] for name, there in about["taken"].items()}, sep="/") for tree in ours)
    origin = dataclasses.replace(program, **dict(zip(("abstract_params", "param_sharding"), trees)))
    run, dtype = run_directory.open_run(about["run"]), config.optim.param_dtype
    _, theirs = loading.read(run, about["step"], "params", dtype, origin, others=True)
    leaves, theirs = flatten_dict(params, sep="/"), flatten_dict(theirs, sep="/")
    return unflatten_dict(leaves | {name: theirs[there] for name, there in about["taken"].items()}, sep="/")


def said(about: dict) -> str:
    """For people."""
    head = "" if f"{VALUE}weight" in about["taken"] else ", its value head at 0"
    return f"; its critic from step {about['step']} of {about['run']}{head}"
