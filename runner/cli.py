"""The command line, one function a command. Thin: it reads words, calls, prints.

What a command needs is imported by it: Flower, Hydra, NumPy and pandas take seconds, and neither
``--help`` nor a word that no command has waits for them.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import TYPE_CHECKING, Any, NoReturn

from fedsweep import __version__, escape
from fedsweep.environ import environ, keep, variable
from fedsweep.errors import ConfigError, RunnerError, no_room, shown
from fedsweep.output import amount, guarded_output, say
from fedsweep.paths import component
from fedsweep.sweeps.interrupts import hang_up

if TYPE_CHECKING:
    from fedsweep.report.choice import Choice
    from fedsweep.sweeps.compose import Planned, Trial
    from fedsweep.sweeps.searching import SearchPlan
    from fedsweep.sweeps.sweep import SweepPlan
    from fedsweep.sweeps.views import ViewMode

EXAMPLES = """\
examples:
  fedsweep run dataset=mnist partition=dirichlet partition.alpha=0.1 strategy=kmeans \
strategy.num_clusters=4
  fedsweep sweep default seed=0,1,2
  fedsweep sweep mnist_cifar10 data.root=DATA --address auto
  fedsweep sweep default strategy=fedavg,kmeans --dry-run
  fedsweep sweep strategy=fedavg,kmeans partition.alpha=0.1,1 seed=0,1,2 --name mine
  fedsweep config dataset=cifar10 model=lenet
