"""Searches of sweeps, in this process against a real SQLite store: what is run, reported, refused.

What a search decides is tested in test_search.py; drivers that are killed outright in tests/ray.
"""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console

import fedsweep
from fedsweep.cli import main
from fedsweep.config import TrackingConfig
from fedsweep.errors import ConfigError
from fedsweep.figures.canvas import strategy_colour
from fedsweep.records import RoundRecord
from fedsweep.report.report import report, table_of
from fedsweep.report.searched import Searched, TriedHere, Tuning
from fedsweep.report.searches import importance
from fedsweep.sweeps.compose import compose, planned
from fedsweep.sweeps.searching import plan_search
from fedsweep.sweeps.sweep import Outcome, SweepPlan, run_sweep
from fedsweep.sweeps.views import LineView
from fedsweep.tracking.read import StoredSweep, read_sweep
from fedsweep.tracking.runs import TrialRun

WORDS = [
    "strategy=fedavg,ditto", "seed=0,1", "num_clients=2", "rounds=2", "model=logreg",
    "resources.engine=inline", "tracking.log_models=false", "tracking.figures=none",
]  # fmt: skip
SEARCH = [
    "search.space.training.lr=loguniform:1e-3:1", "search.space.strategy.ditto_lambda=0.1,1",
    "search.budget=32", "search.race=0.3", "search.generation=4", "search.min_rounds=1",
    "search.sampler=random", "search.most_replicates=3",
]  # fmt: skip


def plan_of(*words: str) -> SweepPlan:
    called = planned("", words, "hunt")
    search = plan_search(called.search, called.trials, called.ranged)
    return SweepPlan(called.name, called.description, called.command, called.trials, search=search)


class Place:
    """A folder with a store, in which a sweep is run again and again."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def run(self, *words: str) -> tuple[Outcome, str]:
        text = io.StringIO()
        plan = plan_of(*WORDS, *SEARCH, f"tracking.output={self.out}", *words)
        outcome, _ = run_sweep(plan, LineView(Console(file=text, width=300)))
        return outcome, text.getvalue()

    @property
    def sweep(self) -> StoredSweep:
        return read_sweep(TrackingConfig(output=str(self.out)), "hunt")

    def runs(self) -> list[Run]:
        client = MlflowClient(f"sqlite:///{self.out}/mlflow.db")
        experiment = client.get_experiment_by_name("fedsweep").experiment_id
        return list(client.search_runs([experiment], "tags.kind = 'trial'"))


@pytest.fixture(scope="module")
def whole(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A search that nothing disturbed."""
    place = Place(tmp_path_factory.mktemp("whole"))
    shutil.copy(template, place.out / "mlflow.db")
    outcome, _ = place.run()
    assert outcome.exit_status == 0
    return place


def test_only_winners_on_fresh_seeds_are_reported_with_their_gain(whole: Place) -> None:
    """The numbers of each row, worked out from the runs of the trials themselves."""
    final = {
        run.data.tags["trial.key"]: run.data.metrics["0_final/client_acc"] for run in whole.runs()
    }
    searched = Searched.from_json(whole.sweep.searched)
    rows = {(row.axes["strategy"], row.axes["seed"]): row.metrics for row in whole.sweep.rows()}
    assert [*rows] == [(s, seed) for s in ("fedavg", "ditto") for seed in "01"]
    for tuning in searched.tunings:
        method = tuning.place["strategy"]
        assert tuning.winner is not None
        best = tuning.tried[tuning.winner]
        for seed in "01":
            at = [w for w in (*WORDS, f"strategy={method}", f"seed={seed}") if "," not in w]
            tuned = [f"{key}={value}" for key, value in best.values.items()]
            default, ours = final[compose(at).key], final[compose([*at, *tuned]).key]
            row = rows[method, seed]
            assert (row["client_acc"], row["tuning_default"]) == (ours, default)
            assert row["tuning_gain"] == ours - default
            assert row["tuning_cost"] == tuning.spent <= 32
            assert (tuning.fresh[seed], tuning.at_default[seed]) == (ours, default)
        # Its scores are those of ordinary trials, on seeds that are not reported.
        for one in tuning.tried:
            for rounds, scores in one.scores.items():
                for seed, score in scores.items():
                    assert seed in ("1000", "1001", "1002")
                    words = [w for w in (*WORDS, f"strategy={method}") if "," not in w]
                    words += [f"{key}={value}" for key, value in one.values.items()]
                    key = compose([*words, f"seed={seed}", f"rounds={rounds}"]).key
                    assert final[key] == score


