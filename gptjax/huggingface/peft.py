"""Adapters as folders of PEFT (adapter_config.json, adapter_model.safetensors), read and written, for GPT-2 and Llama.

PEFT has an adapter for each linear map of transformers' model. Where that model has one map for several matrices, as GPT-2
for queries, keys and values, an adapter of ours by piece is written as one of as many ranks more, which computes the same.
PEFT keeps matrices [out, in] or [rank, in] whatever the map; `lora_magnitude_vector` is the whole length of an output, of
which ours is the change.

Axes: r rank; of a piece of a linear map, [*inputs] and [*outputs] as in models/adapters/targets.py.
"""

import dataclasses
import json

import jax
import numpy as np
from etils import epath

from gptjax.checkpoints import base as bases
from gptjax.config import catalogue
from gptjax.data.chat import kinds
from gptjax.errors import UserError, first_line
from gptjax.huggingface import families, peft_adalora, peft_prefix, peft_ranks
from gptjax.models.adapters import merging, targets
from gptjax.models.adapters.adalora import AdaLora
from gptjax.models.adapters.adapter import fan
from gptjax.models.adapters.ia3 import IA3, scales_inputs
from gptjax.models.adapters.lora import Dora, Lora, RankStabilized
from gptjax.models.adapters.prefix import Prefix
from gptjax.rundir import model_directory, run_directory
from gptjax.storage import folder_kinds, outputs

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True)
class Module:
    """One of transformers' linear maps. name: with {} for the layer; pieces: those of ours that it holds; home: the name of
    ours in `targets.maps`."""

    name: str
    home: str
    of: targets.Map
    pieces: tuple[str, ...]
    layout: object  # of a map that holds several pieces: base.Layout of its weight

    def full_name(self, layer: int) -> str:
        return PREFIX + self.name.format(layer)

    @property
    def short_name(self) -> str:
        """As target_modules has it."""
        return self.name.rpartition("{}.")[2]

    @property
    def fan_out(self) -> int:
        return fan(self.of.outputs if len(self.pieces) > 1 else self.of.outputs_of(self.pieces[0]))

    def outputs_in(self, array):
        """Theirs [out, ...] as ours [..., *outputs]."""
        array = array.T
        if self.layout is not None:
            return self.layout[0](array)
        return array.reshape(*array.shape[:-1], *self.of.outputs_of(self.pieces[0]))

    def outputs_out(self, array):
        """The inverse of outputs_in."""
        if self.layout is not None:
            return self.layout[1](array).T
        return array.reshape(*array.shape[: array.ndim - len(self.of.outputs)], -1).T


def modules(model) -> list[Module]:
    """Of transformers' model of a ModelConfig without adapter. Raises UserError: it has none."""
    family = families.family_for(model)
    weights = {tensor.ours: tensor for tensor in family.tensors(model)}
    listed = []
    for home, of in targets.maps(model).items():
        tensor = weights[f"blocks.{'.'.join(of.path)}.weight"]
        names = [family.full_name(name).removesuffix(".weight") for name in tensor.theirs]
        every = tuple(piece for piece, _ in of.pieces)
        if len(names) > 1:
            listed += [Module(name, home, of, (piece,), None) for name, piece in zip(names, every, strict=True)]
        elif len(every) > 1:
            layout = (
                lambda array, t=tensor: t.layout.join([array], model),
                lambda array, t=tensor: t.layout.part(array, model)[0],
            )
            listed.append(Module(names[0], home, of, every, layout))
        else:
            listed.append(Module(names[0], home, of, every, None))
    return listed


# ---- out