"""
MORE = """
`fedsweep run --help` lists the groups and their options, `fedsweep best --help` the metrics.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status.

    It is 0, 1 (a trial failed, a report or output is missing), 2 (bad input), 3 (storage took no
    more) or 130 (interrupted); docs/sweeps.md says more of each.
    """
    if "" not in sys.path:  # networks of the user's own are named by their dotted paths
        sys.path.append("")
    with guarded_output() as (out, err):
        try:
            status = _main(argv)
        except SystemExit as end:  # argparse has said what there is to say
            status = int(end.code or 0)
        out.flush()
        if out.lost:
            say(f"standard output is not complete: {out.lost}", err)
        return status or int(bool(out.lost))


def _main(argv: Sequence[str] | None) -> int:
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    before.add_argument("--config-dir", default=variable("FEDSWEEP_CONFIG"))
    try:  # help lists what is there, too
        folder = before.parse_known_args(argv)[0].config_dir
    except argparse.ArgumentError:  # said below
        folder = ""
    with environ({"FEDSWEEP_CONFIG": folder}):
        return _command(argv)


def _command(argv: Sequence[str] | None) -> int:
    try:
        args, words = _parser().parse_known_args(argv)
        args.line = list(sys.argv[1:] if argv is None else argv)
        unknown_flags = [word for word in (*words, *args.words) if word.startswith("-")]
        if unknown_flags:
            see = f"see `fedsweep {args.command} --help`"
            raise RunnerError(f"unknown option '{shown(unknown_flags[0])}'; {see}")
        with hang_up():
            return int(args.call(args, [*args.words, *words]))
    except RunnerError as error:
        say(f"error: {error}", sys.stderr)
        return 3 if no_room(error) else 2
    except KeyboardInterrupt:
        say("interrupted", sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """Says in one line what it can't read, and takes no option for the start of its name.

    ``listed`` makes what its help ends with: only when somebody asks for it.
    """

    def __init__(self, listed: Callable[[], str] | None = None, **options: object) -> None:
        super().__init__(allow_abbrev=False, **options)  # type: ignore[arg-type]
        self._listed = listed

    def format_help(self) -> str:
        """Return the help, with what there is."""
        if self._listed is not None:
            self.epilog = self._listed()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise ConfigError(f"{shown(message, 300)}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fedsweep",
        description=(
            "Sweeps of (clustered) federated-learning experiments on Ray, tracked in MLflow."
        ),
        epilog=EXAMPLES + MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fedsweep {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, call: object, help_text: str, listed: Callable[[], str] | None = None
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = commands.add_parser(
            name,
            help=help_text,
            description=help_text,
            listed=listed,
            formatter_class=parser.formatter_class,
        )
        sub.set_defaults(call=call)
        return sub

    # What runs trials.
    run = command("run", _run, "run one trial", _groups_help)
    sweep = command("sweep", _sweep, "run a grid of trials", _groups_help)
    sweep.add_argument(
        "sweep",
        metavar="SWEEP",
        nargs="?",
        default="",
        help="one of those below, or a file such as ./study.yaml; without it the axes are those of "
        "the words alone",
    )
    sweep.add_argument("--name", help="what the sweep is called; default: as its file, or adhoc")
    reproduce = command(
        "reproduce",
        _reproduce,
        "run an experiment and hold it against the paper's numbers",
        _groups_help,
    )
    reproduce.add_argument(
        "name", nargs="?", default="", help="a file of configs/experiment that says what to expect"
    )
    reproduce.add_argument(
        "--full", action="store_true", help="the paper's protocol, not the tier for two CPU cores"
    )
    app = command("app", _app, "run a Flower app, as it is, as a sweep over its run config")
    app.add_argument("path", metavar="PATH", help="its folder, with the pyproject.toml")
    app.add_argument("--name", help="what the sweep is called; default: as the app's project")
    app.add_argument(
        "--run-config",
        action="append",
        default=[],
        metavar="'KEY=VALUE ...'",
        help="settings of all trials in a text as `flwr run` takes them, or a TOML file",
    )
    app.add_argument(
        "--check",
        action="store_true",
        help="run the first trial twice, on one host and on two: say what differs first",
    )
    for sub in (sweep, reproduce, app):
        sub.add_argument(
            "--dry-run", action="store_true", help="list the trials and their count, run nothing"
        )
        sub.add_argument(
            "--retry-failed",
            action="store_true",
            help="let failed trials go on from their checkpoint",
        )
    for sub in (run, sweep, reproduce, app):
        _add_modes(
            sub,
            "only failures and interruptions, on stderr",
            "events and results as JSON, an object a line",
        )
        sub.add_argument(
            "--fresh", action="store_true", help="start over: what was run before counts no longer"
        )
        sub.add_argument(
            "--take-over",
            action="store_true",
            help="go on with what a driver of another machine left",
        )
    config = command("config", _config, "print the resolved configuration of a trial", _groups_help)
    for sub in (run, sweep, reproduce, app):
        sub.add_argument("--address", help="Ray cluster to run on (auto: the one that runs here)")
    for sub in (run, sweep, config, reproduce):
        sub.add_argument(
            "--config-dir",
            metavar="DIR",
            help="folder with sweep/, experiment/, dataset/, ... of one's own; else "
            "$FEDSWEEP_CONFIG",
        )
        sub.add_argument(
            "words",
            nargs="*",
            metavar="GROUP=OPTION|key=value",
            help="settings; a=1,2 makes an axis",
        )

    app.add_argument(
        "words",
        nargs="*",
        metavar="run_config.KEY=VALUE|seed=0,1",
        help="settings of the app, num_clients, seed, resources, tracking; a=1,2 makes an axis",
    )

    # What reads them back.
    report = command(
        "report", _report, "tables and figures of a sweep, with intervals and tests over the seeds"
    )
    report.add_argument(
        "sweep",
        metavar="SWEEP",
        help="name of a sweep (its latest run), the id of its run, or a file such as "
        "./report.yaml, which holds these options and the sweep's name",
    )
    _add_choice(report)
    _add_modes(report, "write the files, print nothing", "the table and the files' names as JSON")
    report.add_argument(
        "--out", type=Path, help="folder to write to; default: reports/ under tracking.output"
    )
    compare = command(
        "compare",
        _compare,
        "trials side by side: where they differ, and how they ended; or two sweeps, trial by trial",
    )
    compare.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run id, the start of one, or a run's name; or two sweeps, by name or run id",
    )
    export = command("export", _export, "a sweep as one file that others can check")
    export.add_argument(
        "sweep", metavar="SWEEP", help="name of a sweep (its latest run) or the id of its run"
    )
    export.add_argument("file", metavar="OUT.zip", type=Path, help="file to write")
    verify = command(
        "verify", _verify, "run some trials of an exported sweep again, and compare their bits"
    )
    verify.add_argument("file", metavar="FILE.zip", type=Path, help="what `export` wrote")
    verify.add_argument(
        "--sample", type=int, default=2, metavar="N", help="trials to run again; default: 2"
    )
    verify.add_argument(
        "--app",
        metavar="PATH",
        help="folder of the Flower app, where it is not as the trials' commands say",
    )
    verify.add_argument(
        "words", nargs="*", metavar="key=value", help="settings of this session: data.root=DIR"
    )
    best = command(
        "best",
        _best,
        "the best cell of a sweep, and the command that runs its best trial again",
        _metrics_help,
    )
    best.add_argument(
        "sweep", metavar="SWEEP", help="name of a sweep (its latest run) or the id of its run"
    )
    best.add_argument(
        "--metric",
        default="client_acc",
        help="final metric, one of those below; default: client_acc",
    )
    best.add_argument(
        "--lowest", action="store_true", help="lower is better, whatever the metric says"
    )
    best.add_argument(
        "--where", metavar="KEY=A,B", action="append", default=[],
        help="trials to choose from: dataset=mnist (several times: all of them)",
    )  # fmt: skip
    best.add_argument(
        "--export", metavar="FILE.yaml", type=Path, help="write it as the file of a sweep"
    )
    for sub in (report, compare, best, export):
        sub.set_defaults(words=[])

    # The store itself.
    flush = command(
        "flush", _flush, "send what waits on disk for a tracking store that did not answer"
    )
    flush.add_argument(
        "words",
        nargs="*",
        metavar="key=value",
        help="tracking.uri and tracking.output, as for the run",
    )
    ui = command("ui", _ui, "open MLflow's UI on the local store")
    ui.add_argument("--host", default="127.0.0.1", help="address to listen on")
    ui.add_argument("--port", type=int, default=5000, help="port to listen on")
    ui.add_argument(
        "words", nargs="*", metavar="key=value", help="tracking.uri or tracking.output, as for run"
    )
    return parser


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """Add what a report shows: each is a key of a file such as report.yaml."""
    listed = (
        ("columns", "A,B", "metrics of a trial's end, in order: client_acc,ari"),
        ("rows", "AXIS,..", "axes that go down: strategy"),
        ("by", "AXIS,..", "axes that go across: partition.alpha"),
        ("seeds", "0-4", "seeds that are shown"),
        ("best", "AXIS", "show each row's best value of an axis alone: training.lr"),
        ("best-by", "METRIC", "held-out metric by which it is chosen; default: client_acc"),
        ("best-seeds", "0,1", "choose on these seeds, and show the other ones"),
        ("sort", "METRIC", "the best row first; default: grid"),
        ("spread", "KIND", "behind a mean: std, interval, full or none"),
        ("caption", "TEXT", "what the caption begins with"),
        ("target", "0.9", "or METRIC=VALUE: adds rounds and megabytes until it was reached"),
        ("epsilon", "8", "adds the accuracy of the last round that had spent no more of privacy"),
        ("test", "t|wilcoxon", "paired test that marks the best row; default: t"),
        ("pictures", "pdf,svg", "formats of the figures beside PNG"),
        ("width", "3.25in", "of a figure on paper: fonts as there, no titles, legends below"),
    )
    for name, value, told in listed:
        parser.add_argument(f"--{name}", metavar=value, help=told)
    pairs = (
        ("where", "KEY=A,B", "trials that are shown: dataset=mnist (several times: all of them)"),
        ("label", "NAME=TEXT", "what an axis, a value or a metric is called: strategy=Method"),
        ("decimals", "N|METRIC=N", "digits behind the point"),
    )
    for name, value, told in pairs:
        parser.add_argument(f"--{name}", metavar=value, action="append", default=[], help=told)
    parser.add_argument(
        "--format",
        choices=("md", "latex", "csv", "html"),
        help="print the table alone, in this format, and write no file (but with --out)",
    )


def _add_modes(parser: argparse.ArgumentParser, quiet: str, machine: str) -> None:
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--quiet", dest="mode", action="store_const", const="quiet", default="auto", help=quiet
    )
    modes.add_argument("--json", dest="mode", action="store_const", const="json", help=machine)


def _groups_help() -> str:
    from fedsweep.catalog import CATALOG
    from fedsweep.sweeps.compose import groups, options

    lines = [_filled(options(group), f"  {group:<11} ") for group in groups() if options(group)]
    return (
        EXAMPLES
        + "\ngroups and their options:\n"
        + "\n".join(lines)
        + "\n"
        + _filled(options("sweep"), "sweeps: ")
        + "\nmetrics that stop.metric, halving.metric and --target take:\n"
        + _filled(metric.key for metric in CATALOG if metric.watchable)
    )


def _metrics_help() -> str:
    from fedsweep.catalog import CATALOG

    return "metrics of a trial's end:\n" + _filled(CATALOG.finals)


def _filled(names: Iterable[str], head: str = "  ") -> str:
    """Return names in lines as wide as the terminal, the others below the first."""
    return fill(
        ", ".join(names),
        width=max(40, get_terminal_size().columns - 2),  # as argparse has it
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
    )


def _with_address(words: list[str], address: str | None) -> list[str]:
    from fedsweep.sweeps.words import literal

    return words if address is None else [*words, f"resources.address={literal(address)}"]


def _run(args: argparse.Namespace, words: list[str]) -> int:
    from fedsweep.sweeps.compose import compose_trial, with_contents
    from fedsweep.sweeps.resume import Restart
    from fedsweep.sweeps.sweep import SweepPlan

    [trial] = with_contents([compose_trial(_with_address(words, args.address))])
    return _execute(
        SweepPlan(None, "", trial.command, [trial], Restart(args.fresh, False, args.take_over)),
        args.mode,
    )


def _sweep(args: argparse.Namespace, words: list[str]) -> int:
    from fedsweep.sweeps.compose import planned, split_sweep, with_contents

    words = _with_address(words, args.address)
    sweep, given = split_sweep([args.sweep, *words] if args.sweep else words)
    called = planned(sweep, given, args.name or "")
    if args.dry_run:
        search = _search_of(called, called.trials)
        return _list_ours(called.trials, called.name, search.remarks() if search else ())
    from fedsweep.sweeps.resume import Restart
    from fedsweep.sweeps.sweep import SweepPlan

    restart = Restart(args.fresh, args.retry_failed, args.take_over)
    trials = with_contents(called.trials)
    search = _search_of(called, trials)
    return _execute(
        SweepPlan(called.name, called.description, called.command, trials, restart, search=search),
        args.mode,
    )


def _search_of(called: "Planned", trials: "Sequence[Trial]") -> "SearchPlan | None":
    if not called.search:  # Ray and pandas are not needed to say so
        return None
    from fedsweep.sweeps.searching import plan_search

    return plan_search(called.search, trials, called.ranged)


def _app(args: argparse.Namespace, words: list[str]) -> int:
    from fedsweep.app.sweep import expand_app

    words = _with_address(words, args.address)
    sweep = expand_app(args.path, words, args.run_config)
    name = args.name or sweep.project.name
    component(name, "--name")
    if args.dry_run:
        # How many rounds there are, the app knows.
        count = f"{amount(len(sweep.trials), 'trial')} of sweep '{name}'"
        return _list(sweep.trials, sweep.remarks(sweep.trials), [count])
    if args.check:
        from fedsweep.app.check import check

        same, told = check(sweep.trials[0].config, sweep.project.code)
        say(told)
        return 0 if same else 1
    from fedsweep.app.plan import planned as plan_app
    from fedsweep.sweeps.resume import Restart

    restart = Restart(args.fresh, args.retry_failed, args.take_over)
    return _execute(plan_app(sweep, words, args.run_config, args.name or "", restart), args.mode)


def _list(trials: "Sequence[Trial]", told: Sequence[str], counted: Iterable[str]) -> int:
    for trial in trials:
        say(" ".join([trial.config.key, *(f"{key}={value}" for key, value in trial.axes.items())]))
    for remark in told:
        say(remark, sys.stderr)
    for line in counted:
        say(line)
    return 0


def _list_ours(trials: "Sequence[Trial]", sweep: str, more: Sequence[str] = ()) -> int:
    from fedsweep.sweeps.compose import remarks

    return _list(trials, [*remarks(trials), *more], _counted(trials, sweep))


def _counted(trials: "Sequence[Trial]", sweep: str) -> Iterator[str]:
    """Say how much there is to do; the store is opened once the first line is out."""
    from fedsweep.sweeps.estimate import duration, size

    yield size(trials, sweep)
    if about := duration(trials, trials[0].config.tracking):
        yield about
    unknown = {
        trial.config.dataset.name: None for trial in trials if trial.config.dataset.content is None
    }
    if unknown:
        yield f"their keys will be others once the data are found: {', '.join(unknown)}"


def _reproduce(args: argparse.Namespace, words: list[str]) -> int:
    from fedsweep.reproduce.reproduce import load_experiment
    from fedsweep.sweeps.compose import config_dir_words, with_contents

    words = _with_address(words, args.address)
    experiment = load_experiment(args.name, args.full)
    trials = experiment.trials(words)
    if args.dry_run:
        return _list_ours(trials, experiment.sweep)
    trials = with_contents(trials)
    from fedsweep.report.terminal import rich_lines
    from fedsweep.reproduce.reproduce import conclude
    from fedsweep.sweeps.resume import Restart
    from fedsweep.sweeps.sweep import SweepPlan
    from fedsweep.sweeps.views import new_console, view_of

    full = ["--full"] if args.full else []
    again = ["fedsweep", "reproduce", args.name, *full, *words, *config_dir_words()]
    restart = Restart(args.fresh, args.retry_failed, args.take_over)
    status = _execute(
        SweepPlan(experiment.sweep, experiment.description, escape.command(again), trials, restart),
        args.mode,
    )
    if status in (3, 130):  # some of its trials have yet to end
        return status
    outcome = conclude(experiment, trials)
    if args.mode == "json":
        headings, *rows = outcome.lines
        event = {
            "event": "reproduction",
            "rows": [dict(zip(headings, row, strict=True)) for row in rows],
        }
        view_of("json", new_console()).show(event | {"notes": outcome.notes}, "")
    if args.mode != "auto":
        return status
    console = new_console(width=None if sys.stdout.isatty() else 180)
    console.print(rich_lines(outcome.lines, outcome.summary))
    for note in outcome.notes:
        say(note)
    return status


def _execute(plan: "SweepPlan", mode: "ViewMode") -> int:
    from fedsweep.report.choice import EVERYTHING
    from fedsweep.report.layout import layout
    from fedsweep.report.results import results_table
    from fedsweep.report.terminal import ending, fitted
    from fedsweep.sweeps.sweep import run_sweep
    from fedsweep.sweeps.views import new_console, view_of
    from fedsweep.sweeps.words import store_words

    console = new_console(width=None if sys.stdout.isatty() else 140, quiet=mode == "quiet")
    view = view_of(mode, console)
    outcome, tracker = run_sweep(plan, view)
    store = store_words(plan.session.tracking)
    waits = (
        f"{tracker.spilled} events wait on disk: the store does not answer; "
        f"send them with: {escape.command(['fedsweep', 'flush', *store])}"
    )
    if mode == "json":
        result = {
            "event": "result", "exit_status": outcome.exit_status,
            "interrupted": outcome.interrupted,
            "trials": [{"axes": row.axes, "metrics": row.metrics} for row in outcome.rows],
            "failures": [{"trial": t, "reason": r} for t, r in outcome.failures],
            "stopped": [{"trial": t, "reason": r} for t, r in outcome.stopped],
            "store": tracker.uri, "waiting_on_disk": tracker.spilled,
            "missing": outcome.missing or None, "searching": outcome.searching,
        }  # fmt: skip
        view.show(result, "")
        return outcome.exit_status
    if any(row.metrics for row in outcome.rows):
        table = layout(results_table(outcome.rows, axes=outcome.axes), EVERYTHING)
        what = "at default settings, the search did not end" if outcome.searching else "results"
        shown, left_out = fitted(table, f"{what}: mean ± deviation over seeds", console.width)
        console.print(shown)
        if left_out:
            told = f"left out for the width: {', '.join(left_out)}"
            console.print(escape.line(told), soft_wrap=True)
    for label, reason in outcome.failures:
        say(f"FAILED {label}: {reason}", sys.stderr)
    for label, reason in outcome.stopped:
        say(f"STOPPED {label}: {reason}", sys.stderr)
    if outcome.missing:
        say(f"MISSING: {outcome.missing}", sys.stderr)
    if tracker.spilled:
        say(waits, sys.stderr)
    if mode == "quiet":
        return outcome.exit_status
    say(f"stored in {tracker.uri}")
    if plan.name:
        for told in ending(plan.name, outcome.axes, outcome.folder, store):
            say(told)
    elif tracker.uri.startswith("sqlite"):
        say(f"see it with: {escape.command(['fedsweep', 'ui', *store])}")
    return outcome.exit_status


def _config(args: argparse.Namespace, words: list[str]) -> int:
    from fedsweep.sweeps.compose import compose_trial, remarks, to_yaml

    trial = compose_trial(words)
    print(to_yaml(trial.config), end="")
    say(f"# trial key: {trial.config.key}")
    for remark in remarks([trial]):
        say(remark, sys.stderr)
    return 0


def _split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Part names from settings (``key=value``): run names may hold an equals sign, no key does."""
    settings = [word for word in words if word.startswith(("tracking.", "tracking="))]
    return [word for word in words if word not in settings], settings


