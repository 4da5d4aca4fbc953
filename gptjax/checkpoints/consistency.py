"""Whether what a run directory says of itself agrees with where its files lie and what they are.

    manifest.json                   run_id: made when the run first starts, and kept
                                    history: the config and text it was started with, and each later change of them
                                    tokenizer_hash
    config.json                     the config of the last entry of history
    tokenizer/                      the tokenizer of tokenizer_hash
    checkpoints/STEP/manifest.json  step: STEP; config: that of an entry of history;
                                    run: {"id", "tokenizer_hash", "text"}, those of manifest.json

Whoever reads a run compares these here: `rundir` what belongs to the run (config.json, tokenizer), `validity` each
checkpoint. A directory may be copied, renamed or moved as a whole, and its text may lie elsewhere: nothing here is a
path. What an older gptjax wrote is compared as far as it has these words. Needs no JAX.
"""

import json
import secrets
import time

from gptjax.errors import UserError

SHOWN = 3  # differences in a line


def read(run_path) -> dict:
    """manifest.json of a run; {} where there is none, or none that can be read (which `RunDirectory.manifest` says)."""
    try:
        value = json.loads((run_path / "manifest.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def as_json(config: dict) -> dict:
    """A config as it comes back from a JSON file."""
    return json.loads(json.dumps(config))


# ---- what a run writes


def begun(before: dict, saved: list[dict], old_config: dict | None, config: dict, text: str | None, step: int) -> dict:
    """{"run_id", "history"} of the manifest of a run that starts, or goes on from `step`.

    before: its manifest so far ({}: it is new). saved: the configs of its checkpoints, and old_config: its config.json, which
    a run of an older gptjax has no history of. config, text: what it goes on with (text: the fingerprint).
    """
    config = as_json(config)
    history = list(before.get("history") or ())
    if not history and old_config is not None:
        old_text = (before.get("data") or {}).get("fingerprint")
        known = [*(values for values in saved if values != old_config), old_config]
        history = [{"since_step": None, "time": None, "text": old_text, "config": values} for values in known]
    last = history[-1] if history else None
    if last is None or (last["config"], last["text"]) != (config, text):
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        changed = {} if last is None else {"changed": differences(last["config"], config)}
        history.append({"since_step": step, "time": now, "text": text, **changed, "config": config})
    return {"run_id": before.get("run_id") or secrets.token_hex(8), "history": history}


def of_checkpoint(manifest: dict) -> dict | None:
    """{"id", "tokenizer_hash", "text"}: what a checkpoint says of the run whose manifest this is; None: it has no id."""
    if "run_id" not in manifest:
        return None
    text = (manifest.get("data") or {}).get("fingerprint")
    return {"id": manifest["run_id"], "tokenizer_hash": manifest.get("tokenizer_hash"), "text": text}


def differences(old: dict, new: dict) -> dict[str, list]:
    """{"section.field": [old, new]} of two configs; null: the field is not there."""
    found = {}
    for section in {**old, **new}:
        before, after = old.get(section) or {}, new.get(section) or {}
        for field in {**before, **after}:
            if before.get(field) != after.get(field):
                found[f"{section}.{field}"] = [before.get(field), after.get(field)]
    return found


# ---- what is compared


def wrong_checkpoint(step: int, said: dict, run: dict) -> str:
    """Why the checkpoint in the folder of `step` is not that step of this run; "" where it is, as far as can be told.

    said: the checkpoint's manifest (of schema 1, its metadata); run: manifest.json of the run.
    """
    if said.get("step", step) != step:
        return f"its manifest says step {said['step']}, its folder {step}; rename the folder to {said['step']}"
    its_run = said.get("run") or {}
    home = "take it back to its own run (--branch_from begins a new run with the checkpoint of another)"
    if "run_id" in run and its_run.get("id", run["run_id"]) != run["run_id"]:
        return f"its manifest says that run {its_run['id']} saved it, manifest.json is of run {run['run_id']}; {home}"
    history = _history(run)
    if history and "config" in said and not any(said["config"] == entry["config"] for entry in history):
        differing = shown(differences(history[-1]["config"], said["config"]))
        return f"it was saved with another config than manifest.json has of this run: {differing} there; {home}"
    if its_run and its_run["tokenizer_hash"] != run.get("tokenizer_hash", its_run["tokenizer_hash"]):
        return f"it was saved with the tokenizer {its_run['tokenizer_hash'][:12]}, manifest.json names another; {home}"
    if its_run and history and its_run["text"] not in [entry["text"] for entry in history]:
        return f"it was trained on the text {str(its_run['text'])[:12]}, manifest.json knows other text; {home}"
    return ""


def wrong_config(config: dict, run: dict, saved, keeps) -> str:
    """How config.json is not the run's; "" where it is, as far as can be told.

    run: manifest.json. saved(): the config of the newest checkpoint, or None. keeps(key): whether a change of a field
    leaves the model what it is; of a run without history only the model is compared, by its newest checkpoint.
    """
    history = _history(run)
    if not history:
        kept = saved()
        changed = {} if kept is None else differences(kept, config)
        known_then = {f"model.{field}" for field in (kept or {}).get("model", {})}
        model = {key: pair for key, pair in changed.items() if key in known_then and not keeps(key)}
        return f"its newest checkpoint has another model: {shown(model)} in config.json" if model else ""
    *earlier, last = [entry["config"] for entry in history]
    if config == last:
        return ""
    if earlier and config == earlier[-1] and saved() != last:
        return ""  # killed between writing manifest.json and config.json, at a resume that changed the config
    return f"manifest.json says what it was: {shown(differences(last, config))} in config.json"


def wrong_tokenizer(found: str, run: dict) -> str:
    """How the tokenizer of this hash is not the run's."""
    wanted = run.get("tokenizer_hash", found)
    return "" if found == wanted else f"manifest.json names the tokenizer {wanted[:12]}, the folder holds {found[:12]}"


def shown(differing: dict[str, list]) -> str:
    """ "model.norm_eps was 1e-05 and is 0.1" of a few, and how many more there are."""
    parts = [f"{key} was {old!r} and is {new!r}" for key, (old, new) in list(differing.items())[:SHOWN]]
    more = len(differing) - SHOWN
    return ", ".join(parts) + (f" and {more} more" if more > 0 else "")


def _history(run: dict) -> list[dict]:
    """Raises UserError: manifest.json holds something else there."""
    history = run.get("history") or []
    try:
        [(dict(entry["config"]), entry["text"]) for entry in history]
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"manifest.json of the run is damaged: its history is no list of configs ({error!r}); restore it."
        ) from error
    return history
