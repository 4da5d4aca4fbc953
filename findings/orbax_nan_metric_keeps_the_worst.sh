#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: one evaluation whose loss is NaN makes CheckpointManager delete the best checkpoint.
#
# Expected: with max_to_keep=2, best_mode="min" and losses 1.0, NaN, 3.0, 2.5, the steps kept are those of 1.0 and
# 2.5, and best_step() is the first; a loss that is no number ranks last.
# Seen: steps are sorted by a key that NaN cannot be compared with, so the order is whatever the sort leaves. The
# best step is deleted; after 1.0, 2.0, NaN, NaN, NaN only NaN is left, and best_step() names one of those.
# A rule for training: turn a metric that is not finite into an infinite one before it reaches the manager.
#
# Exits 0 while this holds, 1 when Orbax behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2
cat >"$folder/retention.py" <<'PY'
import sys
import tempfile

import numpy as np
import orbax.checkpoint as ocp

NAN, INFINITE = float("nan"), float("inf")


def kept(losses):
    """The steps that are left, and the best of them, after a save of each loss."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, best_fn=lambda metrics: metrics["loss"], best_mode="min", enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(tempfile.mkdtemp(dir=sys.argv[1]), options=options) as manager:
        for step, loss in enumerate(losses):
            manager.save(step, args=ocp.args.StandardSave({"weight": np.full(4, step)}), metrics={"loss": loss})
        return sorted(manager.all_steps()), manager.best_step()


expected = ([0, 3], 0)
print("finite losses 1, 4, 3, 2.5:   ", finite := kept([1.0, 4.0, 3.0, 2.5]))
print("infinite where NaN stood:     ", infinite := kept([1.0, INFINITE, 3.0, 2.5]))
print("losses 1, NaN, 3, 2.5:        ", one_nan := kept([1.0, NAN, 3.0, 2.5]))
print("losses 1, 2, NaN, NaN, NaN:   ", many_nan := kept([1.0, 2.0, NAN, NAN, NAN]))
controls_hold = finite == expected and infinite == expected
best_is_lost = 0 not in one_nan[0] and 0 not in many_nan[0]
sys.exit(0 if controls_hold and best_is_lost else 1)
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/retention.py" "$folder" 2>/dev/null
