"""A compiled train step in a file, so that a run starts without compiling: `plan --save_executable`, `train --executable`.

The file is a line of JSON that says what it was compiled for, then JAX's serialised executable. Loading checks the
line against the run: another config, JAX, mesh or device is refused before a byte of the executable is read. It is
read with pickle, as JAX writes it: take such files from yourself only.
"""

import hashlib
import json
import pickle

import jax
import jaxlib
from etils import epath

from gptjax.config import changes
from gptjax.errors import UserError, shorten
from gptjax.parallel import meshes, tpu
from gptjax.storage import writing
from gptjax.training import program

SCHEMA = "gptjax-executable-2"  # 1: its pickle named a TrainState of another module
SECTIONS = ("model", "optim", "train")  # of the config; what the program is made of, beside the mesh
OF_DATA = ("documents_apart", "sees_ahead", "predicts_in_place")  # which arrays a batch has
OF_MESH = ("pipeline_microbatches", "pipeline_repeats", "offload_optimizer")  # what the mesh itself does not show
SHAPES = ("train.batch_size",)  # rates and lengths are given to a step; of batches it takes this one shape


def config_hash(config) -> str:
    """Of all that the compiled step depends on: where the data lies or how often it is saved changes nothing."""
    values = config.to_dict()
    kept = {section: values[section] for section in SECTIONS}
    kept |= {name: getattr(config.data, name) for name in OF_DATA}
    kept["mesh"] = {name: values["mesh"][name] for name in OF_MESH}
    for section in SECTIONS:
        kept[section] = {name: v for name, v in kept[section].items() if _is_seen(f"{section}.{name}")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _is_seen(key: str) -> bool:
    return changes.word(key).program or key in SHAPES


def header(config, mesh, kernel: str) -> dict:
    """What an executable was compiled for."""
    n_slices = meshes.count_slices(list(mesh.devices.flat))
    return {
        "schema": SCHEMA,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "config": config_hash(config),
        "mesh": {axis: int(size) for axis, size in mesh.shape.items()},
        "slices": meshes.dcn_sizes(config.mesh, n_slices),
        "device": mesh.devices.flat[0].device_kind,
        "kernel": kernel,
        "compiler_options": program.train_compiler_options(mesh),
        "rings": tpu.rings_of(list(mesh.devices.flat)),
    }


def check_target(path: str) -> None:
    """Raises UserError if no file can be written at this path, local or gs://: before an hour of compiling, not after."""
    try:
        target = epath.Path(path)
        if target.is_dir():
            raise UserError(
                f"--save_executable={path} is a folder; give a file name, as in {path.rstrip('/') or '.'}/step.exe."
            )
        probe = writing.partial(target)
        probe.write_bytes(b"")
        probe.unlink()
    except UserError:
        raise
    except Exception as error:  # of the file system, or of whatever library reads a bucket
        raise _unusable("--save_executable", path, error) from error


def _unusable(flag: str, path: str, error: Exception) -> UserError:
    mend = "pip install 'etils[epath-gcs]'" if isinstance(error, ImportError) else "give a file in a folder that exists"
    reason = getattr(error, "strerror", None) or shorten(str(error))
    doing = "read" if flag == "--executable" else "written"
    return UserError(f"{flag}={path} cannot be {doing} here ({type(error).__name__}: {reason}); {mend}.")


def save(path: str, compiled, config, mesh, kernel: str) -> int:
    """Writes a compiled train step. Returns the file's bytes. Raises UserError where a platform cannot serialise."""
    from jax.experimental import serialize_executable

    try:
        payload, in_tree, out_tree = serialize_executable.serialize(compiled)
    except Exception as error:  # the backend's own
        raise UserError(
            f"--save_executable: {mesh.devices.flat[0].platform} executables cannot be serialised here: {shorten(str(error))}"
        ) from error
    line = json.dumps(header(config, mesh, kernel)).encode() + b"\n"
    body = pickle.dumps((payload, in_tree, out_tree))
    try:
        writing.replace_whole(epath.Path(path), line + body)
    except Exception as error:
        raise _unusable("--save_executable", path, error) from error
    return len(line) + len(body)


def load(path: str, config, mesh, kernel: str):
    """The compiled train step of a file. Raises UserError that names what does not match."""
    from jax.experimental import serialize_executable

    line, _, body = _read(path).partition(b"\n")
    check(path, _read_header(path, line), header(config, mesh, kernel))
    try:
        payload, in_tree, out_tree = pickle.loads(body)
        return serialize_executable.deserialize_and_load(
            payload, in_tree, out_tree, execution_devices=list(mesh.devices.flat)
        )
    except Exception as error:  # whatever a torn file or another build of XLA brings up
        raise UserError(
            f"--executable={path} could not be loaded ({type(error).__name__}); write it again with gptjax plan."
        ) from error


def _read(path: str) -> bytes:
    try:
        file = epath.Path(path)
        if file.exists() and not file.is_dir():
            return file.read_bytes()
    except Exception as error:
        raise _unusable("--executable", path, error) from error
    raise UserError(f"--executable={path}: no such file; write one with gptjax plan --save_executable={path}.")


def _read_header(path: str, line: bytes) -> dict:
    try:
        found = json.loads(line)
        schema = found.get("schema") if isinstance(found, dict) else None
    except ValueError:
        schema = None
    if schema != SCHEMA:
        older = str(schema).startswith(SCHEMA.rstrip("0123456789"))
        what = f"is a {schema} file, of another version of gptjax than this, which reads" if older else "is no"
        raise UserError(
            f"--executable={path} {what} {SCHEMA} file; write one with gptjax plan --save_executable={path}."
        )
    return found


def check(path: str, found: dict, wanted: dict) -> None:
    """Raises UserError that lists every field in which an executable is not the one this run needs."""
    different = [
        f"{key} is {found.get(key)}, this run's {value}" for key, value in wanted.items() if found.get(key) != value
    ]
    if different:
        raise UserError(
            f"--executable={path} was compiled for another run: {'; '.join(different)};"
            " write it again with gptjax plan --save_executable and the same config."
        )
