"""Experiments that are held against a paper: their files, and the command from grid to table."""

import shutil
from pathlib import Path

import pytest

from fedsweep.cli import main
from fedsweep.reproduce.reproduce import Experiment, conclude, load_experiment, reproductions
from fedsweep.sweeps.compose import compose
from fedsweep.tracking.describe import trial_params
from fedsweep.tracking.read import read_sweep

TIERS = [
    (name, full)
    for name in reproductions()
    for full in (False, True)
    if load_experiment(name).spec.full or not full
]


@pytest.mark.parametrize(("name", "full"), TIERS)
def test_each_row_is_about_trials_of_its_protocol(name: str, full: bool) -> None:
    """Else a row would say "not run" for good."""
    experiment = load_experiment(name, full)
    trials = [trial_params(trial.config, trial.axes) for trial in experiment.trials(["seed=0"])]
    rows = [row for row in experiment.spec.rows if row.tier in (None, experiment.tier)]
    assert rows
    for row in rows:
        for at in filter(None, (row.at, row.minus, row.over)):
            assert any(at.items() <= params.items() for params in trials), f"{row.what}: {at}"


def test_grids_are_joined_without_duplicates() -> None:
    experiment = load_experiment("niid_bench")
    grids = experiment.protocol.grids
    twice = experiment.spec.model_copy(
        update={"cpu": experiment.protocol.model_copy(update={"grids": (*grids, *grids)})}
    )
    keys = [trial.config.key for trial in experiment.trials([])]
    assert [trial.config.key for trial in Experiment("niid_bench", "cpu", twice).trials([])] == keys
    assert len(set(keys)) == len(keys) == 10


@pytest.mark.parametrize("full", [False, True])
def test_niid_bench_augments_cifar_as_the_baseline_does(full: bool) -> None:
    """Its transform_train: padded by 4 pixels, cropped, mirrored; MNIST and Fashion-MNIST plain."""
    trials = [trial.config for trial in load_experiment("niid_bench", full).trials([])]
    augmented = {trial.dataset.name: set() for trial in trials}
    for trial in trials:
        augmented[trial.dataset.name].add(trial.training.augment)
    plain = {name: {"none"} for name in augmented if name != "cifar10"}
    assert augmented == {**plain, "cifar10": {"crop_flip"}}
    assert plain


def test_an_experiments_trials_can_be_run_alone() -> None:
    trial = load_experiment("ifca_rotated_mnist").trials(["seed=0"])[0]
    assert trial.command.startswith(
        "fedsweep run experiment=ifca_rotated_mnist strategy.num_clusters=4"
    )
    assert compose([word.strip("'") for word in trial.command.split()[2:]]).key == trial.config.key


def test_a_reproduction_from_the_command_to_the_table(
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outputs").mkdir()
    shutil.copy(template, "outputs/mlflow.db")
    command = [
        "reproduce", "gate", "shift=none", "strategy=fedclust", "seed=20", "rounds=1",
        "num_clients=6", "training.epochs=1", "strategy.num_clusters=2", "resources=inline",
    ]  # fmt: skip
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "gate, cpu tier: 1 holds, 14 not run" in first
    assert "Trials: 1 finished." in first
    assert main(command) == 0  # nothing is left to be run; the table is there again
    again = capsys.readouterr().out
    assert "run before: 1 finished" in again
    assert again.endswith(first[first.index("gate, cpu tier") :])
    sweep = read_sweep(compose([]).tracking, "gate")
    run = sweep.trials[0].store.client.get_run(sweep.run_id)
    assert run.data.tags["reproduction"] == "gate, cpu tier: 1 holds, 14 not run"
    assert run.data.tags["mlflow.note.content"].startswith("**gate**: False splits")
    files = {entry.path for entry in sweep.trials[0].store.client.list_artifacts(sweep.run_id)}
    assert {"reproduction.md", "reproduction.csv", "report.md"} <= files
    plan = load_experiment("gate")
    larger = plan.protocol.model_copy(update={"train_images": {"digits": 60000, "mnist": 60000}})
    plan = Experiment("gate", "cpu", plan.spec.model_copy(update={"cpu": larger}))
    [note] = [
        note for note in conclude(plan, plan.trials(command[2:])).notes if note.startswith("NOT")
    ]
    assert note == "NOT the full data: 1,437 training images of digits, the protocol has 60,000."


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gat"], "unknown experiment 'gat'. Did you mean 'gate'?"),
        ([], "name an experiment: cfl, "),
        (["drift"], "experiment 'drift' says nothing to reproduce; those that do: cfl, "),
        (
            ["gate", "--full"],
            "experiment 'gate' has no full protocol beside its only one; leave out --full",
        ),
        (["gate", "rounds=0"], "rounds=0: it has to be a whole number from 1 to 1000000"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1
