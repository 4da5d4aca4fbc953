"""What one stage is worth, number by number: python -m gptjax.road.evaluating --run=DIR --like=SFT ... --out=FILE

All stages are measured as --like is: its chat format, its rows of text, its program; of --run come the parameters. So two
stages have been judged on the same windows, conversations and exercises, and are compared pair by pair.

    text         nats and tokens of each window of --text, what the model was pretrained on
    conversations  the same of each row of --conversations, answers alone
    exercises    of each line of --exercises: whether the likeliest answer is right and has ended; of an answer drawn at
                 temperature 1 also what the reward model of --reward says
    dialogues    answers to the lines of --questions, as they are

FILE is one JSON object. A function of the runs and the flags.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

from gptjax.errors import UserError
from gptjax.road.exercises import is_right, read_exercises
from gptjax.storage.writing import replace_whole


def loaded(path: str, step: int | None, like: str):
    """The Run of --like with the parameters of another. Raises UserError: its parameters are of another shape."""
    import jax

    import gptjax

    standard = gptjax.load(like)
    if pathlib.Path(path) == pathlib.Path(like):
        return standard if step is None else standard.at(step)
    other = gptjax.load(path, step)
    shapes, wanted = (jax.tree.map(lambda leaf: leaf.shape, run.params) for run in (other, standard))
    if shapes != wanted:
        raise UserError(f"--run={path} has parameters of other shapes than --like={like}; give runs of one model.")
    return dataclasses.replace(standard, params=other.params, step=other.step)


def losses(run, specs: list[str], max_tokens: int | None) -> dict:
    """{"nats": [window], "tokens": [window]} of all texts."""
    from gptjax.evaluation import held_out, run_loss
    from gptjax.parallel import numerics

    reading = run_loss.reading_of(run, specs, max_tokens=max_tokens)
    with numerics.on_mesh(run.mesh):
        sums = held_out.sums_of_sources(run.program, run.params, reading.rows, run_loss.batch_rows(run, None))
    pooled = held_out.pool(sums.values())
    kept = pooled.weight_R > 0
    return {"nats": pooled.loss_R[kept].astype(float).tolist(), "tokens": pooled.weight_R[kept].astype(float).tolist()}


def completions(run, questions: list[str], max_tokens: int, temperature: float) -> list:
    from gptjax.data.chat import Message

    conversations = [(Message("user", question),) for question in questions]
    return run.answers(conversations, run.chat_format(), max_tokens=max_tokens, temperature=temperature, seed=0)


def judged(run, exercises: list[dict], max_tokens: int, reward: str | None) -> list[dict]:
    """The likeliest and a drawn answer to each exercise, and what is measured of them."""
    prompts = [exercise["prompt"] for exercise in exercises]
    likeliest = completions(run, prompts, max_tokens, 0.0)
    drawn = completions(run, prompts, max_tokens, 1.0)
    scores = [None] * len(drawn) if reward is None else rewards(run, exercises, drawn, reward)
    return [
        {
            "task": exercise["task"],
            "likeliest": _answer(exercise, best),
            "drawn": _answer(exercise, one) | {"reward": score},
        }
        for exercise, best, one, score in zip(exercises, likeliest, drawn, scores, strict=True)
    ]


def _answer(exercise: dict, completion) -> dict:
    ended = completion.finish_reason == "eot"
    right = is_right(exercise["answer"], completion.text, ended)
    return {"text": completion.text, "right": right, "ended": ended, "tokens": len(completion.tokens)}


def rewards(run, exercises: list[dict], answers: list, reward: str) -> list[float]:
    """What a reward model says of answers, as it says it in PPO."""
    import numpy as np

    from gptjax.data.chat import Message
    from gptjax.posttrain.rewards.reward import Answer, chosen, scored

    end = np.array(run.chat_format().stop_ids(run.tokenizer)[:1], np.int32)
    judged_ones = []
    for exercise, answer in zip(exercises, answers, strict=True):
        ended = answer.finish_reason == "eot"
        token_L = np.concatenate([answer.tokens, end]) if ended else answer.tokens
        judged_ones.append(Answer((Message("user", exercise["prompt"]),), answer.text, token_L.astype(np.int32), ended))
    return scored(judged_ones, chosen([f"score(run={reward!r})"])).total_B.tolist()


def dialogues(run, questions: list[str], max_tokens: int) -> list[dict]:
    found = completions(run, questions, max_tokens, 0.0)
    return [
        {"question": question, "answer": one.text, "ended": one.finish_reason == "eot"}
        for question, one in zip(questions, found, strict=True)
    ]


def read_questions(file: str) -> list[str]:
    """Raises UserError: no file, or an empty one."""
    path = pathlib.Path(file)
    questions = (
        [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()] if path.is_file() else []
    )
    if not questions:
        raise UserError(f"--questions={file} has no question; expected a file with one on each line.")
    return questions


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gptjax.road.evaluating", allow_abbrev=False)
    parser.add_argument("--run", required=True, metavar="DIR")
    parser.add_argument("--step", type=int, metavar="N", help="of --run (default: its newest)")
    parser.add_argument("--like", required=True, metavar="DIR", help="the fine-tuned run, as which all are measured")
    parser.add_argument("--text", action="append", required=True, metavar="SPEC", help="held-out text; may be repeated")
    parser.add_argument("--text_tokens", type=int, metavar="N", help="of each text, from its start (default: all)")
    parser.add_argument("--conversations", required=True, metavar="SPEC", help="held-out conversations")
    parser.add_argument("--exercises", required=True, metavar="FILE", help="lines of task, prompt and answer")
    parser.add_argument(
        "--questions", required=True, metavar="FILE", help="a question a line, to be answered as they are"
    )
    parser.add_argument("--reward", metavar="DIR", help="the run of a reward model")
    parser.add_argument("--max_tokens", type=int, default=32, metavar="N", help="of an answer (default: 32)")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE")
    args = parser.parse_args(arguments)
    try:
        exercises, questions = read_exercises(pathlib.Path(args.exercises)), read_questions(args.questions)
        run = loaded(args.run, args.step, args.like)
        values = {
            "run": args.run,
            "step": run.step,
            "text": losses(run, args.text, args.text_tokens),
            "conversations": losses(run, [args.conversations], None),
            "exercises": judged(run, exercises, args.max_tokens, args.reward),
            "dialogues": dialogues(run, questions, args.max_tokens),
        }
    except UserError as error:
        print(f"evaluating: {error}", file=sys.stderr)
        return error.exit_code
    args.out.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(args.out, json.dumps(values, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
