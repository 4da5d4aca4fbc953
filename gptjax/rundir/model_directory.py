"""A run directory of a model that no training made here: imported, or merged of an adapter and its base. One step, 0."""

from gptjax.checkpoints import consistency
from gptjax.checkpoints.checkpointer import Checkpointer
from gptjax.rundir import run_directory

STEP = 0


def write(
    directory: run_directory.RunDirectory, config, params: dict, tokenizer, about: dict, beside=None, **data
) -> None:
    """Makes a run directory of a model. about: what its manifest says besides, such as {"imported": {"folder", ...}}; beside:
    {name: text} of files that lie with the tokenizer; data: what its checkpoint says besides."""
    manifest = consistency.begun({}, [], None, config.to_dict(), None, STEP)
    manifest |= run_directory.provenance(config, run_directory.command_line())
    manifest |= about | {"data": None, "tokenizer_hash": tokenizer.hash}
    _save(directory, config, params, consistency.of_checkpoint(manifest), data)
    directory.save_tokenizer(tokenizer)
    for name, text in (beside or {}).items():
        (directory.tokenizer / name).write_text(text)
    directory.write_json("manifest.json", manifest)
    directory.metrics.write_text("")
    directory.write_config(config)  # last: with it the directory is a run


def _save(directory: run_directory.RunDirectory, config, params: dict, run: dict, data: dict) -> None:
    import jax

    directory.path.mkdir(parents=True, exist_ok=True)
    checkpointer = Checkpointer(directory.checkpoints, config, run=run)
    try:
        checkpointer.save({"params": jax.tree.map(jax.numpy.asarray, params)}, STEP, **data)
        checkpointer.wait()
    finally:
        checkpointer.close()
