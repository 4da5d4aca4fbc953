#!/usr/bin/env bash
# Grain 0.2.18: a packed pipeline (ConcatThenSplitIterDataset) that was saved and restored by Grain's own checkpoint
# handler does not go on where it stood. Documents are lost and later rows are shifted, without an error.
#
# Expected: a restored iterator gives the rows that the saved one still had to give.
# Seen: the first-fit packer does so. This one marks "no remainder" by the tuple (-1, -1); the handler writes JSON,
# which gives back the list [-1, -1]; it is no longer taken for the mark, and slices that start at -1 are cut from
# the documents. The same state, handed on without JSON, restores exactly.
#
# Exits 0 while this holds, 1 when Grain behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grain==0.2.18
cat >"$folder/resume.py" <<'PY'
import sys
import tempfile

import grain
import numpy as np
from etils import epath
from grain import experimental

LENGTHS = [3, 5, 2, 7, 4, 6, 8, 1, 8, 5, 5, 3]
DOCUMENTS = [{"tokens": np.full(length, number, np.int32)} for number, length in enumerate(LENGTHS, start=1)]
HANDLER = grain.checkpoint.CheckpointHandler()


def packed(packer, **settings):
    return iter(packer(grain.MapDataset.source(DOCUMENTS).to_iter_dataset(), length_struct={"tokens": 8}, **settings))


def rows(iterator):
    elements = (element[0] if isinstance(element, tuple) else element for element in iterator)
    return [np.asarray(element["tokens"]).tolist() for element in elements]


def through_json(saved, restored):
    folder = epath.Path(tempfile.mkdtemp(dir=sys.argv[1]))
    HANDLER.save(folder, saved)
    HANDLER.restore(folder, restored)


def in_memory(saved, restored):
    restored.set_state(saved.get_state())


def exact_after(make, hand_on):
    """Whether a restored iterator goes on exactly, for every number of rows taken before."""
    expected = rows(make())
    exact = []
    for taken in range(len(expected)):
        saved, restored = make(), make()
        for _ in range(taken):
            next(saved)
        hand_on(saved, restored)
        exact.append(rows(restored) == expected[taken:])
    return exact


concat = lambda: packed(experimental.ConcatThenSplitIterDataset)
first_fit = lambda: packed(experimental.FirstFitPackIterDataset, num_packing_bins=2)
fresh, restored = concat(), concat()
through_json(fresh, restored)
print("rows of the pipeline:          ", rows(concat())[:2])
print("rows after save and restore:   ", rows(restored)[:2])
print("first-fit, through JSON, exact:", first := exact_after(first_fit, through_json))
print("concat, in memory, exact:      ", memory := exact_after(concat, in_memory))
print("concat, through JSON, exact:   ", json := exact_after(concat, through_json))
sys.exit(0 if all(first) and all(memory) and not all(json) else 1)
PY
"$folder/venv/bin/python" "$folder/resume.py" "$folder"