def test_each_method_is_searched_over_what_it_has(whole: Place) -> None:
    fedavg, ditto = Searched.from_json(whole.sweep.searched).tunings
    assert fedavg.space == {"training.lr": "loguniform(0.001,1)"}
    assert ditto.space == {**fedavg.space, "strategy.ditto_lambda": "choice(0.1,1)"}
    assert fedavg.tried[0].values == {"training.lr": 0.02}  # the default comes first
    assert ditto.tried[0].values == {"training.lr": 0.02, "strategy.ditto_lambda": 0.1}
    assert any(not one.complete for one in fedavg.tried)
    tags = [run.data.tags for run in whole.runs() if "search.of" in run.data.tags]
    assert {tag["search.of"] for tag in tags} == {"strategy=fedavg", "strategy=ditto"}
    assert {int(tag["search.proposal"]) for tag in tags} == {*range(len(ditto.tried))}


def test_a_search_that_ended_is_not_run_again(whole: Place) -> None:
    before = len(whole.runs())
    again, text = whole.run()
    assert f"run before: {before} finished, 0 failed; 0 to run" in text
    assert len(whole.runs()) == before
    assert again.rows == [
        type(row)(row.axes, {k: v for k, v in row.metrics.items() if k in again.rows[0].metrics})
        for row in whole.sweep.rows()
    ]


