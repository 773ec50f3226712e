"""A Flower app as a sweep: what is read of it, which trials it makes, what they give.

Everything runs in this process; hosts that die are in tests/ray.
"""

import errno
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

import fedsweep
from fedsweep.app.check import Sight, first_difference
from fedsweep.app.client import SeededClient
from fedsweep.app.journal import digest_of
from fedsweep.app.modules import AppCode, Modules
from fedsweep.app.project import read_project
from fedsweep.app.rounds import Rounds
from fedsweep.app.sweep import AppSweep, expand_app
from fedsweep.app.trial import Folder, run_alone, run_app
from fedsweep.catalog import CATALOG, Catalog
from fedsweep.cli import main
from fedsweep.engine.chunks import MIN_CHUNKS
from fedsweep.engine.executors import InlineExecutor
from fedsweep.engine.flower import empty_run, identify
from fedsweep.engine.grid import Trace
from fedsweep.engine.wire import Chunk
from fedsweep.errors import AppError, ConfigError, TrialError
from fedsweep.records import RoundRecord, TrialResult, TrialStarted
from fedsweep.trial.checkpoint import CheckpointStore
from tests.on_flower import ALL, APPS, arrays_of, on_flower

INLINE = "resources.engine=inline"


def of(name: str, *words: str) -> AppSweep:
    return expand_app(str(APPS / name), [INLINE, *words])


def outcome(sweep: AppSweep, place: Path) -> tuple[list[RoundRecord], TrialResult]:
    """Run the first trial of a sweep with a folder of its own."""
    before = os.getcwd()
    os.chdir(place)
    try:
        started, *rounds, result = run_app(sweep.trials[0].config, sweep.project.code)
    finally:
        os.chdir(before)
    assert isinstance(started, TrialStarted)
    assert isinstance(result, TrialResult)
    return rounds, result  # type: ignore[return-value]


@pytest.fixture
def copy(tmp_path: Path):
    """Copy an app, so that a test may change it."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(APPS / name, tmp_path / name))

    return copied


# The same as Flower gives


@pytest.mark.parametrize("name", ALL)
def test_an_app_gives_what_it_gives_on_flowers_own_engine(name: str, tmp_path: Path) -> None:
    """Final arrays and each round's metrics, to the bit: sums of two, or of exact numbers."""
    rounds, result = outcome(of(name), tmp_path)
    saved, expected = arrays_of(tmp_path), on_flower(name)
    assert [array.tolist() for array in saved] == expected["arrays"]
    if result.models:
        assert [a.tolist() for a in result.models["global"].values()] == expected["arrays"]
    for number, metrics in expected["rounds"].items():
        there = {key.partition("/")[2]: v for key, v in rounds[int(number)].metrics.items()}
        assert {key: there[key] for key in metrics} == metrics
    assert [record.round for record in rounds] == list(range(len(rounds)))


def test_each_metric_of_an_app_is_declared_with_what_is_better(tmp_path: Path) -> None:
    sweep = of("numpy_quick", "lower=evaluate.eval_error", "higher=[nothing.here]")
    rounds, result = outcome(sweep, tmp_path)
    catalog = Catalog(metric for metric in CATALOG if not metric.foreign)
    catalog.declare(result.declared)
    undeclared = [key for record in rounds for key in record.metrics if key not in catalog]
    assert not undeclared
    assert catalog["3_clients/evaluate.eval_error"].better == "lower"
    assert catalog["1_global/server.norm"].better == ""
    assert catalog.ranked[-1] == "evaluate.eval_error"
    assert any("nothing.here" in event for event in rounds[-1].events)
    assert {*result.summary} <= {*catalog.finals}


# What is read


def test_a_run_config_has_axes_and_seeds() -> None:
    sweep = of("numpy_quick", "run_config.lr=0.25,1", "seed=0,1", "run_config.column.scale=2")
    assert [dict(trial.axes) for trial in sweep.trials] == [
        {"run_config.lr": lr, "seed": seed} for lr in ("0.25", "1.0") for seed in "01"
    ]
    assert sweep.trials[0].label == "lr=0.25 seed=0"
    config = sweep.trials[2].config
    assert config.run_config == {"num-server-rounds": 3, "lr": 1.0, "column.scale": 2.0}
    assert config.num_clients == 4  # of the federation
    again = expand_app(str(APPS / "numpy_quick"), sweep.trials[2].overrides)
    assert [trial.config.key for trial in again.trials] == [config.key]


