"""gptjax.load in two real processes on one mesh: both take the same step, also where one alone can tell a damaged one."""

import shutil

import pytest
import runs
from damage import data_file, flip, truncate

LOADS = """
import sys
import jax, numpy as np
import gptjax
from gptjax.hosts import distributed
from gptjax.errors import Damaged

peers = distributed.start()
folder = sys.argv[1 + peers.index]
run = gptjax.load(folder, mesh="fsdp=2")
whole = [leaf for leaf in jax.tree.leaves(run.params)]
print("step", run.step, "halves", any(not leaf.is_fully_replicated for leaf in whole))
if sys.argv[4] == "used":
    print("loss", round(float(run.loss("abc abd")), 6))
    print("text", [str(each) for each in run.generate("abc", max_tokens=4, temperature=0)])
try:
    gptjax.load(folder, 6, mesh="fsdp=2")
except Damaged as error:
    print("asked for 6:", error)
print("alone", gptjax.load(sys.argv[3]).step if peers.index else "")
peers.finish()
"""


USED = [pytest.param(damage, "used", marks=pytest.mark.slow) for damage in (truncate, flip)]


@pytest.mark.slow
@pytest.mark.parametrize("damage, use", [(flip, "not used"), *USED])
def test_two_processes_take_the_step_before_one_that_a_single_process_finds_damaged(trained, tmp_path, damage, use):
    """Process 1 has another copy of the run, as on a disk of its own; by name and size, or only by its checksum."""
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        shutil.copytree(trained, folder)
    damage(data_file(folders[1] / "checkpoints" / "6"))
    first, second = runs.lines_of_two(LOADS, *map(str, folders), str(trained), use)
    assert first[0] == second[0] == "step 4 halves True"
    if use == "used":
        assert first[1] == second[1] and first[1].startswith("loss ") and "nan" not in first[1]
        assert first[2] == second[2] and first[2].startswith("text ['abc")
    for lines in (first, second):
        assert lines[-2].startswith("asked for 6: checkpoint ") and "process 1 (" in lines[-2], lines
    assert second[-1] == "alone 6", "what one process loads by itself concerns no other"
