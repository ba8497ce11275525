import json
from pathlib import Path
from typing import Any

import pytest
from toys import draws

from minitrain.lab.claims import Claim
from minitrain.lab.compare import Result, Runs, difference, final
from minitrain.lab.records import (
    is_stale,
    make_record,
    measured,
    read_record,
    rounded,
    runs_of,
    table,
    write_record,
)
from minitrain.lab.words import plus_minus
from minitrain.recipe import describe


def some_runs(rates: tuple[float | None, ...] = (None,)) -> Runs:
    results = {
        (arm, lr, seed): Result(arm, lr, seed, draws(seed, add))
        for arm, add in (("A", 0.0), ("B", 1.0))
        for lr in rates
        for seed in range(3)
    }
    return Runs(
        {"A": describe(draws), "B": describe(draws)},
        {},
        [0, 1, 2],
        list(rates),
        results,
        {"torch": "2", "device": "cpu"},
    )


MEASURES = {"x, units": final("x")}
CLAIMS = [Claim("more", "B is more", lambda runs: difference(runs, "B", "A", final("x")), above=0.5)]


def a_record(**changes: Any) -> dict[str, Any]:
    return make_record("toy", "record", some_runs(), MEASURES, CLAIMS) | changes


def test_a_record_survives_its_file_and_gives_the_same_verdicts(tmp_path: Path):
    record = a_record()
    write_record(tmp_path / "toy.json", record)
    back = read_record(tmp_path / "toy.json")
    assert back == json.loads(json.dumps(record))
    again = make_record("toy", "record", runs_of(back), MEASURES, CLAIMS)
    assert again["claims"] == back["claims"]
    assert again["measures"] == back["measures"]
    assert back["claims"][0]["verdict"] == "holds"


def test_a_record_is_written_alike_and_in_lines(tmp_path: Path):
    for name in ("a", "b"):
        write_record(tmp_path / name, a_record())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sum(line.startswith('  {"arm"') for line in (tmp_path / "a").read_text().splitlines()) == 6


def test_a_record_holds_no_dates_or_hosts():
    text = json.dumps(a_record())
    assert str(Path.home()) not in text
    assert "/" not in a_record()["command"]
    assert set(a_record()["environment"]) == {"python", "numpy", "torch", "device", "cpu"}


def test_numbers_are_rounded_before_they_are_judged():
    runs = rounded(some_runs())
    assert all(float(f"{x:.6g}") == x for x in runs.values("A", final("x")))
    nested = Runs(
        {}, {}, [0], [None], {("A", None, 0): Result("A", None, 0, [{"step": 3, "r": {"p": [1 / 3]}, "s": "t"}])}, {}
    )
    assert rounded(nested).results["A", None, 0].metrics == [{"step": 3, "r": {"p": [0.333333]}, "s": "t"}]


def test_measures_leave_out_arms_that_have_no_such_number():
    runs = some_runs()
    runs.results["B", None, 1] = Result("B", None, 1, crashed="why")
    assert [(m["name"], m["arm"]) for m in measured(runs, {"x": final("x"), "y": final("y")})] == [("x", "A")]


def test_the_table_shows_mean_and_standard_error():
    text = table(a_record())
    assert text.splitlines()[0].split() == ["arm", "x,", "units"]
    assert plus_minus(a_record()["measures"][0]["values"]) in text
    swept = make_record("toy", "quick", some_runs((0.1, 0.2)), MEASURES, [])
    assert [line.split()[1] for line in table(swept).splitlines()[1:]] == ["0.1", "0.2", "0.1", "0.2"]


def test_a_record_is_stale_when_the_code_it_reaches_has_changed(monkeypatch: pytest.MonkeyPatch):
    record = a_record()
    assert is_stale(record) is False
    assert is_stale({**record, "source": "0" * 16}) is True
    assert is_stale({**record, "source": "0" * 16, "source_of_first_seed": record["source"]}) is False
    assert is_stale({**record, "environment": {**record["environment"], "python": "3.99"}}) is None


def test_missing_and_damaged_records_say_what_to_do(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="--preset record"):
        read_record(tmp_path / "none.json")
    whole = a_record()
    claim = {key: x for key, x in whole["claims"][0].items() if key != "verdict"}
    parts: list[Any] = [{key: x for key, x in whole.items() if key != lost} for lost in ("claims", "runs", "seeds")]
    for bad in ("{", "[" * 100_000, [1], None, *parts, whole | {"runs": [3]}, whole | {"claims": [claim]}):
        (tmp_path / "bad.json").write_text(bad if isinstance(bad, str) else json.dumps(bad))
        with pytest.raises(ValueError, match="damaged"):
            read_record(tmp_path / "bad.json")
