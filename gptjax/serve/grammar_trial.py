"""Compiles a grammar in a process of its own, and asks for the first mask: `python -P grammar_trial.py < GRAMMAR`.

What a request asks a library to compile may take more time or memory than a server has: it then ends this process, not the
server. Nothing of ours is imported here, so that it takes a tenth of a second.
"""

import resource
import sys

CPU_SECONDS = 5
STACK_BYTES, MEMORY_BYTES = 2**20, 4 * 2**30  # no thread of a server has a smaller stack


def main() -> None:
    import llguidance

    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_STACK, STACK_BYTES),
        (resource.RLIMIT_AS, MEMORY_BYTES),
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), sys.stdin.read(), log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()


if __name__ == "__main__":
    main()