def test_a_setting_of_the_problem_makes_the_same_trials_and_another_axis() -> None:
    """What a problem is decides who is compared, and no trial's numbers."""
    of_method = of("numpy_quick", "run_config.lr=0.25,1", "run_config.column.scale=1,2")
    of_both = of("numpy_quick", "run_config.lr=0.25,1", "problem.column.scale=1,2")
    assert [t.config.key for t in of_both.trials] == [t.config.key for t in of_method.trials]
    assert of_both.trials[0].axes == {"run_config.lr": "0.25", "problem.column.scale": "1.0"}
    again = expand_app(str(APPS / "numpy_quick"), of_both.trials[3].overrides, ["column.scale=7"])
    assert [trial.config.key for trial in again.trials] == [of_both.trials[3].config.key]


def test_what_rows_are_compared_across_is_said() -> None:
    words = ["run_config.lr=0.25,1", "run_config.column.scale=1,2", "lower=train.train_loss"]
    sweep = of("numpy_quick", *words)
    assert sweep.remarks([]) == [
        "rows are compared across run_config.lr, run_config.column.scale, as settings of one "
        "method; what makes another problem, such as a split of the data, is given as problem.KEY "
        "instead"
    ]
    assert not of("numpy_quick", *words[:2]).remarks([])  # nothing is compared
    assert not of("numpy_quick", words[0], "problem.column.scale=1,2", words[2]).remarks([])


def test_flowers_own_words_and_files_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("lr = 0.25\n[column]\nscale = 3.0\n")
    words = of("numpy_quick", "run_config.lr=0.25", "run_config.column.scale=3")
    app = str(APPS / "numpy_quick")
    for given in ("lr=0.25 column.scale=3", str(tmp_path / "run.toml")):
        assert expand_app(app, [], [given]).trials[0].config.key == words.trials[0].config.key


def test_what_defines_a_trial_is_in_its_key(copy) -> None:
    folder = copy("numpy_quick")

    def key(*words: str) -> str:
        return expand_app(str(folder), words).trials[0].config.key

    first = key()
    others = ["run_config.lr=0.1", "seed=1", "num_clients=3", "run_config.num-server-rounds=1"]
    keys = [first, *(key(word) for word in others)]
    assert len({*keys}) == len(keys)
    same = [INLINE, "lower=[evaluate.eval_error]", "tracking.output=elsewhere"]
    assert {key(word) for word in same} == {first}
    code = folder / "numpy_quick" / "client_app.py"
    code.write_text(code.read_text() + "\nANOTHER = 1\n")
    assert key() != first


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run_config.rl=1"], "Did you mean 'run_config.lr'"),
        (["lr=1"], "Did you mean 'run_config.lr'"),
        (["run_config.lr=fast"], "so it has to be a number"),
        (["run_config.num-server-rounds=2.5"], "so it has to be a whole number"),
        (["run_config.num-server-rounds=true"], "so it has to be a whole number"),
        (["tracking.output=a,b"], "is no axis"),
        (["lower=a,b"], "has several values"),
        (["num_clients=0"], "num_clients=0"),
        (["seed_key=lr", "run_config.lr=1"], "both set the same"),
        (["seed_key=lr", "problem.lr=1"], "seed_key=lr and problem.lr both set the same"),
        (["problem.lr=1,2", "run_config.lr=1"], "are the same setting; give one of them"),
        (["problem.rl=1"], "Did you mean 'problem.lr'"),
        (["problem.lr=fast"], "problem.lr='fast': the app's own is 0.5, so it has to be a number"),
        (["higher=[evaluate.x]", "lower=evaluate.x"], "higher and lower both name evaluate.x"),
        (["run_config.lr=0.5,0.5"], "all give the same trials"),
        (["checkpoint.every=2"], "means nothing to an app: what its clients reply is kept"),
        (["strategy=fedavg"], "unknown key 'strategy'"),
    ],
)
def test_a_word_that_means_nothing_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("(", r"\(")):
        of("numpy_quick", *words)


