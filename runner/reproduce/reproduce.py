"""Reproductions: an experiment's trials are run as a sweep, and held against what the paper says.

``configs/experiment/<name>.yaml`` is the setting that all its trials share. Under ``reproduction``
it says which trials there are (grids, in the grammar of sweeps), in a CPU tier and in the paper's
full protocol, and what should come out.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field, field_validator

from fedsweep import escape
from fedsweep.errors import ConfigError, unknown
from fedsweep.report.text import markdown
from fedsweep.reproduce.expectations import Measured, Row, Tier, Verdict, expand_rows, judge
from fedsweep.sweeps.compose import (
    SweepFile,
    Trial,
    expand_grids,
    option_files,
    options,
    validated,
)
from fedsweep.sweeps.resume import sweep_key
from fedsweep.tracking.describe import trial_params
from fedsweep.tracking.ops import amend
from fedsweep.tracking.past import past_sweep, past_trials
from fedsweep.tracking.read import StoredTrial
from fedsweep.tracking.store import open_store


class Protocol(BaseModel):
    """The trials of one tier."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    note: str = Field(description="what it is; for the CPU tier: in what it differs from the paper")
    train_images: dict[str, int] = Field(
        default_factory=dict, description="data set -> training images that the protocol asks for"
    )
    grids: tuple[SweepFile, ...] = Field(
        min_length=1, description="grids of trials, as in configs/sweep"
    )


class Reproduction(BaseModel):
    """What a file of ``configs/experiment`` says under ``reproduction``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str = Field(description="what is reproduced")
    source: str = Field(description="where the paper's values stand")
    cpu: Protocol = Field(description="under 30 minutes on 2 cores")
    full: Protocol | None = Field(
        None, description="the paper's protocol, where there is more to it"
    )
    rows: tuple[Row, ...] = Field(
        min_length=1, description="what should come out; `each` repeats a row for values"
    )

    @field_validator("rows", mode="before")
    @classmethod
    def _expanded(cls, rows: Any) -> Any:
        return expand_rows(rows)


@dataclass(frozen=True)
class Experiment:
    """A reproduction in one of its tiers."""

    name: str
    tier: Tier
    spec: Reproduction

    @property
    def protocol(self) -> Protocol:
        """The tier's trials."""
        chosen = self.spec.full if self.tier == "full" else self.spec.cpu
        assert chosen is not None
        return chosen

    @property
    def sweep(self) -> str:
        """Name of its sweep in MLflow."""
        return self.name if self.tier == "cpu" else f"{self.name}-full"

    @property
    def description(self) -> str:
        """The note of its sweep in MLflow."""
        return f"{self.spec.about} ({self.tier} tier: {self.protocol.note})"

    def trials(self, words: Sequence[str]) -> list[Trial]:
        """Return the trials of all grids, without duplicates;
        ``words`` are settings or axes of each grid.
        """
        setting = f"experiment={self.name}"
        grids = [
            grid.model_copy(update={"overrides": (setting, *grid.overrides)})
            for grid in self.protocol.grids
        ]
        return expand_grids(grids, words)


def reproductions() -> list[str]:
    """Return the experiments that say what should come out."""
    return [name for name in options("experiment") if "reproduction" in _file(name)]


def load_experiment(name: str, full: bool = False) -> Experiment:
    """Return an experiment in its CPU tier, or as the paper has it.

    Raises
    ------
    ConfigError
        There is no such experiment, it says nothing that could be reproduced, or it has no full
        protocol.
    """
    known = reproductions()
    if name not in options("experiment"):
        raise ConfigError(
            unknown("experiment", name, known)
            if name
            else f"name an experiment: {', '.join(known)}"
        )
    if name not in known:
        raise ConfigError(
            f"experiment '{name}' says nothing to reproduce; those that do: {', '.join(known)}"
        )
    spec = validated(Reproduction, _file(name)["reproduction"], "reproduction.")
    if full and spec.full is None:
        raise ConfigError(
            f"experiment '{name}' has no full protocol beside its only one; leave out --full"
        )
    return Experiment(name, "full" if full else "cpu", spec)


def _file(name: str) -> dict[str, Any]:
    return _loaded(option_files("experiment")[name])


@cache
def _loaded(path: Path) -> dict[str, Any]:
    loaded: Any = OmegaConf.to_container(OmegaConf.load(path))
    return loaded or {}


