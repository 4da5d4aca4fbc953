"""What a run on preferences reads: the rows of any step, and the numbers of its set, as JSON values."""

import numpy as np

from gptjax import schedule
from gptjax.data.looking import inspection


def row_facts(rows, tokenizer, first: int, stop: int) -> list[dict]:
    """Of rows first to stop - 1 of a run, of a TrainPairs: the answers with their scores, the text of each in `parts`."""
    batch, order_B = rows.rows(first, stop), rows.order(first, stop)
    [(name, count)] = rows.rows_per_epoch.items()
    facts = []
    for i, number in enumerate(order_B.tolist()):
        one = {key: array[i] for key, array in batch.items()}
        origin = {"run_row": first + i, "source": name, "epoch": (first + i) // count, "example": number}
        about = {"prompt_tokens": int(one["prompt_length_B"]), "margin": float(one["margin_B"])}
        about |= {"label": int(one["label_B"])} if "label_B" in one else {}
        answers = [_answer(one, k, tokenizer) for k in range(len(one["length_BK"])) if one["length_BK"][k]]
        facts.append(origin | about | {"answers": answers})
    return facts


def _answer(row: dict[str, np.ndarray], k: int, tokenizer) -> dict:
    length = int(row["length_BK"][k])
    of_one = {"token_BT": row["token_BKT"][k, :length], "weight_BL": row["weight_BKL"][k, : length - 1]}
    of_one["segment_BT"] = np.zeros(length, np.int32)
    return {
        "score": float(row["score_BK"][k]),
        "tokens": length,
        "targets": int(of_one["weight_BL"].sum()),
        "text": tokenizer.decode(of_one["token_BT"], special=True),
        "parts": inspection.parts(of_one, tokenizer),
    }


def statistics(config, store) -> dict:
    """Of a PairStore: examples, pairs, answers to a prompt, lengths, ties; and how often a run reads them."""
    train, val = store.examples.train.examples, store.examples.val.examples
    n_rows = schedule.rows_before(config, schedule.total_steps(config))
    run = {"steps": schedule.total_steps(config), "rows": n_rows, "epochs": n_rows / len(train)}
    about = {name: store.description[name] for name in ("too_long", "left_out") if name in store.description}
    of_parts = {name: of_examples(part) for name, part in (("train", train), ("held_out", val))}
    return {"preferences": config.data.preferences, "source": store.name, "run": run, **of_parts, **about}


def of_examples(examples) -> dict:
    """Lengths are in tokens: of answers their targets, end token included."""
    prompt_E = [example.prompt_length for example in examples]
    length_EK = [[int(is_target_T.sum()) for is_target_T in example.targets] for example in examples]
    facts = {"examples": len(examples), "prompt_tokens": _spread(prompt_E)}
    if examples[0].label is not None:
        label_E = np.array([example.label for example in examples])
        lengths = np.array([length_K[0] for length_K in length_EK])
        kinds = {"good_tokens": lengths[label_E == 1], "other_tokens": lengths[label_E == 0]}
        return facts | {"good": int(label_E.sum())} | {name: _spread(values) for name, values in kinds.items()}
    answers, counts = np.unique([len(length_K) for length_K in length_EK], return_counts=True)
    compared = [_compared(example.score_K, np.array(length_K)) for example, length_K in zip(examples, length_EK)]
    better, worse, ties = (sum(parts, []) for parts in zip(*compared))
    return facts | {
        "answers": dict(zip(map(str, answers.tolist()), counts.tolist())),
        "pairs": len(better),
        "ties": len(ties),
        "chosen_tokens": _spread(better),
        "rejected_tokens": _spread(worse),
        "chosen_longer": float(np.mean(np.array(better) > np.array(worse))),
        "with_margin": sum(example.margin != 0 for example in examples),
    }


def _compared(score_K: np.ndarray, length_K: np.ndarray) -> tuple[list, list, list]:
    """(lengths of the better, of the worse of each pair; one 1 for each tie)."""
    better_P, worse_P = np.nonzero(score_K[:, None] > score_K[None, :])
    ties = np.triu(score_K[:, None] == score_K[None, :], 1).sum()
    return length_K[better_P].tolist(), length_K[worse_P].tolist(), [1] * int(ties)


def _spread(values) -> dict | None:
    """None of none."""
    if not len(values):
        return None
    return {"mean": float(np.mean(values)), "median": float(np.median(values)), "longest": int(np.max(values))}