def test_a_seed_key_is_the_seed_of_each_trial(copy) -> None:
    folder = copy("numpy_quick")
    file = folder / "pyproject.toml"
    file.write_text(file.read_text().replace("lr = 0.5", "lr = 0.5\ndata-seed = 7"))
    fixed = expand_app(str(folder), ["seed=1,2"])
    assert {trial.config.run_config["data-seed"] for trial in fixed.trials} == {7}
    assert any("with seed_key=data-seed it is the seed of each" in r for r in fixed.remarks([]))
    tied = expand_app(str(folder), ["seed=1,2", "seed_key=data-seed"])
    assert [trial.config.run_config["data-seed"] for trial in tied.trials] == [1, 2]
    assert not tied.remarks([])


def test_dependencies_that_are_not_here_are_listed_with_the_command(copy) -> None:
    folder = copy("numpy_quick")
    file = folder / "pyproject.toml"
    there = file.read_text()
    file.write_text(there.replace('"numpy"', '"numpy<1", "no-such-thing>=2", "nor-this[x]"'))
    with pytest.raises(ConfigError, match=r"pip install 'no-such-thing>=2' 'nor-this\[x\]'`"):
        read_project(folder)
    file.write_text(there.replace('"numpy"', '"numpy<1", "gone; python_version < \'3\'"'))
    [told] = read_project(folder).remarks
    assert told.startswith("the app asks for other versions than are installed: numpy ")


def test_what_only_a_deployment_needs_is_left_out_aloud(copy) -> None:
    folder = copy("numpy_quick")
    file = folder / "pyproject.toml"
    more = """
options.backend.client-resources.num-cpus = 2
options.backend.init-args.num-cpus = 4
[tool.flwr.federations.remote]
address = "superlink.example:9093"
root-certificates = "./ca.crt"
"""
    file.write_text(file.read_text() + more)
    project = read_project(folder)
    assert project.remarks == (
        "of pyproject.toml means nothing here and is left out: federations.remote, "
        "federations.local-simulation.options.backend.init-args",
    )
    config = expand_app(str(folder), []).trials[0].config
    assert config.resources.hosts["cpu"].num_cpus == 2
    own = expand_app(str(folder), ["resources.hosts.cpu.num_cpus=1"]).trials[0].config
    assert own.resources.hosts["cpu"].num_cpus == 1
    bare = there = file.read_text()
    bare = there[: there.index("[tool.flwr.federations]")]
    file.write_text(bare)
    assert read_project(folder).num_clients == 2  # Flower's default
    assert "set num_clients" in read_project(folder).remarks[0]


def test_a_folder_without_an_app_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no Flower app: Cannot find pyproject.toml"):
        expand_app(str(tmp_path), [])


# What an app's code does


def edited(folder: Path, file: str, old: str, new: str) -> AppSweep:
    path = folder / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return expand_app(str(folder), [INLINE])


def test_an_app_that_cannot_be_imported_is_refused_with_file_and_line(copy) -> None:
    folder = copy("numpy_quick")
    file = "numpy_quick/server_app.py"
    sweep = edited(folder, file, "app = ServerApp()", "app = ServerApp(nonsense)")
    with pytest.raises(ConfigError, match=rf"{file}:8: NameError: name 'nonsense'"):
        sweep.prepare(sweep.trials, inline=True)
    assert "numpy_quick" not in sys.modules
    assert str(folder) not in sys.path


def test_a_reference_to_something_else_is_refused(copy) -> None:
    folder = copy("numpy_quick")
    sweep = edited(folder, "pyproject.toml", "server_app:app", "server_app:norm")
    with pytest.raises(ConfigError, match="is a function, and has to be a ServerApp"):
        sweep.prepare(sweep.trials, inline=True)


def test_clients_that_all_fail_end_the_trial(copy, tmp_path: Path) -> None:
    folder = copy("numpy_quick")
    sweep = edited(
        folder, "numpy_quick/client_app.py", "    target = 2.0 ** int", "    1 / 0\n    2.0 ** int"
    )
    with pytest.raises(TrialError, match="all 4 clients .* to train failed; the first: ZeroDiv"):
        outcome(sweep, tmp_path)