def test_a_search_that_is_interrupted_comes_to_the_same_end(
    whole: Place, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver ends at every sixth trial, which is not logged whole."""
    place = Place(tmp_path)
    shutil.copy(template, place.out / "mlflow.db")
    finish = TrialRun.finish
    for _ in range(100):
        left = [5]

        def dying(self: TrialRun, result: object, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            finish(self, result)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(TrialRun, "finish", dying)
            outcome, text = place.run()
        if outcome.exit_status == 0:
            break
        assert outcome.exit_status == 130
        assert "the search did not; to go on, run the same command again:" in text
        assert outcome.searching
        if any(row.metrics for row in place.sweep.rows()):
            table = table_of(place.sweep).table
            assert "NOT WHOLE: the search did not end; these are default settings." in table.caption
    assert place.sweep.searched == whole.sweep.searched
    keys = [sorted(run.data.tags["trial.key"] for run in of.runs()) for of in (place, whole)]
    assert keys[0] == keys[1]


def test_a_store_that_falls_silent_does_not_end_a_search(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What earlier sessions did is read once, at the start: not again for each few proposals."""
    shutil.copy(template, tmp_path / "mlflow.db")
    log = TrialRun.round

    def silent(*words: object, **named: object) -> None:
        raise ConnectionError("unreachable")

    def round_(self: TrialRun, record: RoundRecord) -> None:
        monkeypatch.setattr("fedsweep.tracking.past._search", silent)
        log(self, record)

    monkeypatch.setattr(TrialRun, "round", round_)
    plan = plan_of(
        *(word for word in WORDS if not word.startswith(("strategy=", "seed="))),
        "strategy=fedavg",
        "seed=0",
        "search.space.training.lr=loguniform:1e-3:1",
        "search.budget=16",
        "search.sampler=random",
        f"tracking.output={tmp_path}",
    )
    outcome, _ = run_sweep(plan, LineView(Console(file=io.StringIO(), width=300)))
    assert (outcome.exit_status, outcome.searching) == (0, False)


def test_losers_leave_no_checkpoint(whole: Place) -> None:
    """Only reported trials and defaults keep their last one, as in any sweep."""
    [folder] = (whole.out / "checkpoints").iterdir()
    kept = {path.name for path in folder.iterdir() if any(path.iterdir())}
    fresh = {
        run.data.tags["trial.key"] for run in whole.runs() if run.data.params["seed"] in ("0", "1")
    }
    assert kept == fresh


def test_a_failed_run_is_the_worst_and_counts(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every trial with a rate above .1 dies: none of them wins, and each is told."""
    from fedsweep.errors import TrialError
    from fedsweep.sweeps import kinds

    run_trial = kinds.run_trial

    def dying(config: fedsweep.config.RunConfig, *args: object, **kwargs: object) -> object:
        if config.training.lr > 0.1:
            raise TrialError("on purpose")
        yield from run_trial(config, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(kinds, "run_trial", dying)
    place = Place(tmp_path)
    shutil.copy(template, place.out / "mlflow.db")
    words = ["strategy=fedavg", "seed=0", "search.space.strategy.ditto_lambda=0.1,1"]
    with pytest.raises(ConfigError, match="applies to none of the 1 methods"):
        plan_of(*WORDS, *SEARCH, *words)
    out = f"tracking.output={tmp_path}"
    some = [w for w in SEARCH if "ditto" not in w]
    plan = plan_of(*WORDS, *some, "strategy=fedavg", "seed=0", "resources.max_retries=0", out)
    outcome, _ = run_sweep(plan, LineView(Console(file=io.StringIO())))
    [tuning] = Searched.from_json(place.sweep.searched).tunings
    assert outcome.exit_status == 1
    assert tuning.chosen["training.lr"] <= 0.1
    lost = [one for one in tuning.tried if one.values["training.lr"] > 0.1]
    assert lost
    assert all(one.mean() is None and not one.complete for one in lost)
    assert len(outcome.failures) == sum(len(s) for one in lost for s in one.scores.values())


def test_the_report_tells_of_the_search(whole: Place) -> None:
    files = report(whole.sweep).files
    assert {
        "plots/search_history.png", "plots/search_proposals.png", "plots/search_importance.png",
        "plots/search_learning_rate.png",
    } <= {*files}  # fmt: skip
    told = str(files["report.md"])
    assert "## Tuning" in told
    assert "gain of tuning (points)" in told
    assert "the test set was not looked at" in told
    assert " is missing: " not in told
    assert '<h2 id="tuning">' in bytes(files["index.html"]).decode()  # type: ignore[arg-type]


def test_the_best_is_exported_as_a_file_that_gives_the_same_trials(
    whole: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "winner.yaml"
    assert main(["best", "hunt", f"tracking.output={whole.out}", "--export", str(file)]) == 0
    assert f"fedsweep sweep {file}" in capsys.readouterr().out
    rows = whole.sweep.rows()
    means = {
        method: fmean(r.metrics["client_acc"] for r in rows if r.axes["strategy"] == method)
        for method in ("fedavg", "ditto")
    }
    best = max(means, key=means.__getitem__)
    keys = {trial.config.key for trial in planned(str(file), [], "").trials}
    shown = zip(whole.sweep.trials, whole.sweep.places, strict=True)
    assert keys == {
        trial.run.data.tags["trial.key"] for trial, at in shown if at["strategy"] == best
    }


def test_python_gives_the_same_sweep(whole: Place) -> None:
    """In Python's own words it is the same sweep, of which nothing is left to run."""
    before = len(whole.runs())
    results = fedsweep.sweep(
        *[word for word in (*WORDS, *SEARCH) if not word.startswith("search.space")],
        settings={
            "search.space.training.lr": "loguniform(1e-3,1)",
            "search.space.strategy.ditto_lambda": "choice(0.1,1)",
            "tracking.output": str(whole.out),
        },
        name="hunt",
        show="quiet",
    )
    assert len(whole.runs()) == before
    table = results.table()
    assert {"tuning_gain_mean", "tuning_default_mean", "tuning_cost_mean"} <= {*table}


def tuning(method: str, fresh: list[float], default: list[float]) -> Tuning:
    first, second = ({str(i): v for i, v in enumerate(of)} for of in (fresh, default))
    tried = [TriedHere(0, 0, {"training.lr": 0.1}, True, {"2": {"1000": fmean(fresh)}})]
    space, at = {"training.lr": "loguniform(0.001,1)"}, {"training.lr": 0.02}
    place = {"partition": "iid", "strategy": method}
    return Tuning(place, 0, space, at, tried, 0, 8.0, "", {}, first, second)


def test_importance_is_drawn_in_per_cent_in_the_colour_of_its_method() -> None:
    from matplotlib.colors import to_rgba

    shares = {"training.lr": 0.75, "strategy.ditto_lambda": 0.25}
    ditto = replace(tuning("ditto", [0.9], [0.8]), space=dict.fromkeys(shares, ""))
    ditto = replace(ditto, importance=shares)
    nobody = replace(ditto, place={"partition": "iid"})
    bars = importance([ditto, nobody]).axes[0].patches
    assert [bar.get_width() for bar in bars] == [75.0, 25.0] * 2
    colours = [bar.get_facecolor() for bar in bars]
    assert colours[0] == colours[1] == to_rgba(strategy_colour("ditto"))
    assert colours[2] == colours[3] == to_rgba("#0072B2")


def test_a_ranking_that_tuning_turns_round_is_said() -> None:
    """A is clearly first at defaults, B is tuned, but not clearly; C is last both times."""
    a = tuning("a", [0.90, 0.92, 0.91], [0.80, 0.82, 0.81])
    b = tuning("b", [0.93, 0.91, 0.92], [0.70, 0.725, 0.71])
    c = tuning("c", [0.50, 0.52, 0.51], [0.40, 0.42, 0.41])
    searched = Searched("client_acc", "client_rounds", 8.0, "tpe", [1000], [a, b, c])
    [told] = searched.reversals()
    assert "differs from that at defaults (iid). Tuned: b > a > c. At defaults: a > b > c." in told
    assert "Changed places: b over a (not clear tuned and clear at defaults);" in told
    near = [
        tuning("a", [0.9, 0.8, 0.7], [0.5, 0.7, 0.7]), tuning("b", [0.8, 0.9, 0.8], [0.6] * 3)
    ]  # fmt: skip
    alike = Searched("client_acc", "client_rounds", 8.0, "tpe", [1000], near)
    assert "Changed places: no pair clearly;" in alike.reversals()[0]
    same = Searched("client_acc", "client_rounds", 8.0, "tpe", [1000], [a, c])
    assert same.reversals() == [
        "The ranking of the methods is the same tuned and at defaults (iid)."
    ]
    assert Searched.from_json(searched.to_json()).to_json() == searched.to_json()
    lost = replace(b, fresh={**b.fresh, "1": None})
    partly = Searched("client_acc", "client_rounds", 8.0, "tpe", [1000], [a, lost, c])
    assert partly.reversals() == [
        "Not ranked, as a run failed or diverged (iid): b.",
        "The ranking of the methods is the same tuned and at defaults (iid).",
    ]


def test_the_table_of_searches_by_hand() -> None:
    """Means .91 and .81; a repeat's winner has .93 on the same seeds: apart by two points."""
    first = tuning("a", [0.90, 0.92, 0.91], [0.80, 0.82, 0.81])
    again = tuning("a", [0.92, 0.94, 0.93], [0.80, 0.82, 0.81])
    both = [first, replace(again, repeat=1)]
    searched = Searched("client_acc", "client_rounds", 8.0, "tpe", [1000], both)
    headings, line = searched.lines()
    assert dict(zip(headings, line, strict=True)) == {
        "search": "a, iid", "proposals": "1", "stopped early": "0", "cost (client-rounds)": "8",
        "chosen": "lr=0.1", "searched": "91.0", "fresh seeds": "91.0", "at defaults": "81.0",
        "gain (points)": "+10.0", "spread over repeats (points)": "2.0 of 2",
    }  # fmt: skip
    lost = replace(first, winner=None, fresh={"0": None})
    alone = Searched("client_acc", "client_rounds", 8.0, "tpe", [1000], [lost])
    assert alone.lines()[1][4:] == ["lr=0.02 (default)", "-", "-", "81.0", "-"]
    assert "No proposal had a finite score, the default stands: a, iid." in alone.remarks()


def test_a_method_has_the_same_search_in_any_grid() -> None:
    """Neither other axes, nor the order of words, nor the fresh seeds change what is proposed."""

    def proposed(*words: str) -> list[object]:
        plan = plan_of(*[word for word in WORDS if "seed=" not in word], *words)
        assert plan.search is not None
        [ditto, *_] = [s for s in plan.search.subjects if s.place["strategy"] == "ditto"]
        course = ditto.course(plan.search.config, 0)
        first = next(course.steps())
        return [(ask, course.values(ask.proposal)) for ask in first]

    expected = proposed(*SEARCH, "seed=0,1")
    assert len(expected) == 8
    assert proposed(*reversed(SEARCH), "partition=iid,dirichlet", "seed=3") == expected
    assert proposed("strategy=ditto,local", *SEARCH, "seed=0,1") == expected
    assert proposed(*SEARCH, "seed=0,1", "training.momentum=0.5") != expected
    assert proposed(*SEARCH, "seed=0,1", "search.seed=1") != expected


# What is refused, before anything starts.

LRS = "search.space.training.lr=loguniform:1e-3:1"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ["search.space.training.lr=loguniform:1e-3:2000"],
            "search.space.training.lr=loguniform(0.001,2000): training.lr=2000.0: it has to be "
            "a number above 0 and at most 1000 (in the search of strategy=fedavg)",
        ),
        ([LRS, "search.budget=7"], "search.budget=7 is too small for one proposal"),
        ([LRS, "training.lr=0.1,0.2"], "and training.lr is an axis of the grid"),
        ([LRS, "search.metric=acc"], "decided on what clients hold out, and nothing else"),
        (
            [LRS, "search.metric=client_balanced_acc"],
            "search.metric=client_balanced_acc is logged on request; set metrics=[balanced_acc]",
        ),
        (
            [LRS, "partition.eval_fraction=0"],
            "search.metric=client_acc is never logged: no client holds out examples",
        ),
        (["search.space.training.lrr=0.1,1"], "unknown key 'training.lrr'"),
        (
            ["search.space.strategy.personal_epoch=1,2", "strategy=fedavg,ditto"],
            "Did you mean 'strategy.personal_epochs'? Valid: strategy.ditto_lambda, ",
        ),
        (["search.space.strategy.ditto_lambda=0.1,1", "strategy=fedavg"], "applies to none"),
        (["search.space.partition.alpha=0.1,1"], "it is what has to be solved"),
        (["search.space.rounds=1,2"], "it is what has to be solved"),
        (
            [
                "search.space.privacy.noise_multiplier=0.1,1",
                "privacy=fixed_server",
                "strategy=fedavg",
                "privacy.strict=false",
            ],
            "it is what has to be solved",
        ),
        (["search.space.resources.trials=1,2"], "it says where trials run"),
        (["search.space.strategy=fedavg,ditto"], "is an axis of the grid"),
        (["search.space.model=mlp,lenet"], "is a group of settings"),
        (["search.space.krum/training.lr=0.1,1"], "unknown strategy of this grid 'krum'"),
        ([LRS, "search.first_seed=1"], "seed=1 is one of the grid"),
        ([LRS, "search.sampler=cmaes"], "search.sampler=cmaes needs two numbers to search"),
        ([LRS, "search.sampler=best"], "search.sampler='best'"),
        ([LRS, "search.min_rounds=2"], "search.min_rounds=2 is not less than rounds=2"),
        (
            [LRS, "search.min_rounds=1", "checkpoint.keep=false"],
            "search.min_rounds with checkpoint.keep=false",
        ),
        ([LRS, "search.unit=virtual_s"], "no time passes; set devices"),
        (
            [LRS, "search.unit=epsilon"],
            "a search has none to spend: it chooses by scores that clients tell without noise, "
            "and its runs share their seeds' noise; take one of client_rounds, virtual_s, ",
        ),
        ([LRS, "search.budgets=3"], "unknown key 'search.budgets'. Did you mean 'budget'?"),
        ([LRS, "search.budget=1,2"], "has several values, and a sweep has one search"),
        (["search.budget=100"], "there is nothing to search; give search.space=auto"),
        ([LRS, "search.space.training.lr=normal(0,1)"], "is no range to search"),
        (
            [LRS, "training.momentum=0.8,0.9", "halving.axis=training.momentum"],
            "beside a search, which has rungs of its own",
        ),
    ],
)
def test_what_is_refused_in_one_line(
    words: list[str], why: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = f"tracking.output={tmp_path}"
    line = ["sweep", *WORDS, "search.budget=64", *words, out, "--name", "hunt"]
    assert main(line) == 2
    told = capfd.readouterr().err
    assert why in told
    assert told.count("\n") == 1, told
    assert [*tmp_path.iterdir()] == []


def test_a_budget_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *WORDS, LRS, "--dry-run"]) == 2
    assert "search.budget" in capfd.readouterr().err


