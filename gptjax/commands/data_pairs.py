"""What `gptjax data` prints of preferences: the answers of a step's rows with their scores, and the numbers of the set."""

from gptjax.commands import data_table


def row(facts: dict, marks: data_table.Style) -> str:
    label = {0: ", not good", 1: ", good"}.get(facts.get("label"), "")
    margin = f", margin {facts['margin']:g}" if facts["margin"] else ""
    head = (
        f"\nrow {facts['row']} ({facts['run_row']:,} of the run): {facts['source']}, epoch {facts['epoch']}, example"
        f" {facts['example']:,}, a prompt of {facts['prompt_tokens']:,} tokens{label}{margin}; batch hash"
        f" {facts['batch_hash']}"
    )
    return "\n".join([head, *(_answer(one, k, marks) for k, one in enumerate(facts["answers"]))])


def _answer(facts: dict, k: int, marks: data_table.Style) -> str:
    counts = f"{facts['tokens']:,} tokens, {facts['targets']:,} targets"
    return f"answer {k}, score {facts['score']:g}: {counts}\n" + data_table.text(facts["parts"], marks)


def statistics(facts: dict) -> str:
    run, lines = facts["run"], []
    lines.append(
        f"{run['steps']:,} steps read {run['rows']:,} examples, {run['epochs']:.2f} times the training preferences of"
        f" {facts['source']} ({facts['preferences']})"
    )
    for name, title in (("train", "training"), ("held_out", "held out")):
        lines += ["", f"{title}: {facts[name]['examples']:,} examples", *_lines(facts[name])]
    if any(facts["too_long"][name] for name in ("dropped", "cut")):
        long = facts["too_long"]
        lines += [
            "",
            f"longer than the context: {long['dropped']:,} examples dropped, {long['cut']:,} cut ({long['policy']})",
        ]
    if "left_out" in facts:
        lines += ["", f"left out: {facts['left_out']['count']:,} records that hold no preference"]
    return "\n".join(lines)


def _lines(part: dict) -> list[str]:
    lengths = [(name, part[name]) for name in part if name.endswith("_tokens") and part[name] is not None]
    lines = [
        f"  {name.removesuffix('_tokens'):<10} {each['mean']:8.1f} tokens on average, median {each['median']:,.0f}, longest"
        f" {each['longest']:,}"
        for name, each in lengths
    ]
    if "good" in part:
        return [f"  {part['good']:,} good, {part['examples'] - part['good']:,} others", *lines]
    answers = ", ".join(f"{count:,} of {k}" for k, count in part["answers"].items())
    margins = f"; {part['with_margin']:,} examples have a margin" if part["with_margin"] else ""
    longer = f"  the better answer is the longer one in {part['chosen_longer']:.1%} of the pairs{margins}"
    return [f"  {part['pairs']:,} pairs, {part['ties']:,} ties; answers to a prompt: {answers}", *lines, longer]