def _choice(args: argparse.Namespace) -> "Choice":
    """Return what a report shows: as its file says, and as the options say instead."""
    from fedsweep.report.choice import Choice, read_choice
    from fedsweep.sweeps.compose import names_file, validated

    file = args.sweep if names_file(args.sweep) else ""
    values: dict[str, Any] = {"sweep": args.sweep}
    if file:
        values = validated(Choice, read_choice(file), f"{file}: ").model_dump(exclude_unset=True)
    for key in Choice.model_fields:
        given = getattr(args, key, None)
        if given and key not in ("where", "decimals", "sweep"):
            values[key] = given
    for key, option, words, lone in (
        ("where", "where", args.where, ""),
        ("labels", "label", args.label, ""),
        ("decimals", "decimals", args.decimals, "all"),
    ):
        if words:
            given = _pairs(option, words, lone)
            values[key] = {**values.get(key, {}), **given}
    choice = validated(Choice, values, "--")
    if not choice.sweep:
        raise ConfigError(f"{file} names no sweep; add a line such as sweep: default")
    return choice


def _pairs(option: str, words: Sequence[str], lone: str = "") -> dict[str, str]:
    """Return NAME=VALUE words of an option by name; one without a name is ``lone``'s, if any."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and not lone:
            raise ConfigError(f"--{option} {shown(word)} lacks a '='")
        name, value = (name, value) if equals else (lone, word)
        if found.setdefault(name, value) != value:
            told = f"{name}={found[name]},{value}" if option == "where" else "it once"
            raise ConfigError(f"--{option} is given twice for {shown(name)}; give {told}")
    return found


def _report(args: argparse.Namespace, words: list[str]) -> int:
    from fedsweep.report.report import PAGE, narrow, printed, report, table_of
    from fedsweep.sweeps.compose import compose
    from fedsweep.sweeps.views import as_json
    from fedsweep.tracking.read import read_sweep, report_folder

    choice = _choice(args)
    cfg = compose(words).tracking
    sweep = read_sweep(cfg, choice.sweep)
    if args.format:
        shown = narrow(choice) if args.format == "latex" else choice
        table = table_of(sweep, shown).table
        for remark in table.remarks:
            say(remark, sys.stderr)
        print(printed(table, args.format, sweep.name), end="")
        if args.out is None:
            return 0
    again = escape.command(["fedsweep", *args.line])
    made = report(sweep, choice, again)
    folder = args.out or report_folder(cfg, sweep.name, sweep.run_id)
    made.write(folder)

    # What is shown of it.
    if args.mode == "json":
        told = {
            "sweep": sweep.name,
            "run": sweep.run_id,
            "folder": str(folder.absolute()),
            "files": sorted(made.files),
        }
        print(as_json({**told, "cells": made.records()}))
    if args.mode != "auto" or args.format:
        return 0
    for remark in made.chosen.table.remarks:
        say(remark, sys.stderr)
    print(str(made.files["report.md"]).partition("```")[0].rstrip())
    say("")
    say(f"open {folder / PAGE}")
    say(f"also in {folder}: report.md, report.csv, report.tex, trials.csv, plots/")
    return 0


def _compare(args: argparse.Namespace, words: list[str]) -> int:
    from fedsweep.report.best import comparison
    from fedsweep.report.pairs import paired
    from fedsweep.report.terminal import fitted_lines
    from fedsweep.sweeps.compose import compose
    from fedsweep.sweeps.views import new_console
    from fedsweep.tracking.read import read_runs, sweeps_of

    names, settings = _split_words([*args.runs, *words])
    tracking = compose(settings).tracking
    sweeps = sweeps_of(tracking, names) if len(names) == 2 else None
    if sweeps is None:
        new_console().print(comparison(read_runs(tracking, names)))
        return 0
    first, second = sweeps
    found = paired(first, second)
    console = new_console()
    title = f"{first.name} and {second.name}"
    console.print(fitted_lines(found.lines, found.place, title, console.width))
    for told in found.told:
        say(told)
    return 0


def _best(args: argparse.Namespace, words: list[str]) -> int:
    from fedsweep.files import write_whole
    from fedsweep.report.best import best_of
    from fedsweep.report.choice import Choice
    from fedsweep.sweeps.compose import compose, names_file, validated
    from fedsweep.tracking.read import read_sweep

    if args.export and not names_file(str(args.export)):
        raise ConfigError(f"--export {shown(str(args.export))} is no sweep's file; end it in .yaml")
    choice = validated(Choice, {"where": _pairs("where", args.where)}, "--")
    sweep = read_sweep(compose(words).tracking, args.sweep)
    best = best_of(sweep, args.metric, args.lowest, choice)
    print(best)
    if args.export:
        try:
            write_whole(args.export, best.file().encode())
        except OSError as error:
            raise RunnerError(f"--export: {args.export} can't be written: {error}") from error
        say(f"run it again with: {escape.command(['fedsweep', 'sweep', str(args.export)])}")
    return 0


def _export(args: argparse.Namespace, words: list[str]) -> int:
    from fedsweep.reproduce.package import export
    from fedsweep.sweeps.compose import compose
    from fedsweep.tracking.read import read_sweep

    trials = export(read_sweep(compose(words).tracking, args.sweep), args.file)
    say(f"{amount(trials, 'trial')} in {args.file}")
    say(f"check it with: {escape.command(['fedsweep', 'verify', str(args.file)])}")
    return 0


def _verify(args: argparse.Namespace, words: list[str]) -> int:
    from fedsweep.reproduce.package import verify

    if args.sample < 1:
        raise ConfigError(f"--sample {args.sample}: run one trial again at least")
    checked = verify(
        args.file, args.sample, words, lambda name: say(f"again: {name}"), args.app or ""
    )
    for trial in checked:
        say(f"{'same' if trial.same else 'DIFFERS'} {trial.key} {trial.name}: {trial.told}")
    same = sum(trial.same for trial in checked)
    say(f"{same} of {len(checked)} trials have the bits that were exported")
    return 0 if same == len(checked) else 1


def _flush(args: argparse.Namespace, words: list[str]) -> int:
    from fedsweep.sweeps.compose import compose
    from fedsweep.tracking import flush

    done = flush(compose(words).tracking, tell=partial(say, file=sys.stderr))
    say(f"sent {done.sent} events" + (f", put {done.aside} aside" if done.aside else ""))
    return 1 if done.damaged else 0


def _ui(args: argparse.Namespace, words: list[str]) -> int:
    from fedsweep.sweeps.compose import compose
    from fedsweep.tracking.database import database_of, settle_in
    from fedsweep.tracking.store import open_store, tracking_uri
    from fedsweep.tracking.ui import charts, check_port

    config = compose(words)
    uri = tracking_uri(config.tracking)
    database = database_of(uri)
    if database is None:
        raise RunnerError(f"the UI of '{uri}' is served by its own server; `ui` opens local stores")
    if not os.path.exists(database):  # nor is there one where no path can lead
        raise RunnerError(f"there is no MLflow store at {uri} yet; run `make sweep` first")
    check_port(args.host, args.port)
    if moved := settle_in(database):
        say(moved, sys.stderr)
    store = open_store(config.tracking, write=False)
    say(f"open {charts(store, args.host, args.port)}")
    say("MLflow's UI takes some seconds to come up; Ctrl-C ends it")
    keep({"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"})
    words = [
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        args.host,
        "--port",
        str(args.port),
    ]
    os.execv(sys.executable, [sys.executable, *words, "--workers", "1"])