@dataclass(frozen=True)
class Findings:
    """What came out of an experiment."""

    experiment: Experiment
    trials: Sequence[StoredTrial]
    params: Sequence[Mapping[str, str]]  # of each trial: its settings and axes, by full key

    @cached_property
    def _ended(self) -> list[StoredTrial]:
        return [trial for trial in self.trials if trial.status == "FINISHED"]

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Each row of the tier, judged."""
        both = zip(self.trials, self.params, strict=True)
        trials = [
            Measured(params, cache(partial(_history, trial)))
            for trial, params in both
            if trial.status == "FINISHED"
        ]
        rows = [
            row for row in self.experiment.spec.rows if row.tier in (None, self.experiment.tier)
        ]
        return [judge(row, trials) for row in rows]

    @property
    def lines(self) -> list[list[str]]:
        """The table as it is read, headings first."""
        headings = [
            "what",
            "paper",
            "ours [95% interval]",
            "seeds",
            "unit",
            "tolerance",
            "verdict",
            "source",
        ]
        lines = []
        for verdict in self.verdicts:
            row = verdict.row
            paper = "-" if row.paper is None else f"{row.paper:g}"
            source = row.source or self.experiment.spec.source
            lines.append([
                row.what, paper, verdict.ours, str(verdict.seeds), row.unit, verdict.tolerance,
                verdict.word, source,
            ])  # fmt: skip
        return [headings, *lines]

    @property
    def summary(self) -> str:
        """The verdicts in one line."""
        words = Counter(verdict.word for verdict in self.verdicts)
        counts = [
            f"{words[word]} {word}"
            for word in ("holds", "missed", "not run", "no such seed")
            if words[word]
        ]
        return f"{self.experiment.name}, {self.experiment.tier} tier: {', '.join(counts)}"

    @property
    def notes(self) -> list[str]:
        """What was run: the protocol, the data that were there, the code."""
        failed = len(self.trials) - len(self._ended)
        notes = [
            f"{self.experiment.spec.about}. {self.experiment.tier.upper()} tier: "
            f"{self.experiment.protocol.note}",
            f"Trials: {len(self._ended)} finished"
            + (f", {failed} did not" if failed else "")
            + ".",
        ]
        for name, asked in self.experiment.protocol.train_images.items():
            there = max(self._train_images(name), default=asked)
            if there < asked:
                notes.append(
                    f"NOT the full data: {there:,} training images of {name}, "
                    f"the protocol has {asked:,}."
                )
        tags = [trial.run.data.tags for trial in self._ended]
        commits = sorted({tag.get("mlflow.source.git.commit", "unknown")[:10] for tag in tags})
        changed = any(tag.get("code.changed") == "true" for tag in tags)
        return [
            *notes,
            f"Code: {', '.join(commits)}{' with uncommitted changes' if changed else ''}.",
        ]

    def _train_images(self, dataset: str) -> set[int]:
        of_it = [trial for trial in self._ended if trial.params.get("dataset.name") == dataset]
        profiles = [
            item.dataset.profile for trial in of_it for item in trial.run.inputs.dataset_inputs
        ]
        return {json.loads(profile)["num_train"] for profile in profiles if profile}

    def files(self) -> dict[str, str]:
        """Return the table as Markdown and CSV."""
        notes = "\n\n".join(map(escape.markdown, self.notes))
        text = f"# {escape.markdown(self.summary)}\n\n{markdown(self.lines)}\n{notes}\n"
        headings, *rest = self.lines
        table = pd.DataFrame(rest, columns=headings)
        return {"reproduction.md": text, "reproduction.csv": table.to_csv(index=False)}


def conclude(experiment: Experiment, trials: Sequence[Trial]) -> Findings:
    """Judge the trials as the tracking store has them, and keep the table with the sweep's run."""
    store = open_store(trials[0].config.tracking)
    runs = past_trials(store, experiment.sweep, [trial.config.key for trial in trials])
    stored = {
        key: StoredTrial(store, store.client.get_run(run.run_id)) for key, run in runs.items()
    }
    there = {trial.config.key: trial_params(trial.config, trial.axes) for trial in trials}
    outcome = Findings(experiment, list(stored.values()), [there[key] for key in stored])
    sweep = past_sweep(store, experiment.sweep, sweep_key(trials))
    if sweep:
        amend(store, sweep.run_id, outcome.files(), {"reproduction": outcome.summary})
    return outcome


def _history(trial: StoredTrial, metric: str) -> pd.DataFrame:
    return trial.history([metric])
