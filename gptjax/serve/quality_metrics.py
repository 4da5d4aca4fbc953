"""The numbers of answers as Prometheus reads them: histograms since the server began, and drifts as they are now."""

import itertools

from gptjax.serve import answer_measures, drift


def lines(total: dict, drifts: dict[str, dict[str, drift.Drift]]) -> str:
    """Text format 0.0.4. total: model -> quality.Counts."""
    written = ["# HELP gptjax_answers_total Answers by how they ended.", "# TYPE gptjax_answers_total counter"]
    for model, counts in total.items():
        for reason, count in counts.reasons.items():
            written.append(f"gptjax_answers_total{_labels(model=model, reason=reason)} {count}")
    for name, measure in answer_measures.MEASURES.items():
        written += _histogram(f"gptjax_answer_{name}", name, measure, total)
    written += _gauge("gptjax_quality_drift", "PSI of the last week and the reference.", drifts, lambda one: one.psi)
    words = "Drift that chance alone stays below in 999 of 1000 cases."
    written += _gauge("gptjax_quality_drift_chance", words, drifts, lambda one: one.chance)
    return "\n".join(written) + "\n"


def _histogram(full_name: str, name: str, measure: answer_measures.Measure, total: dict) -> list[str]:
    written = [f"# HELP {full_name} {measure.words.capitalize()}.", f"# TYPE {full_name} histogram"]
    for model, counts in total.items():
        cumulative = list(itertools.accumulate(counts.bins[name]))
        for edge, count in zip([*map(repr, measure.edges), "+Inf"], cumulative):
            written.append(f"{full_name}_bucket{_labels(model=model, le=edge)} {count}")
        written.append(f"{full_name}_sum{_labels(model=model)} {counts.sums[name]!r}")
        written.append(f"{full_name}_count{_labels(model=model)} {cumulative[-1]}")
    return written


def _gauge(full_name: str, words: str, drifts: dict, value) -> list[str]:
    written = [f"# HELP {full_name} {words}", f"# TYPE {full_name} gauge"]
    for model, by_measure in drifts.items():
        for name, one in by_measure.items():
            written.append(f"{full_name}{_labels(model=model, measure=name)} {value(one)!r}")
    return written


def _labels(**values: str) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
