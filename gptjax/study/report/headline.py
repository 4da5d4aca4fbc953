"""What a reader is to take away, first: the verdict, the exponents that stand, larger runs told and reached; conventions."""

from gptjax.pages import numbers
from gptjax.pages.blocks import Block, Bullets, Figure, Notice, Paragraph, Section, Table
from gptjax.study.methods import catalogue
from gptjax.study.results import reasons

PARAMS = {
    "total": "all parameters, including embeddings",
    "non_embedding": "parameters without token and position embeddings",
    "matmul": "weights of matrix products, including the head",
    "given": "as the file of points gives them",
}
FLOPS = {
    "exact": "all FLOPs of the model, forward and backward",
    "6n": "6 for each parameter and token",
    "6n_attn_full": "6 for each parameter and token, plus attention between all pairs of tokens",
    "6n_attn_causal": "6 for each parameter and token, plus attention to earlier tokens",
    "given": "as the file of points gives it",
}


def verdict(results: dict, drawn: dict[str, str]) -> Section:
    blocks = [*_said(results.get("verdict")), *_standing(results), *_fallen(results)]
    return Section("Verdict", blocks + _told(results, drawn))


def _said(verdict) -> list[Block]:
    if not verdict:
        return []
    blocks = [Notice(verdict["text"], good=bool(verdict["headline"]))]
    return blocks + ([Bullets(verdict["reasons"])] if verdict.get("reasons") else [])


def _standing(results: dict) -> list[Block]:
    """The exponents of the methods that may be quoted, and of those that are fitted but may not."""
    fitted = [name for name in catalogue.by_rank() if (results.get(name) or {}).get("a") is not None]
    whole = [name for name in fitted if not results[name]["refused"]]
    if not results.get("verdict"):
        return [] if whole else [Notice("No law stands: this study gives no number to quote.", good=False)]
    standing = [name for name in results["verdict"]["standing"] if name in whole]
    fallen = [name for name in whole if name not in standing]
    captions = ("Results that stand, with 95% intervals", "Fitted, but not to be quoted: see the reasons above")
    return [_exponents(results, names, caption) for names, caption in zip((standing, fallen), captions) if names]


def _exponents(results: dict, names: list[str], caption: str) -> Table:
    rows = [
        [
            catalogue.of(name).title,
            *(_exponent(results[name], key) for key in ("a", "b")),
            _exponent(results[name], "E"),
        ]
        for name in names
    ]
    return Table(["method", "a, of N* ~ C^a", "b, of D* ~ C^b", "E (nats per token)"], rows, caption).without_empty(
        numbers.NONE
    )


def _exponent(fit: dict, name: str) -> str:
    return numbers.constant_beside(name, fit.get(name), (fit.get("interval95") or {}).get(name))


def _fallen(results: dict) -> list[Block]:
    said = " ".join((results.get("verdict") or {}).get("reasons") or [])
    refused = [
        (method.title, reason)
        for name, method in catalogue.by_rank().items()
        for reason in (results.get(name) or {}).get("refused") or []
        if reason not in said
    ]
    items = [group.shown() for group in reasons.grouped(refused)]
    return [Paragraph("These fits were refused and are not quoted above:"), Bullets(items)] if items else []


def _told(results: dict, drawn: dict[str, str]) -> list[Block]:
    told = results.get("prediction") or []
    if not told:
        return []
    header = ["larger run", "N", "D", "C (FLOPs)", "predicted loss", "80%", "95%", "measured", "difference", "within"]
    table = Table(
        header,
        [_told_row(one) for one in told],
        words=("within",),
        caption="Runs whose loss was predicted before they started",
    )
    figure = [Figure("prediction", drawn["prediction"])] if "prediction" in drawn else []
    return [table.without_empty(numbers.NONE), *figure]


def _told_row(one: dict) -> list[str]:
    low, wide, came = one.get("interval80"), one.get("interval95"), one.get("outcome")
    return [
        one["run"],
        numbers.count(one.get("params")),
        numbers.count(one.get("tokens")),
        numbers.flops(one.get("flops")),
        numbers.loss(one.get("loss")),
        numbers.bounds(low, wide=wide),
        numbers.bounds(wide),
        (one.get("left_out") or numbers.NONE) if came is None else numbers.loss(came),
        numbers.NONE if came is None or one.get("loss") is None else f"{came - one['loss']:+.4f}",
        _within(came, low, wide),
    ]


def _within(came, eighty, ninety_five) -> str:
    if came is None or not ninety_five or None in ninety_five:
        return numbers.NONE
    if eighty and eighty[0] <= came <= eighty[1]:
        return "80%"
    return "95%" if ninety_five[0] <= came <= ninety_five[1] else "neither"


def conventions(results: dict) -> Section:
    given = results.get("conventions") or {}
    items = [
        f"N, parameters: {_named(given.get('params'), PARAMS)}.",
        f"C, training compute: {_named(given.get('flops'), FLOPS)}.",
        "D, tokens: those a run was trained on. Loss: of held-out text, in nats per token.",
        "Intervals: the middle 80% and 95% of many refits. Each refit gives every run a new random weight.",
        *_ratio(given.get("flops_per_param_token")),
        *(results.get("notes") or []),
    ]
    return Section("Conventions", [Bullets(items)])


def _ratio(flops_per_param_token) -> list[str]:
    if flops_per_param_token is None:
        return []
    return [
        f"In these runs C = {numbers.setting(flops_per_param_token)} N D on average. The best splits use this ratio."
    ]


def _named(name, table: dict) -> str:
    if name is None:
        return "the convention is not known"
    return f"{name.replace('_', '-')}: {table[name]}" if name in table else name
