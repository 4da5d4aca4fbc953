"""A batcher under random load, with faults, for GPTJAX_SOAK_SECONDS (20 if it is not set; 3600 is an hour)."""

import os
import random
import time

import batching
import pytest
from batching import TOKENIZER, BrokenEngine, heard, job

from gptjax.serve.batcher import Batcher, BatcherOptions
from gptjax.serve.jobs import Failed

SECONDS = float(os.environ.get("GPTJAX_SOAK_SECONDS", 20))
GROWTH = 48 * 2**20  # bytes of memory; a job that is never let go of would be more within minutes


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _random_job(rng: random.Random):
    length, most = rng.choice((1, 3, 17, 33, 50)), rng.choice((1, 4, 12, 60))
    settings = {"max_tokens": most, "temperature": rng.choice((0, 1)), "stop": rng.choice(("", "a", "bé")) or ()}
    made = job([rng.randrange(8) for _ in range(length)], rng.randrange(2**64), settings)
    if rng.random() < 0.02:
        made.listener = lambda message: 1 / 0
    return made


def _submit(batcher, *jobs) -> None:
    """Again while it makes a new state, as a client does that is told to come back."""
    deadline = time.monotonic() + batching.SECONDS
    while time.monotonic() < deadline:
        try:
            return batcher.submit(*jobs)
        except Failed:
            time.sleep(0.01)
    raise AssertionError("the batcher did not recover")


@pytest.mark.slow
def test_no_slot_job_or_memory_is_lost_under_random_load_with_faults(make_variant):
    rng, sound = random.Random(0), batching.engine_of(make_variant("gpt2", context_length=64))
    engine = BrokenEngine(sound.graph, sound.params, entries=sound.entries)
    batcher = Batcher(engine, TOKENIZER, BatcherOptions(slots=3, chunk_tokens=16, prefix_tokens=512, queue=10**6))
    batcher.start()
    reference = job([1, 2, 3], 5, {"temperature": 1.0})
    expected, faults, reasons = heard(batcher, reference)[0].answer, 0, set()
    start, before = time.monotonic(), None
    while time.monotonic() < start + SECONDS:
        jobs = [_random_job(rng) for _ in range(rng.randint(1, 12))]
        if rng.random() < 0.05:
            engine.after, engine.faults, faults = rng.randint(0, 30), 1, faults + 1
        _submit(batcher, *jobs)
        batcher.cancel(rng.choice(jobs))
        for each in jobs:
            if isinstance(each.listener, batching.Heard):
                reasons.add(each.listener.wait().ending.reason)
        engine.faults = 0
        again = job(reference.prompt_L, 5, {"temperature": 1.0})
        _submit(batcher, again)
        assert again.listener.wait().answer == expected
        if before is None and time.monotonic() > start + SECONDS / 2:
            before = _resident_bytes()
    assert faults > 0 and {"length", "stop", "cancelled", "failed"} <= reasons
    assert batcher.drain(batching.SECONDS)
    assert batcher.status.running == batcher.status.waiting == 0
    assert _resident_bytes() - before < GROWTH
    batcher.stop()