def export_adapter(run, out: str) -> dict:
    """Writes the adapter of a Run into the folder out, and says what it is. Raises UserError: it has none that PEFT has, or
    its model is none of transformers', or the folder holds something."""
    config = run.config.model
    if config.adapter is None:
        raise UserError("this model has no adapter (model.adapter=None); --to=hf writes the model itself.")
    kind, plain = catalogue.adapter(config.adapter), merging.without_adapter(config)
    folder = epath.Path(out).expanduser()
    if (folder_kind := folder_kinds.kind_of(folder)) not in (folder_kinds.MISSING, folder_kinds.EMPTY):
        not_empty = "no folder" if folder_kind == folder_kinds.FILE else "not empty"
        raise UserError(f"--out={out} is {not_empty}: it is {folder_kinds.said(folder)}; give a new directory.")
    outputs.check_folder("--out", out)
    params = jax.tree.map(np.asarray, run.params)
    values, tensors = config_out(kind, plain), tensors_out(kind, plain, params)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(kind, AdaLora):
        values["total_step"] = peft_adalora.total_step(kind, run.config)
    values["base_model_name_or_path"] = _base_folder(run)
    (folder / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
    (folder / WEIGHTS).write_bytes(save(contiguous, metadata={"format": "pt"}))
    return {"peft_type": values["peft_type"], "tensors": len(tensors), "dtype": "float32"}


def _base_folder(run) -> str | None:
    """Where transformers' files of the base came from, if it was imported."""
    started = run.directory.manifest().get("started_from") or {}
    base = run_directory.open_run(started.get("run", run.directory.path))
    imported = base.manifest().get("imported") if base.exists() else None
    return None if imported is None else imported.get("folder")


def config_out(kind, model) -> dict:
    """adapter_config.json of an adapter. Raises UserError: PEFT has no such kind."""
    values = {"task_type": "CAUSAL_LM", "inference_mode": True, "modules_to_save": None, "revision": None}
    if isinstance(kind, Prefix):
        families.family_for(model)
        return values | peft_prefix.config_out(kind, model)
    if not isinstance(kind, IA3 | Lora):
        raise UserError("PEFT has no such adapter as this model's; it has all of ours but bottleneck.")
    adapted = _adapted(kind, model)
    values["target_modules"] = [module.short_name for module, _ in adapted]
    values["fan_in_fan_out"] = any(module.layout is not None for module in modules(model))  # GPT-2's Conv1D
    if isinstance(kind, AdaLora):
        return values | peft_adalora.config_out(kind, adapted)
    if isinstance(kind, IA3):
        inputs = [module.short_name for module, _ in adapted if scales_inputs(module.of)]
        return values | {"peft_type": "IA3", "feedforward_modules": inputs}
    ranks = {module.short_name: kind.rank * len(pieces) for module, pieces in adapted}
    rank = min(ranks.values())
    per_rank = lambda r: kind.scale * (r**0.5 if isinstance(kind, RankStabilized) else r)  # noqa: E731
    more = {name: r for name, r in ranks.items() if r != rank}
    return values | {
        "peft_type": "LORA", "r": rank, "lora_alpha": per_rank(rank), "lora_dropout": kind.dropout, "bias": "none",
        "rank_pattern": more, "alpha_pattern": {name: per_rank(r) for name, r in more.items()},
        "use_dora": isinstance(kind, Dora), "use_rslora": isinstance(kind, RankStabilized), "init_lora_weights": True,
    }  # fmt: skip


def _adapted(kind, model) -> list[tuple[Module, tuple[str, ...]]]:
    """[(module, our pieces that are adapted in it)]."""
    chosen = {of.path: pieces for of, pieces in targets.chosen(kind.on, model)}
    adapted = []
    for module in modules(model):
        pieces = chosen.get(module.of.path, ())
        if targets.WHOLE in pieces:
            adapted.append((module, (targets.WHOLE,)))
        elif held := tuple(piece for piece in pieces if piece in module.pieces):
            adapted.append((module, held))
    return adapted


def tensors_out(kind, model, params: dict) -> dict[str, np.ndarray]:
    """{name: array} of adapter_model.safetensors. params: the model's, or gradients of them."""
    if isinstance(kind, Prefix):
        return peft_prefix.tensors_out(kind, model, params["adapter"])
    tensors = {}
    for module, pieces in _adapted(kind, model):
        linear = params["blocks"]
        for name in module.of.path:
            linear = linear[name]
        for layer in range(model.n_layers):
            of_layer = jax.tree.map(lambda leaf: leaf[layer], linear)  # noqa: B023
            write = _scales_out if isinstance(kind, IA3) else _updates_out
            for name, array in write(module, pieces, of_layer).items():
                tensors[f"{module.full_name(layer)}.{name}"] = array
    return tensors


def _updates_out(module: Module, pieces, linear: dict) -> dict[str, np.ndarray]:
    """Of a LoRA on one of their modules. linear: parameters of one of our linear maps."""
    adapter, n_inputs = linear["adapter"], len(module.of.inputs)
    A = [adapter[piece]["A"].reshape(-1, adapter[piece]["A"].shape[-1]) for piece in pieces]
    B = [_outputs(module, piece, adapter[piece]["B"]) for piece in pieces]
    tensors = {"lora_A.weight": np.concatenate(A, 1).T, "lora_B.weight": np.concatenate(B, 1)}
    if "magnitude" in adapter[pieces[0]]:
        length = np.sqrt(np.square(linear["weight"].astype(np.float32)).sum(tuple(range(n_inputs))))
        whole = _outputs(module, targets.WHOLE, length)
        tensors["lora_magnitude_vector"] = whole + sum(
            _outputs(module, piece, adapter[piece]["magnitude"]) for piece in pieces
        )
    if "E" in adapter[pieces[0]]:
        (piece,) = pieces
        return peft_adalora.renamed(tensors) | {"lora_E": adapter[piece]["E"][:, None]}
    return tensors


def _outputs(module: Module, piece: str, array):
    """Ours [..., *outputs of a piece], or of the whole map, as theirs [out, ...]; 0 where theirs has more."""
    whole = array if piece == targets.WHOLE else _among(module.of, piece, array)
    if module.layout is None and len(module.of.pieces) > 1:
        whole = _taken(module.of, module.pieces[0], whole)
    return module.outputs_out(whole)


def _span(of: targets.Map, piece: str) -> tuple[int, int]:
    start = 0
    for name, size in of.pieces:
        if name == piece:
            return start, start + size
        start += size
    raise KeyError(piece)


def _among(of: targets.Map, piece: str, array):
    """[..., *outputs of a piece] in zeros [..., *outputs]."""
    if len(of.pieces) == 1:
        return array
    leading = array.shape[: array.ndim - len(of.outputs)]
    whole = np.zeros((*leading, *of.outputs), array.dtype)
    index = [slice(None)] * whole.ndim
    index[len(leading) + of.dim] = slice(*_span(of, piece))
    whole[tuple(index)] = array
    return whole


def _taken(of: targets.Map, piece: str, whole):
    """[..., *outputs of a piece] of [..., *outputs]."""
    return whole.take(range(*_span(of, piece)), axis=whole.ndim - len(of.outputs) + of.dim)


def _scales_out(module: Module, pieces, linear: dict) -> dict[str, np.ndarray]:
    adapter = linear["adapter"]
    if scales_inputs(module.of):
        return {"ia3_l": adapter[targets.WHOLE]["scale"].reshape(1, -1)}
    if pieces == (targets.WHOLE,):
        return {"ia3_l": _outputs(module, targets.WHOLE, adapter[targets.WHOLE]["scale"])[:, None]}
    stay = _outputs(module, targets.WHOLE, np.ones(module.of.outputs, np.float32))
    changes = [_outputs(module, piece, adapter[piece]["scale"] - 1) for piece in pieces]
    return {"ia3_l": (stay + sum(changes))[:, None]}


# ---- in


def import_adapter(folder: str, base_run: str, workdir: str) -> dict:
    """Writes a run directory at workdir of a folder of PEFT's on the model of another run, and says what it is. The frozen
    parameters stay in that run. Raises UserError: another kind of adapter, files that are missing or damaged, or of another
    model, or a workdir that holds something."""
    source, directory = epath.Path(folder).expanduser(), run_directory.open_run(workdir)
    if directory.path.exists() and folder_kinds.kind_of(directory.path) != folder_kinds.EMPTY:
        raise UserError(
            f"--workdir={workdir} is not empty: it is {folder_kinds.said(directory.path)}; give a new directory."
        )
    outputs.check_folder("--workdir", workdir)
    from gptjax.run import run as runs

    loaded = runs.read(base_run)
    model = loaded.config.model
    if model.adapter is not None:
        raise UserError(f"--base={base_run} has an adapter already; give the run of the model itself.")
    base = bases.named(loaded.directory.path, loaded.step)
    if base is None:
        raise UserError(
            f"--base={base_run} has a checkpoint of schema 1; go on with that run first, to write a newer one."
        )
    values, tensors = _read_folder(source)
    text = config_in(values, tensors, model, source)
    if values["peft_type"] == "ADALORA":
        tensors = peft_adalora.with_lost_ranks(values, tensors, source)
    config = loaded.config.replace(
        model={"adapter": text},
        train={"start_from": str(loaded.directory.path), "start_step": str(loaded.step), "trainable": None},
    )
    if values["peft_type"] in peft_prefix.KINDS:
        params = {"adapter": peft_prefix.params_in(catalogue.adapter(text), tensors, model, source)}
    else:
        params = {"blocks": params_in(tensors, config.model, loaded.params["blocks"], source)}
    origin = {"from": "peft", "folder": str(source), "dtype": "float32"}
    model_directory.write(directory, config, params, loaded.tokenizer, {"imported": origin}, base=base.to_dict())
    if (template := kinds.of_folder(loaded.directory.tokenizer)) is not None:
        kinds.keep(template, directory.tokenizer)
    return {"adapter": text, "base": str(base), "tensors": len(tensors)}


def _read_folder(source) -> tuple[dict, dict[str, np.ndarray]]:
    """(adapter_config.json, tensors). Raises UserError."""
    for name in (CONFIG, WEIGHTS):
        if not (source / name).exists():
            raise UserError(f"{source} has no {name}; expected a folder that save_pretrained of PEFT wrote.")
    try:
        values = dict(json.loads((source / CONFIG).read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{source / CONFIG} is not JSON: {error}; copy the file again.") from error
    from safetensors.numpy import load

    try:
        tensors = load((source / WEIGHTS).read_bytes())
    except Exception as error:  # safetensors raises its own
        raise UserError(f"{source / WEIGHTS} cannot be read: {first_line(error)}; copy the file again.") from error
    return values, {name: array.astype(np.float32) for name, array in tensors.items()}


REFUSED = ("modules_to_save", "layers_to_transform", "layer_replication", "trainable_token_indices", "target_parameters",
           "use_qalora", "use_bdlora", "alora_invocation_tokens", "lora_bias", "arrow_config", "kasa_config", "velora_config")  # fmt: skip


def config_in(values: dict, tensors: dict, model, where) -> str:
    """model.adapter of an adapter_config.json and its tensors. Raises UserError: ours has no equal for it."""
    kind = values.get("peft_type")
    if kind not in ("LORA", "ADALORA", "IA3", *peft_prefix.KINDS):
        importable = ", ".join(("LORA (with use_rslora, use_dora)", "ADALORA", "IA3", *peft_prefix.KINDS))
        raise UserError(f"{where / CONFIG} has peft_type={kind!r}; gptjax imports {importable}.")
    unlike = [f"{name}={values[name]!r}" for name in REFUSED if values.get(name)]
    if values.get("bias", "none") != "none":
        unlike.append(f"bias={values['bias']!r}")
    if unlike:
        raise UserError(f"{where / CONFIG} has {', '.join(unlike)}, for which gptjax has no equal.")
    if kind in peft_prefix.KINDS:
        return peft_prefix.config_in(values, where / CONFIG)
    rank, alpha, parted = 0, 0.0, {}
    if kind == "LORA":
        rank, alpha, parted = peft_ranks.common(values, modules(model), tensors, model, where / CONFIG)
    names = _names_in(tensors, model, where, parted)
    if kind == "ADALORA":
        return peft_adalora.config_in(values, names)
    if kind == "IA3":
        return f"ia3(on={names!r})"
    dora, stabilised = bool(values.get("use_dora")), bool(values.get("use_rslora"))
    alpha = alpha * rank**0.5 if dora and stabilised else alpha
    name = "dora" if dora else "rslora" if stabilised else "lora"
    return (
        f"{name}(rank={rank}, alpha={float(alpha)!r}, on={names!r}, dropout={float(values.get('lora_dropout', 0.0))!r})"
    )


def _names_in(tensors: dict, model, where, parted: dict) -> str:
    """`on` of the modules that tensors are of. parted: of `peft_ranks.common`. Raises UserError: they are of none of this model's."""
    names = []
    for module in modules(model):
        if module.name in parted:
            names += parted[module.name]
        elif any(name.startswith(f"{module.full_name(0)}.") for name in tensors):
            names.append(module.home if module.layout is not None or len(module.of.pieces) == 1 else module.pieces[0])
    if not names:
        raise UserError(
            f"{where} has {min(tensors, default='no tensors')}, which is no part of this model, whose linear maps are"
            f" {', '.join(module.name for module in modules(model))}."
        )
    return ",".join(names)


def params_in(tensors: dict, model, blocks: dict, where) -> dict:
    """The adapter's parameters, stacked, in the tree of the blocks. blocks: the base's. Raises UserError: tensors that are
    missing, of other shapes, or of no use here."""
    kind, left = catalogue.adapter(model.adapter), dict(tensors)
    adapter: dict = {}
    for module, pieces in _adapted(kind, merging.without_adapter(model)):
        node, weight = adapter, blocks
        for name in module.of.path:
            node, weight = node.setdefault(name, {}), weight[name]
        node = node.setdefault("adapter", {})
        layers = [
            _pieces_in(module, pieces, left, layer, np.asarray(weight["weight"][layer]), where)
            for layer in range(model.n_layers)
        ]
        node |= jax.tree.map(lambda *each: np.stack(each), *layers)
    if left:
        raise UserError(f"{where} has {min(left)}, which is no part of this model's {module.name}.")
    return adapter


def _pieces_in(module: Module, pieces, left: dict, layer: int, weight, where) -> dict:
    """{piece: its parameters} of one layer, whose tensors are taken out of left."""
    whole = _piece_in(module, left, layer, weight, where)
    return {pieces[0]: whole} if len(pieces) == 1 else peft_ranks.part(whole, pieces, module.of, _taken)


def _piece_in(module: Module, left: dict, layer: int, weight, where) -> dict:
    """A piece of one layer, whose tensors are taken out of left."""

    rank = left.get(f"{module.full_name(layer)}.lora_A.weight", np.zeros((0,))).shape[0]

    def take(name: str, *shape: int):
        full = f"{module.full_name(layer)}.{name}"
        if full not in left:
            raise UserError(f"{where} has no {full}.")
        if left[full].shape != shape:
            raise UserError(f"{where}: {full} is {list(left[full].shape)}, and in this model {list(shape)}.")
        return left.pop(full)

    fan_in, fan_out = fan(module.of.inputs), module.fan_out

    if f"{module.full_name(layer)}.ia3_l" in left:
        scale = take("ia3_l", 1, fan_in) if scales_inputs(module.of) else take("ia3_l", fan_out, 1)
        return {
            "scale": scale.reshape(module.of.inputs) if scales_inputs(module.of) else module.outputs_in(scale[:, 0])
        }
    if f"{module.full_name(layer)}.lora_E" in left:
        rank = left[f"{module.full_name(layer)}.lora_E"].shape[0]
        A, B, E = take("lora_A", rank, fan_in), take("lora_B", fan_out, rank), take("lora_E", rank, 1)
        return {"A": A.T.reshape(*module.of.inputs, -1), "B": module.outputs_in(B), "E": E[:, 0]}
    A, B = take("lora_A.weight", rank, fan_in), take("lora_B.weight", fan_out, rank)
    made = {"A": A.T.reshape(*module.of.inputs, -1), "B": module.outputs_in(B)}
    if f"{module.full_name(layer)}.lora_magnitude_vector" in left:
        length = np.sqrt(np.square(weight.astype(np.float32)).sum(tuple(range(len(module.of.inputs)))))
        if module.layout is None and len(module.of.pieces) > 1:
            length = _taken(module.of, module.pieces[0], length)
        made["magnitude"] = module.outputs_in(take("lora_magnitude_vector", fan_out)) - length
    return made