def test_a_server_that_raises_names_its_own_line(copy, tmp_path: Path) -> None:
    from fedsweep.parts.code import own_place, raised_by_own, traceback_of

    folder = copy("numpy_quick")
    sweep = edited(folder, "numpy_quick/server_app.py", "fraction_train=1.0", "1 / 0")
    with pytest.raises(ZeroDivisionError) as raised:
        outcome(sweep, tmp_path)
    told = traceback_of(raised.value)
    assert raised_by_own(told)
    place = f"{folder}/numpy_quick/server_app.py:19"
    assert own_place(told) == place
    with pytest.raises(TrialError, match=f"^{place}: ZeroDivisionError: division by zero$"):
        run_alone(sweep.trials[0].config, sweep.project.code)


def test_what_an_app_draws_follows_the_seed_alone(copy, tmp_path: Path) -> None:
    """Clients and server draw from the generators that a process shares, and seed none."""
    folder = copy("numpy_quick")
    edited(folder, "numpy_quick/client_app.py", "weights = weights + ",
           "weights = weights + np.random.random() + ")  # fmt: skip
    edited(folder, "numpy_quick/server_app.py", "np.zeros((2, 3))", "np.random.normal(size=(2, 3))")

    def models(seed: int) -> list[list[float]]:
        np.random.random(seed)
        sweep = expand_app(str(folder), [INLINE, f"seed={seed}"])
        return outcome(sweep, tmp_path)[1].models["global"]["0"].tolist()

    first = models(0)
    assert models(0) == first
    assert models(1) != first


def test_trials_in_one_process_share_no_modules(tmp_path: Path) -> None:
    """What a trial's module counts is not found by another one, however they take turns."""
    (tmp_path / "counter.py").write_text("calls = []\ndef count():\n    calls.append(1)\n")
    code = AppCode(str(tmp_path), (("counter.py", (tmp_path / "counter.py").read_bytes()),), "", "")
    a, b = Modules.of(code, "a"), Modules.of(code, "b")
    assert Modules.of(code, "a") is a
    try:
        for modules in (a, b, a, a, b):
            modules.load("counter:count", object)()
        assert len(a.load("counter:calls", list)) == 3
        assert len(b.load("counter:calls", list)) == 2
    finally:
        b.leave()
    assert "counter" not in sys.modules
    with pytest.raises(AppError, match="there is no module|No module named"):
        a.load("counted:count", object)
    a.leave()


def test_files_that_are_not_here_are_unpacked(tmp_path: Path) -> None:
    code = AppCode(str(tmp_path / "elsewhere"), (("thing.py", b"value = {'a': 1}\n"),), "", "")
    assert code.here != tmp_path / "elsewhere"
    modules = Modules(code)
    assert modules.load("thing:value", dict) == {"a": 1}
    modules.leave()


# Going on


def kept_in(place: Path, sweep: AppSweep) -> CheckpointStore:
    key = sweep.trials[0].config.key
    return CheckpointStore(str(place / "kept" / key), key)


def run_until(sweep: AppSweep, place: Path, last: int = 99) -> list[object]:
    """Run a trial until a round has ended, as an interruption would leave it."""
    before = os.getcwd()
    os.chdir(place)
    seen: list[object] = []
    config, code = sweep.trials[0].config, sweep.project.code
    events = run_app(config, code, checkpoints=kept_in(place, sweep))
    try:
        for event in events:
            seen.append(event)
            if isinstance(event, RoundRecord) and event.round == last:
                break
    finally:
        events.close()
        os.chdir(before)
    return seen


def learning(records: list[object]) -> list[dict[str, float]]:
    return [
        {k: v for k, v in r.metrics.items() if CATALOG.follows(k) == "learning"}
        for r in records
        if isinstance(r, RoundRecord)
    ]


class Killed(BaseException):
    """The process ends here; no code of anybody's catches it."""