def test_a_dry_run_tells_what_is_searched(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["search.space=auto", "search.budget=64", "search.space.fedavg/training.lr=0.1,1"]
    assert main(["sweep", *WORDS, *words, "--dry-run"]) == 0
    told = capfd.readouterr().err
    assert "64 client-rounds for each of 2 methods and problems (128 in all), by tpe on" in told
    assert "strategy=fedavg is searched over training.lr=choice(0.1,1)" in told
    space = "strategy.ditto_lambda=loguniform(0.003333,3), training.lr=loguniform(0.0006667,0.6)"
    assert f"strategy=ditto is searched over {space}" in told


def test_what_a_search_does_to_a_guarantee_is_said() -> None:
    private = [word for word in WORDS if "strategy=" not in word]
    private += [
        "strategy=fedavg",
        "privacy=fixed_server",
        "privacy.noise_multiplier=1",
        "privacy.strict=false",
    ]
    [note] = plan_of(*private, LRS, "search.budget=64").search.notes()  # type: ignore[union-attr]
    assert note.endswith("and no epsilon covers that: fedavg")
    assert note in plan_of(*private, LRS, "search.budget=64").search.remarks()  # type: ignore[union-attr]
    told = Searched("client_acc", "client_rounds", 8.0, "tpe", [1000], [], [note]).remarks()
    assert f"T{note[1:]}." in told


def test_a_file_says_the_same_and_words_change_it(tmp_path: Path) -> None:
    file = tmp_path / "tuned.yaml"
    file.write_text(
        "overrides: [num_clients=2, rounds=2]\n"
        "axes: {strategy: [fedavg, ditto], seed: [0, 1]}\n"
        "search:\n"
        "  budget: 64\n"
        "  space: {training.lr: 'loguniform(1e-3,1)', strategy.ditto_lambda: [0.1, 1]}\n"
    )
    called = planned(str(file), ["search.budget=80", "search.space.training.lr=0.1,0.2"])
    plan = plan_search(called.search, called.trials, called.ranged)
    assert plan is not None
    assert plan.config.budget == 80
    alone = planned(str(file), ["strategy=fedavg"])  # a range of the file may apply to nobody
    told = plan_search(alone.search, alone.trials, alone.ranged)
    assert told is not None
    assert "search.space.strategy.ditto_lambda applies to none of them" in told.remarks()
    fedavg, ditto = plan.subjects
    assert {key: str(of) for key, of in fedavg.space.items()} == {"training.lr": "choice(0.1,0.2)"}
    assert str(ditto.space["strategy.ditto_lambda"]) == "choice(0.1,1)"
    assert json.loads(plan.told["space"]) == {
        "training.lr": "choice(0.1,0.2)", "strategy.ditto_lambda": "choice(0.1,1)",
    }  # fmt: skip
