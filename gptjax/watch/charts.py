"""What is drawn of a run: for each chart its series, as page.js takes them.

A series is {"name", "colour", "kind": "line" | "dots", "x", "y"} and what Series.drawn adds; "error" is two standard errors,
"group" the line of the legend that it belongs to, its name where there is none.
"""

from gptjax.pages import palette
from gptjax.watch.record import Record
from gptjax.watch.series import rounded

STEPS = (  # (id, title, name of the series in a training row, colour, whether its axis starts at zero)
    ("learning_rate", "Learning rate", "learning_rate", palette.GREEN, True),
    ("speed", "Tokens per second", "tokens_per_second", palette.BLUE, True),
    ("mfu", "MFU (fraction of the peak)", "mfu", palette.SKY, True),
    ("grad_norm", "Gradient norm", "grad_norm", palette.ORANGE, True),
    ("param_norm", "Parameter norm", "param_norm", palette.PURPLE, False),
    ("update_norm", "Update norm", "update_norm", palette.YELLOW, True),
)


def of_run(record: Record) -> list[dict]:
    return [*_losses(record), *_sources(record), *_of_steps(record), *_tasks(record)]


def marks(record: Record) -> list[dict]:
    """Events as vertical lines: {"x", "text", "bad"}."""
    return [{"x": event.step, "text": event.said, "bad": event.bad} for event in record.events]


def chart(name: str, title: str, series: list[dict], x_label: str = "step", **more) -> list[dict]:
    """[] where there is nothing to draw."""
    drawn = [one for one in series if one["x"] or one.get("bad")]
    return [{"id": name, "title": title, "x_label": x_label, "series": drawn, **more}] if drawn else []


def line(name: str, colour: str, series, **more) -> dict:
    return {"name": name, "colour": colour, "kind": "line", **series.drawn(), **more}


def _losses(record: Record) -> list[dict]:
    series = [line("training", palette.SKY, record.train["loss"])]
    for prefix, name, colour in (
        ("", "held out", palette.VERMILION),
        ("ema_", "held out, averaged parameters", palette.GREEN),
    ):
        series.append(_held_out(record, name, colour, f"{prefix}loss", f"{prefix}standard_error"))
    return chart("loss", "Loss (nats per token)", series, wide=True)


def _held_out(record: Record, name: str, colour: str, loss: str, error: str) -> dict:
    drawn, errors = record.held_out[loss].drawn(), record.held_out[error].values
    shown = {"error": rounded(2 * errors)} if len(errors) == len(drawn["x"]) else {}
    return {"name": name, "colour": colour, "kind": "dots", **drawn, **shown}


def _sources(record: Record) -> list[dict]:
    """Held-out loss of each source of a mixture."""
    names = sorted(name for name in record.held_out if name.startswith("loss/"))
    series = [
        _held_out(record, source, colour, name, f"standard_error/{source}")
        for name, colour in zip(names, palette.ordered(len(names)))
        for source in [name.removeprefix("loss/")]
    ]
    return chart("sources", "Held-out loss by source (nats per token)", series)


def _of_steps(record: Record) -> list[dict]:
    return [
        one
        for name, title, key, colour, from_zero in STEPS
        for one in chart(name, title, [line(title, colour, record.train[key])], from_zero=from_zero)
    ]


def _tasks(record: Record) -> list[dict]:
    names = sorted(name for name in record.tasks if not name.endswith(("seconds", "_stderr")))
    series = [
        {"name": name, "colour": colour, "kind": "dots", **record.tasks[name].drawn()}
        for name, colour in zip(names, palette.ordered(len(names)))
    ]
    return chart("tasks", "Evaluation tasks", series)