def test_short_tasks_go_in_few_chunks_and_change_no_bit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a task takes is known from the second round on."""
    submit, made = InlineExecutor.submit, []

    def counted(self: InlineExecutor, chunks: Iterable[Chunk]) -> None:
        made.append([*chunks])
        submit(self, made[-1])

    monkeypatch.setattr(InlineExecutor, "submit", counted)
    found = []
    for chunk_s in (60.0, 1e-9):  # all tasks are short, or none
        monkeypatch.setattr("fedsweep.app.grid.CHUNK_S", chunk_s)
        made.clear()
        sweep = of("numpy_quick", "num_clients=40", "run_config.num-server-rounds=3")
        (place := tmp_path / str(chunk_s)).mkdir()
        _, result = outcome(sweep, place)
        found.append(([len(chunks) for chunks in made], result.weights_sha256))
    (few, bits), (each, same) = found
    assert few == [40, 40, *[MIN_CHUNKS] * 4]
    assert each == [40] * 6
    assert bits == same


class Work:
    """What clients are asked in this process, until it ends."""

    def __init__(self) -> None:
        self.asked: list[str] = []  # digests of messages, as they are worked on
        self.ends_at: int | None = None  # so many are worked on before the process ends

    def taken(self) -> list[str]:
        asked, self.asked, self.ends_at = self.asked, [], None
        return asked


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    seen, call = Work(), SeededClient.__call__

    def called(self: SeededClient, message: Message, context: Context) -> Message:
        if len(seen.asked) == seen.ends_at:
            raise Killed
        seen.asked.append(digest_of([message]))
        return call(self, message, context)

    monkeypatch.setattr(SeededClient, "__call__", called)
    return seen


@pytest.mark.parametrize("name", ALL)
def test_a_trial_whose_process_is_killed_goes_on_with_what_its_clients_replied(
    name: str, work: Work, tmp_path: Path
) -> None:
    """Killed early, in the midst and in the last task: nobody is asked again who replied.

    So no round is lost and none is doubled, and arrays, metrics, state and seeds are those of a
    trial that nobody disturbed.
    """
    sweep = of(name)
    clients = sweep.trials[0].config.num_clients
    whole, expected = outcome(sweep, tmp_path)
    every = work.taken()
    assert len({*every}) == len(every)  # each task is another one
    for at in (1, len(every) // 2, len(every) - 1):
        place = tmp_path / str(at)
        place.mkdir()
        work.ends_at = at
        with pytest.raises(Killed):
            run_until(sweep, place)
        before = work.taken()
        again = run_until(sweep, place)
        after = work.taken()
        assert len(before) == at
        assert {*before, *after} == {*every}
        assert len({*after}) == len(after)
        assert len({*before} & {*after}) < clients  # of the exchange that was under way
        assert again[-1].weights_sha256 == expected.weights_sha256  # type: ignore[attr-defined]
        assert [array.tolist() for array in arrays_of(place)] == on_flower(name)["arrays"]
        assert learning(again) == learning([*whole])
        assert [r.round for r in again[1:-1]] == [r.round for r in whole]  # type: ignore[attr-defined]
    # The last kill left all rounds but the last exchange.
    assert again[0].first_round >= whole[-1].round - 1  # type: ignore[attr-defined]
    assert not again[0].anew  # type: ignore[attr-defined]


def test_the_acceptance_table_in_the_docs_is_what_is_tested() -> None:
    """A row an app, and in each column ``equal`` where a test holds that app to it."""
    text = (APPS.parents[1] / "docs" / "apps.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    held = {row[0].split("`")[1]: row[1:] for row in rows if row[0].split("`")[1] in ALL}
    assert [*held] == ALL
    for name, (arrays, metrics, gone_on, host_killed) in held.items():
        assert arrays.startswith("equal")
        assert metrics.startswith("equal") == bool(on_flower(name)["rounds"]), name
        assert gone_on == "equal"
        assert host_killed == "equal"


def test_a_server_that_asks_otherwise_cannot_go_on(copy, tmp_path: Path) -> None:
    folder = copy("numpy_quick")
    draws = "np.full((2, 3), np.random.default_rng().random())"
    sweep = edited(folder, "numpy_quick/server_app.py", "np.zeros((2, 3))", draws)
    run_until(sweep, tmp_path, last=1)
    with pytest.raises(TrialError, match="round 1 is asked otherwise than before"):
        run_until(sweep, tmp_path)


def test_replies_that_take_too_much_are_not_kept(copy, tmp_path: Path) -> None:
    folder = copy("numpy_quick")
    edited(folder, "numpy_quick/server_app.py", "np.zeros((2, 3))", "np.zeros((200, 300))")
    sweep = expand_app(str(folder), [INLINE, "journal_mb=1"])
    first = run_until(sweep, tmp_path, last=2)
    told = [event for r in first[1:] for event in r.events]  # type: ignore[attr-defined]
    assert told == [
        "the clients' replies take more than journal_mb=1: an interruption starts this trial over"
    ]
    assert run_until(sweep, tmp_path)[0].anew  # type: ignore[attr-defined]


def test_strays_beside_exchanges_are_left_alone(tmp_path: Path) -> None:
    sweep = of("numpy_quick")
    run_until(sweep, tmp_path, last=2)
    folder = Path(kept_in(tmp_path, sweep).url)
    for name in ("000000-x.exchange", "copy of 000001-1.exchange", "000001.exchange"):
        (folder / name).write_bytes(b"x")
    assert not run_until(sweep, tmp_path)[0].anew  # type: ignore[attr-defined]


def test_an_exchange_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    sweep = of("numpy_quick")
    run_until(sweep, tmp_path, last=2)
    *_, last = sorted(Path(kept_in(tmp_path, sweep).url).glob("*.exchange"))
    last.write_bytes(last.read_bytes()[:-7])
    assert run_until(sweep, tmp_path)[-1].weights_sha256 == (  # type: ignore[attr-defined]
        outcome(sweep, tmp_path)[1].weights_sha256
    )


# The folder that a server works in


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of somebody's own, with something in it."""
    place = tmp_path / "desk"
    (place / "chapter").mkdir(parents=True)
    (place / "thesis.tex").write_text("years of work")
    (place / "chapter" / "one.tex").write_text("more of it")
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("fails", ["mkdtemp", "symlink_to", "chdir"])
def test_a_folder_that_cannot_be_made_takes_nothing_of_the_one_before(
    fails: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk while a server starts: what is removed then is what was made, and no more."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    folder = Folder(of("numpy_quick").project.code)

    def full(*words: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("tempfile.tempdir", str(temporary))
        where = {"mkdtemp": "tempfile.mkdtemp", "symlink_to": "pathlib.Path.symlink_to"}
        patched.setattr(where.get(fails, "os.chdir"), full)
        with pytest.raises(OSError, match="No space left"):
            folder.enter()
        folder.leave()
    assert folder.written == {}
    assert Path.cwd() == desk
    there = sorted(path.name for path in desk.rglob("*"))
    assert there == ["chapter", "one.tex", "thesis.tex"]
    assert list(temporary.iterdir()) == []


def test_a_file_that_cannot_be_read_costs_no_result(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(of("numpy_quick").project.code)
    folder.enter()
    Path("model.bin").write_bytes(b"model")
    Path("scratch.bin").write_bytes(b"scratch")
    read = Path.read_bytes

    def gone(path: Path) -> bytes:
        if path.name == "scratch.bin":
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", gone)
    folder.leave()
    assert folder.written == {"model.bin": b"model"}
    assert Path.cwd() == desk


def test_files_that_a_run_has_no_room_for_are_named(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that came behind a large one were left out too, and nothing said so."""
    monkeypatch.setattr("fedsweep.app.trial.FILES_BYTES", 7)
    folder = Folder(of("numpy_quick").project.code)
    folder.enter()
    Path("a.bin").write_bytes(b"abc")
    Path("b.bin").write_bytes(bytes(8))
    Path("c.bin").write_bytes(b"defg")
    folder.leave()
    assert folder.written.keys() == {"a.bin", "c.bin", "files-left-out.txt"}
    told = folder.written["files-left-out.txt"].decode().splitlines()
    assert told[1:] == ["b.bin: 8 bytes"]


# Rounds


def message(kind: str, node: int, **config: int) -> Message:
    record = ConfigRecord({key.replace("_", "-"): value for key, value in config.items()})
    return Message(RecordDict({"config": record}), node, kind)


def reply(to: Message, **metrics: float | list[float]) -> Message:
    named = {key.replace("_", "-"): value for key, value in metrics.items()}
    return Message(RecordDict({"metrics": MetricRecord(named)}), reply_to=to)


@pytest.fixture
def rounds() -> tuple[Rounds, list[RoundRecord]]:
    identify(empty_run())
    ended: list[RoundRecord] = []
    return Rounds(ended.append, Trace, {}), ended


def test_messages_with_a_number_make_rounds_of_it(rounds) -> None:
    seen, ended = rounds
    for number in (1, 2):
        for kind in ("train", "evaluate"):
            to = [message(kind, node, server_round=number) for node in (1, 2)]
            seen.sent(to)
            # (1 x 1 + 3 x 5) / 4 = 4
            seen.replied([reply(to[0], loss=1.0, num_examples=1)])
            seen.replied([reply(to[1], loss=5.0, num_examples=3)])
    seen.central(2, {"score": 0.5, "name": "no number"})
    seen.aggregated("evaluate", {"loss": 7.0})
    seen.end()
    assert [record.round for record in ended] == [0, 1, 2]
    assert ended[1].metrics["3_clients/train.loss"] == 4.0
    assert ended[2].metrics["3_clients/evaluate.loss"] == 7.0  # as the strategy says
    assert ended[2].metrics["1_global/server.score"] == 0.5
    assert ended[2].clients["train.loss"] == [1.0, 5.0]
    assert seen.summary()["rounds"] == 2


def test_messages_without_a_number_make_a_round_when_a_client_is_asked_again(rounds) -> None:
    seen, ended = rounds
    for kind, nodes in (("query", (1,)), ("query", (2,)), ("train", (1, 2)), ("query", (1, 2))):
        seen.sent([message(kind, node) for node in nodes])
    seen.end()
    assert [record.round for record in ended] == [0, 1, 2]
    assert [record.metrics["3_clients/asked"] for record in ended[1:]] == [2, 2]


def test_lists_are_left_out_aloud_and_once(rounds) -> None:
    seen, ended = rounds
    for number in (1, 2):
        to = message("train", 1, server_round=number)
        seen.sent([to])
        seen.replied([reply(to, curve=[1.0, 2.0], loss=1.0)])
    seen.end()
    told = [event for record in ended for event in record.events]
    assert told == ["train.curve is a list, which is in no table and no chart"]


def test_any_name_of_a_metric_is_a_key(rounds) -> None:
    seen, ended = rounds
    to = message("train", 1, server_round=1)
    seen.sent([to])
    content = MetricRecord({"a/b c": 1.0, "a:b*c": 2.0, "ok.x-1": 3.0, "é": 4.0})
    seen.replied([Message(RecordDict({"m": content}), reply_to=to)])
    seen.end()
    catalog = Catalog(())
    catalog.declare(seen.declared())
    own = [key for key in ended[1].metrics if key.startswith("3_clients/train.")]
    assert len(own) == 4
    assert {*own} == {metric.key for metric in catalog}


def test_more_metrics_than_a_tag_holds_are_told(rounds) -> None:
    seen, ended = rounds
    seen.sent([message("train", 1, server_round=1)])
    seen.aggregated("train", {f"{'long' * 20}-{i}": 1.0 for i in range(100)})
    seen.end()
    assert 5000 < len(seen.declared()) < 8000
    assert len(json.loads(seen.declared())) == len(seen.summary()) - 2 - int(
        ended[1].events[0].split()[0]
    )


def test_the_global_model_is_what_the_strategy_made_else_what_was_sent(rounds) -> None:
    seen, _ = rounds
    sent, made = ArrayRecord([np.zeros(1)]), ArrayRecord([np.ones(1)])
    seen.sent([Message(RecordDict({"arrays": sent}), 1, "train")])
    assert seen.arrays is sent
    seen.model(made)
    seen.sent([Message(RecordDict({"arrays": sent}), 1, "evaluate")])
    assert seen.arrays is made


# The check


def test_the_first_difference_is_named() -> None:
    one = [Sight("round 1, train replied by client 0: arrays['w']", "a"), Sight("later", "b")]
    assert first_difference(one, list(one)) == ""
    assert first_difference(one, [one[0], Sight("later", "c")]) == "later"
    assert "which the other trial has not" in first_difference(one, one[:1])
    assert first_difference(one, [Sight("another", "a")]).endswith("another on two")


# The command


@pytest.fixture
def store(template: Path, tmp_path: Path) -> str:
    shutil.copy(template, tmp_path / "mlflow.db")
    return f"tracking.output={tmp_path}"


def test_a_sweep_of_an_app_is_run_resumed_reported_and_searched(
    store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "app", str(APPS / "numpy_quick"), "run_config.lr=0.25,0.5", "seed=0,1,2", INLINE, store,
        "lower=[train.train_loss]", "tracking.figures=none",
    ]  # fmt: skip
    assert main([*words, "--dry-run"]) == 0
    assert "6 trials of sweep 'numpy-quick'" in capsys.readouterr().out
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "train.train_loss" in first
    assert main(words) == 0
    again = capsys.readouterr().out
    assert "run before: 6 finished, 0 failed; 0 to run" in again
    assert again[again.index("results") :].split() == first[first.index("results") :].split()
    assert main(["best", "numpy-quick", "--metric", "train.train_loss", store]) == 0
    best = capsys.readouterr().out
    assert best.startswith("run_config.lr=0.5\n")
    assert "run_config.lr=0.5 seed=0" in best  # the command that gives it again
    assert main(["report", "numpy-quick", store]) == 0
    assert "8.0664 ± 0.0000 [8.0664, 8.0664]" in capsys.readouterr().out


def marks(of: fedsweep.Results) -> dict[tuple[float, float], bool]:
    """Return which rows are marked as the best by what clients evaluate, by lr and scale."""
    table = of.table()
    [scale] = [name for name in table if name.endswith("column.scale")]
    best = table.get("evaluate.eval_error_best", [False] * len(table))
    places = zip(table["run_config.lr"], table[scale], strict=True)
    return {(float(lr), float(scale)): bool(b) for (lr, scale), b in zip(places, best, strict=True)}


NONE = {(lr, scale): False for lr in (0.25, 0.5) for scale in (1.0, 2.0)}


def test_in_python_and_what_is_said_later_holds_for_trials_that_ended(
    copy, template: Path, capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path
) -> None:
    """Nothing runs twice; who is compared with whom, and by what, is as the last call says."""
    shutil.copy(template, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    folder = copy("numpy_quick")
    noise = "weights = weights + 0.01 * np.random.random() + "
    edited(folder, "numpy_quick/client_app.py", "weights = weights + ", noise)
    fixed = {
        "run_config.num-server-rounds": 1,
        "resources.engine": "inline",
        "tracking.figures": "none",
        "tracking.log_models": False,
        "tracking.output": tmp_path,
    }

    def swept(section: str, name: str = "", **settings: object) -> tuple[fedsweep.Results, str]:
        axes = {"run_config.lr": [0.25, 0.5], f"{section}.column.scale": [1, 2], "seed": range(3)}
        found = fedsweep.sweep_app(folder, axes=axes, settings=fixed | settings, name=name)
        return found, "".join(capsys.readouterr())

    first, _ = swept("run_config")
    assert (first.name, len(first), marks(first)) == ("numpy-quick", 12, NONE)

    # Of all rows the best is one of an easier problem.
    lower, out = swept("run_config", lower=["evaluate.eval_error", "evaluate.nothing"])
    assert "run before: 12 finished, 0 failed; 0 to run" in out
    assert "rows are compared across run_config.lr, run_config.column.scale" in out
    assert "evaluate.eval_error lower (before: not said)" in out
    assert "lower=evaluate.nothing: there is no such metric; there are " in out
    assert marks(lower) == NONE | {(0.5, 2.0): True}

    # Of each problem its own; the command gives it again, and has the same trials.
    each, out = swept("problem", lower=["evaluate.eval_error"])
    assert "before:" not in out.replace("run before:", "")
    assert marks(each) == NONE | {(0.5, 1.0): True, (0.5, 2.0): True}
    report = next((tmp_path / "reports").glob("*/report.md")).read_text()
    assert "Bold: better than each other row of the same scale" in report
    words = shlex.split(each.command)
    assert words[:3] == ["fedsweep", "app", str(folder)]
    keys = {trial.config.key for trial in expand_app(str(folder), words[3:]).trials}
    assert keys == {t.run.data.tags["trial.key"] for t in each._stored.trials}

    # Another sweep says the opposite of a metric of the same name, and changes nothing here.
    higher, _ = swept("problem", name="up", higher=["evaluate.eval_error"])
    assert marks(higher) == NONE | {(0.25, 1.0): True, (0.25, 2.0): True}
    assert marks(each) == NONE | {(0.5, 1.0): True, (0.5, 2.0): True}
    assert float(each.best("evaluate.eval_error").place["run_config.lr"]) == 0.5

    silent, out = swept("problem")
    assert "evaluate.eval_error neither (before: lower)" in out
    assert marks(silent) == NONE
    runs = silent.trials()["run_id"]
    assert {*runs} == {*first.trials()["run_id"]}
    with pytest.raises(ConfigError, match="Did you mean 'run_config.lr'"):
        fedsweep.sweep_app(folder, axes={"lr": [1.0]})
