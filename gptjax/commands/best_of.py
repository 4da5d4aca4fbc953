"""`gptjax sample --best_of`: the best of several answers by a reward."""

import json
import sys

import numpy as np

from gptjax.errors import UserError


def check(args) -> None:
    """Raises UserError: flags that don't go with --best_of."""
    if (args.best_of is None) != (args.reward is None):
        missing = "--reward=NAME or run:DIR" if args.reward is None else "--best_of=N"
        raise UserError(f"--best_of and --reward go together; add {missing}.")
    if args.best_of is None:
        return
    if args.best_of < 1:
        raise UserError(f"--best_of={args.best_of} is too small; use at least 1.")
    if not args.chat or not (args.prompt or args.prompts_file):
        raise UserError("--best_of chooses among answers to messages; add --chat, and --prompt or --prompts_file.")
    for flag in ("num_return_sequences", "num_beams", "stream", "logprobs"):
        if getattr(args, flag):
            raise UserError(f"--best_of draws its own answers and shows one of each prompt; leave out --{flag}.")


def run(loaded, form, conversations, args, settings: dict) -> None:
    """Prints the best answer to each, with --json as a line of a conversation; what n buys is said on stderr."""
    from gptjax.posttrain import best_of

    settings = {name: value for name, value in settings.items() if name != "logprobs"}
    best = best_of.answers(loaded, form, conversations, args.reward, args.best_of, **settings)
    for number, each in enumerate(best, start=1):
        if args.json:
            print(json.dumps(each.record(), ensure_ascii=False))
        else:
            print(f"--- prompt {number} of {len(best)}, score {each.score:g}\n{each.text}")
    for point in best_of.curve(np.stack([each.score_N for each in best])):
        error = "" if point.error is None else f" +- {point.error:.3g}"
        print(f"best of {point.n}: reward {point.reward:.4g}{error}, KL {point.kl:.3f} nats", file=sys.stderr)
