"""What the pictures of a study show are the numbers of its results: read from what is drawn, not from pixels."""

import numpy as np
import pytest
import study_results

from gptjax.study import pictures
from gptjax.study.pictures import checks, laws, style


@pytest.fixture(scope="module")
def results():
    whole = study_results.results()
    for i, point in enumerate(whole["points"]):
        point["architecture"] = "lstm" if i % 2 else "transformer"
    return whole


@pytest.fixture(scope="module")
def drawn(results):
    return {picture.name: picture for picture in pictures.draw(results)}


def marks(picture, gid: str, panel: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """x and y of each line or set of markers of that name."""
    return [line.get_data() for line in picture.figure.axes[panel].lines if line.get_gid() == gid]


def numbers(rows, *keys) -> list[np.ndarray]:
    return [np.array([row[key] for row in rows]) for key in keys]


def legend(picture) -> list[str]:
    return [text.get_text() for one in picture.figure.legends for text in one.get_texts()]


def test_every_figure_has_a_legend_and_what_is_drawn_more_than_once_a_line_in_it(drawn):
    assert all(len(set(legend(picture))) == len(legend(picture)) > 0 for picture in drawn.values())
    assert {"80%, 95% interval", "best split"} < set(legend(drawn["frontier"]))
    assert {"best", "diverged"} < set(legend(drawn["learning_rate"]))
    assert {"as fitted", "refused"} < set(legend(drawn["sensitivity"]))


def test_intervals_of_several_laws_are_lines_that_cover_nothing(drawn):
    axes = drawn["split"].figure.axes[0]
    assert not [one for one in axes.collections if one.get_gid() != "bars" and hasattr(one, "get_facecolor")
                and one.get_paths() and len(one.get_paths()[0].vertices) > 8]  # fmt: skip
    assert len(marks(drawn["split"], "95%")) == 2, "the two bounds of the parametric law"


def test_the_frontier_shows_its_intervals_whole(results):
    fit = results["parametric"]
    optima = [{**one, "interval95": {"loss": study_results.around(one["loss"], 0.4)}} for one in fit["optima"]]
    picture = laws.frontier({"points": results["points"], "parametric": {**fit, "optima": optima}})
    low, high = picture.figure.axes[0].get_ylim()
    ends = [bound for one in optima for bound in one["interval95"]["loss"]]
    assert low < min(ends) and max(ends) < high


def test_results_with_everything_give_every_picture(drawn):
    assert drawn.keys() == pictures.NAMES


def test_vertices_are_marked_where_the_fit_has_them_and_refused_ones_are_crossed_out(results, drawn):
    *accepted, refused = results["isoflop"]["optima"]
    [marked] = marks(drawn["isoflop"], "vertices")
    np.testing.assert_allclose(marked, numbers(accepted, "params", "loss"))
    [crossed] = marks(drawn["isoflop"], "refused")
    np.testing.assert_allclose(crossed, [[refused["params"]], [refused["loss"]]])
    assert refused["refused"] in drawn["isoflop"].caption


def test_a_refused_vertex_outside_the_window_is_crossed_at_the_end_of_its_parabola(results):
    vertex = dict(results["isoflop"]["optima"][-1])
    c0, _, c2 = vertex["coefficients"]
    outside = np.log(vertex["window"][1]) + 2
    vertex |= {"params": float(np.exp(outside)), "coefficients": [c0, -2 * c2 * outside, c2]}
    changed = study_results.results(isoflop={**results["isoflop"], "optima": [vertex]})
    picture = laws.isoflop(changed)
    [(x, _)] = marks(picture, "refused")
    assert x == pytest.approx(vertex["window"][1])
    assert not [line for line in marks(picture, "vertices") if len(line[0])]


def test_a_budget_without_a_parabola_is_crossed_at_its_best_run(results):
    vertex = {**results["isoflop"]["optima"][0], "coefficients": [None] * 3, "params": None, "refused": "3 sizes"}
    group = [point for point in results["points"] if point["flops"] == vertex["flops"]]
    elsewhere = {"flops": 1e24, "params": 1e11, "tokens": 2e12, "loss": 2.0}  # what the law says; no vertex
    fit = {**results["isoflop"], "optima": [vertex, *results["isoflop"]["optima"][1:], elsewhere]}
    picture = laws.isoflop({**results, "isoflop": fit})
    [[crossed], _] = [y for _, y in marks(picture, "refused")]
    assert crossed == min(point["loss"] for point in group)
    assert sum(map(len, (x for x, _ in marks(picture, "vertices")))) == len(fit["optima"]) - 3


def test_each_parabola_is_the_fit_s_over_the_sizes_that_were_run(results, drawn):
    vertex = results["isoflop"]["optima"][0]
    parabolas = [line.get_data() for line in drawn["isoflop"].figure.axes[0].lines if len(line.get_xdata()) > 20]
    assert len(parabolas) == len(results["isoflop"]["optima"])
    x, y = parabolas[0]
    assert (x[0], x[-1]) == pytest.approx(vertex["window"])
    c0, c1, c2 = vertex["coefficients"]
    np.testing.assert_allclose(y, c0 + c1 * np.log(x) + c2 * np.log(x) ** 2)


def test_the_frontier_goes_through_the_optima_and_its_bands_through_their_intervals(results, drawn):
    optima = results["parametric"]["optima"]
    [(x, y)] = marks(drawn["frontier"], "frontier")
    flops, loss = numbers(optima, "flops", "loss")
    np.testing.assert_allclose(np.interp(flops, x, y), loss, rtol=1e-6)
    wide, narrow = drawn["frontier"].figure.axes[0].collections
    for band, key in ((wide, "interval95"), (narrow, "interval80")):
        corners = band.get_paths()[0].vertices
        for one in optima:
            edges = corners[np.isclose(corners[:, 0], one["flops"]), 1]
            assert (edges.min(), edges.max()) == pytest.approx(one[key]["loss"])


def test_the_best_split_shows_each_method_s_numbers_of_both_kinds_without_refused_vertices(results, drawn):
    for panel, key in enumerate(("params", "tokens")):
        [parametric] = marks(drawn["split"], "parametric", panel)
        np.testing.assert_allclose(parametric, numbers(results["parametric"]["optima"], "flops", key))
        [isoflop] = marks(drawn["split"], "isoflop", panel)
        np.testing.assert_allclose(isoflop, numbers(results["isoflop"]["optima"][:-1], "flops", key))


def test_residuals_are_what_the_law_leaves_in_percent(results, drawn):
    N, D, L = numbers(results["points"], "params", "tokens", "loss")
    left = 100 * np.log(L / study_results.LAW.loss(N, D))
    for panel, x in enumerate((N, D, study_results.LAW.loss(N, D))):
        [shown] = marks(drawn["residuals"], "residuals", panel)
        np.testing.assert_allclose(shown, [x, left], atol=1e-9)
    assert "two standard deviations between seeds" in legend(drawn["residuals"])


def test_held_out_points_lie_at_predicted_and_measured_loss(results, drawn):
    [shown] = marks(drawn["holdout"], "held out")
    np.testing.assert_allclose(shown, numbers(results["parametric"]["holdout"]["points"], "predicted", "loss"))


def test_the_ring_is_at_the_best_learning_rate_and_diverged_runs_lie_above_all_others(results, drawn):
    sizes = results["learning_rate"]["sizes"]
    rings = marks(drawn["learning_rate"], "best")
    for one, (x, y) in zip(sizes, rings, strict=True):
        assert x == [one["best"]] and y == [min(point["loss"] for point in one["points"] if not point["diverged"])]
    highest = max(y.max() for _, y in marks(drawn["learning_rate"], "learning rates"))
    fallen = marks(drawn["learning_rate"], "diverged")
    assert sum(len(x) for x, _ in fallen) == sum(point["diverged"] for one in sizes for point in one["points"])
    assert all((np.array(y) > highest).all() for _, y in fallen)


def test_told_and_reached_losses_of_larger_runs_are_marked_and_none_where_none_came(results, drawn):
    [(told, _)] = marks(drawn["prediction"], "told")
    [(came, rows)] = marks(drawn["prediction"], "came")
    assert list(told) == [2.3456, 2.2456] and list(came) == [2.3521] and list(rows) == [0]


def test_refused_changes_are_hollow(results, drawn):
    filled, hollow = (line for line in drawn["sensitivity"].figure.axes[0].lines if line.get_gid() == "changes")
    changes = results["parametric"]["sensitivity"]
    assert list(hollow.get_xdata()) == [one["a"] for one in changes if one["refused"]]
    assert len(filled.get_xdata()) == len(changes) - 1 and hollow.get_markerfacecolor() == "white"


def test_an_exponent_without_an_interval_is_drawn_without_its_bands(results, drawn):
    none = {"interval80": {"a": [None, None]}, "interval95": {"a": [None, None]}}  # no replicate has a fit
    bare = checks.sensitivity({**results, "parametric": results["parametric"] | none})
    patches = [len(picture.figure.axes[0].patches) for picture in (drawn["sensitivity"], bare)]
    assert patches == [2, 0]


def test_lines_of_architectures_join_runs_that_none_as_small_beats(results, drawn):
    for name in ("lstm", "transformer"):
        [(x, y)] = marks(drawn["architectures"], name)
        for size, loss in zip(x, y):
            rivals = [p["loss"] for p in results["points"] if p["architecture"] == name and p["params"] <= size]
            assert loss == min(rivals)


def test_legends_cover_no_data_and_every_axis_has_labels(drawn):
    for picture in drawn.values():
        figure = picture.figure
        with style.settings():
            figure.draw_without_rendering()
        for axes in figure.axes:
            box = axes.get_window_extent()
            assert all(not box.overlaps(legend.get_window_extent()) for legend in figure.legends), picture.name
            assert axes.get_legend() is None and axes.get_xlabel(), picture.name
            for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
                ticks = zip(axis.get_ticklocs(), axis.get_ticklabels())
                inside = [text for at, text in ticks if text.get_text() and min(low, high) <= at <= max(low, high)]
                assert len(inside) >= 2 or axes.get_ylabel() == "", (picture.name, axis.axis_name)


def test_ticks_of_a_logarithmic_axis_are_round_and_few():
    assert style.ticks(1.1, 9) == [2, 5]
    assert style.ticks(0.0038, 0.0084) == pytest.approx([0.004, 0.005, 0.006, 0.007, 0.008])
    assert len(style.ticks(4.0e9, 4.3e9)) >= 2
    assert style.ticks(8, 1.2e3) == pytest.approx([10, 30, 100, 300, 1000])
    assert style.ticks(1e10, 2e17) == pytest.approx([1e10, 1e12, 1e14, 1e16])


def test_a_law_refused_is_dashed_and_its_caption_says_so(results):
    refused = study_results.parametric(results["points"], refused=["E is not identified"])
    picture = laws.frontier({"points": results["points"], "parametric": refused})
    [line] = [line for line in picture.figure.axes[0].lines if line.get_gid() == "frontier"]
    assert line.get_linestyle() == "--" and "refused" in picture.caption


def test_the_same_results_give_the_same_bytes(results):
    with style.settings():
        once, again = checks.prediction(results), checks.prediction(results)
    assert pictures.files(once) == pictures.files(again)
