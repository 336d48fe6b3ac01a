"""The benchmarks' own arithmetic, and that what the table of workloads names is there."""

from dataclasses import fields
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import contenders, plot
from benchmarks.contenders.common import percentile
from benchmarks.statistics import Spread, ratio
from benchmarks.sustained import curves
from benchmarks.sustained.report import PARTS, findings
from benchmarks.sustained.sampler import Sample, shape
from benchmarks.workloads import WORKLOADS, Ideal, Target

FASTER = Target("per_s", "least", 2.0, ("slow", "slower"))


def rounds(**rates: list[float]) -> list[dict[str, dict[str, float]]]:
    return [
        {name: {"per_s": rate} for name, rate in zip(rates, of_round, strict=True)}
        for of_round in zip(*rates.values(), strict=True)
    ]


def test_a_spread_is_of_all_rounds() -> None:
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 1.0, 5.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 7.0)


def test_a_ratio_is_of_pairs_from_one_round() -> None:
    # The machine was ten times slower in the second round: to the ratio that's nothing.
    found = ratio(FASTER, rounds(aiotasks=[200.0, 30.0, 400.0], slow=[100.0, 10.0, 100.0]))
    assert found is not None
    assert (found.spread.min, found.spread.median, found.spread.max) == (2.0, 3.0, 4.0)
    assert found.reached


def test_of_several_the_best_counts() -> None:
    found = ratio(FASTER, rounds(aiotasks=[30.0], slower=[10.0], slow=[20.0]))
    assert found is not None
    assert (found.reference, found.spread.median, found.reached) == ("slow", 1.5, False)


def test_the_least_is_the_best_of_what_has_to_be_small() -> None:
    target = Target("per_s", "most", 1.5, ("slow", "slower"))
    found = ratio(target, rounds(aiotasks=[12.0], slow=[10.0], slower=[20.0]))
    assert found is not None
    assert (found.reference, found.reached) == ("slow", True)


def test_without_a_reference_the_figure_counts() -> None:
    found = ratio(Target("per_s", "most", 50), rounds(aiotasks=[40.0, 60.0, 45.0]))
    assert found is not None
    assert (found.reference, found.spread.median, found.reached) == (None, 45.0, True)


@pytest.mark.parametrize("measured", [rounds(aiotasks=[1.0]), rounds(slow=[1.0])])
def test_no_ratio_without_both(measured: list[dict[str, dict[str, float]]]) -> None:
    assert ratio(FASTER, measured) is None


@pytest.mark.parametrize(("percent", "value"), [(50, 5.0), (95, 10.0), (100, 10.0), (1, 1.0)])
def test_a_percentile_is_one_of_the_values(percent: float, value: float) -> None:
    assert percentile([float(number) for number in range(10, 0, -1)], percent) == value


def test_an_ideal_is_whole_turns() -> None:
    assert Ideal(0.1, 200).of(2_000) == pytest.approx(1.0)
    assert Ideal(1.0, 10_000).of(200) == 1.0


@pytest.mark.parametrize("name", contenders.names())
def test_contenders_run_workloads_that_there_are(name: str) -> None:
    module = contenders.load(name)
    baselines = {workload.baseline for workload in WORKLOADS.values()} - {None}
    assert set(module.WORKLOADS) <= {*WORKLOADS, *baselines}
    assert set(getattr(module, "STAGES", {})) <= set(module.WORKLOADS)


def test_aiotasks_runs_every_workload_and_every_baseline() -> None:
    baselines = {workload.baseline for workload in WORKLOADS.values()} - {None}
    assert set(contenders.load("aiotasks").WORKLOADS) == {*WORKLOADS, *baselines}


def test_the_floor_is_there_wherever_a_target_names_it() -> None:
    named = {
        name
        for name, workload in WORKLOADS.items()
        if any("floor" in target.of for target in workload.targets)
    }
    assert named == set(contenders.load("floor").WORKLOADS)


def test_the_plot_shows_what_there_is() -> None:
    svg = plot.draw({"drain": {"aiotasks": 20_000.0, "slow": 200.0}, "drain-cpu": {}, "drain-queries": {}})
    texts = [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"aiotasks", "slow", "20,000", "200", "not measured"} <= set(texts)


def samples(**curves: list[float]) -> list[Sample]:
    """Two samples in each part of a run."""
    steady: dict[str, Any] = {
        **dict.fromkeys((field.name for field in fields(Sample)), 1.0),
        "indexes_mb": {"a": 1.0, "b": 2.0},
        "statements_ms": {"claim_jobs": 2.0, "rare": 2.0},
        "calls_per_s": {"claim_jobs": 100.0, "rare": 0.1},
    }
    return [
        Sample(
            **{
                **steady,
                **{name: curve[number] for name, curve in curves.items()},
                "seconds": 30.0 * number + 30,
            }
        )
        for number in range(2 * PARTS)
    ]


def test_the_last_minute_of_twenty_is_compared_with_the_third() -> None:
    rates = [100.0] * 4 + [200.0] * 2 + [0.0] * 32 + [170.0] * 2
    found = {finding.name: finding for finding in findings(samples(finished_per_s=rates))}
    rate = found["finished/s"]
    assert (rate.earlier, rate.last, rate.ratio, rate.reached) == (200.0, 170.0, 0.85, False)
    assert found["indexes, MB"].last == 3.0
    assert "claim_jobs, ms" in found
    assert "rare, ms" not in found
    assert all(finding.reached for finding in found.values() if finding is not rate)


def test_a_size_is_the_highest_of_a_quarter() -> None:
    sizes = [1.0] * 10 + [10.0, 50.0] * 5 + [60.0] * 10 + [10.0, 56.0] * 5
    (found,) = [finding for finding in findings(samples(table_mb=sizes)) if finding.name == "table, MB"]
    assert (found.earlier, found.last, found.reached) == (50.0, 56.0, False)


def test_the_curves_show_all_panels() -> None:
    svg = ElementTree.fromstring(curves.draw(samples(), "a run"))
    texts = {element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {*curves.PANELS, "claim", "20 min"} <= texts


def test_a_statement_is_known_by_what_the_server_keeps_of_it() -> None:
    ours = "SELECT $1::text, 'a', NULL FROM t WHERE s IN ('A', 'B') AND n > 2"
    theirs = "SELECT $1::text, $2, $3\n FROM t WHERE s IN ($4 /*, ... */) AND n > $5"
    assert shape(ours) == shape(theirs)
    assert shape(ours) != shape("SELECT $1::text, $2, $3 FROM t WHERE s = $4 AND n > $5")
