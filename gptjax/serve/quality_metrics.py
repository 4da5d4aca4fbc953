"""The numbers of answers as Prometheus reads them: histograms since the server began, and drifts as they are now."""

import itertools

from gptjax.serve import answer_measures, drift


def lines(total: dict, drifts: dict[str, dict[str, drift.Drift]]) -> str:
    """total: model -> quality.Counts. drifts: model -> measure -> Drift."""
    from gptjax.serve import metrics

    return metrics.exposition([_ends(total), *_histograms(total), *_drifts(drifts)]).decode()


def _ends(total: dict):
    from prometheus_client import core

    family = core.CounterMetricFamily("gptjax_answers", "Answers, by how they ended", labels=["model", "reason"])
    for model, counts in total.items():
        for reason, count in counts.reasons.items():
            family.add_metric([model, reason], count)
    return family


def _histograms(total: dict):
    from prometheus_client import core

    for name, measure in answer_measures.MEASURES.items():
        words = measure.words[0].upper() + measure.words[1:]
        family = core.HistogramMetricFamily(f"gptjax_answer_{name}", words, labels=["model"])
        edges = [*map(repr, measure.edges), "+Inf"]
        for model, counts in total.items():
            buckets = list(zip(edges, itertools.accumulate(counts.bins[name])))
            family.add_metric([model], buckets, counts.sums[name])
        yield family


def _drifts(drifts: dict):
    from prometheus_client import core

    labels = ["model", "measure"]
    psi = core.GaugeMetricFamily("gptjax_quality_drift", "PSI of the last week and the reference", labels=labels)
    words = "What chance alone stays below in 999 of 1000 cases"
    chance = core.GaugeMetricFamily("gptjax_quality_drift_chance", words, labels=labels)
    for model, by_measure in drifts.items():
        for name, one in by_measure.items():
            psi.add_metric([model, name], one.psi)
            chance.add_metric([model, name], one.chance)
    return psi, chance
