"""Whatever is typed ends in trials or in one line: 2,000 command lines from a grammar."""

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

from fedsweep.cli import main
from fedsweep.errors import RunnerError
from fedsweep.reproduce.reproduce import load_experiment
from fedsweep.sweeps.compose import compose_trial, expand, groups, options, remarks

INPUTS = 2000
LONGEST_S = 5.0

NUMBERS = (
    "0", "1", "2", "-1", "3.0", "1e2", "1.5", "-0.0", ".5", "5.", "1_000", "0x10", "007", "1e-300",
    "5e-324", "1e29", "1e309", "-1e400", "inf", "-inf", "nan", "NaN", "Infinity", "1e26",
    "18446744073709551616", "9" * 400, "9" * 5000, "true", "false", "null", "~", "1,", ",1", "1e",
    "1e1000000", "٣", "½", "1/3", "0b1", "1 2", "+5", "--5",
)  # fmt: skip
TEXTS = (
    "", " ", "''", '""', "'3'", '"1e5"', "a b", "'a b'", "a,b", "'a,b'", "é", "'é'", "日本",
    "\u202e", "\ud800", "\x00", "\x1b[31m", "a\nb", "a\tb", "'a\nb'", "\\", "\\\\", "\\'", "'\\'",
    "a'b", 'a"b', "$HOME", "${HOME}", "`id`", "$(id)", "; rm -rf x", "#x", "@x", "%s", "{}", "[]",
    "{", "[", ")", "()", ":", "::", "=", "==", "a=b", "???", "null", "None", "_target_",
    "os.system", "../../etc", "/", "~", "~nobody1/x", "'~nobody1/x'", "//", "file:///x", "s3://b/c",
    "x" * 300, "x" * 3900, "x" * 100_000, "/" + "y" * 3000, "[/x]", "<b>", "\\frac", "CON",
    "é" * 500,
)  # fmt: skip
REFERENCES = (
    "${rounds}", "${seed}", "${training.lr}", "${training}", "${x}", "${oc.env:HOME}",
    "${oc.env:NO_SUCH_THING}", "${oc.env:NO_SUCH_THING,3}", "${oc.decode:'[1'}",
    "${oc.decode:null}", "${oc.create:{a:1}}", "${now:%Y}", "${", "${}", "${.}", "${..}",
    "${${rounds}}", "'${rounds}'", "a${rounds}b", "${hydra:runtime}", "${rounds",
    "${oc.select:x,1}", "${model.kwargs}", "${oc.dict.keys:training}", "\\${rounds}",
    "${training.lr}${rounds}", "${no.such:1}", "${oc.env:}",
)  # fmt: skip
SWEEPS = (
    "0,1", "0,0", "1,a", "0,1,2,3", "[1,2],[3]", "range(0,3)", "range(3)", "range(0,1,0)",
    "range(0,1,0.25)", "range(3,0)", "range(0,1000000000)", "range(0,inf)", "range(0,nan)",
    "range(nan,1)", "range(0,1,1e-30)", "range(0,-5,-1)", "range()", "range(a,b)", "range(1,2,3,4)",
    "range(start=0,stop=2)", "range(0,1,x)", "range(0,1e400)", "choice()", "choice(1,2)",
    "choice(choice(1),2)", "choice(a)", "choice(null)", "choice(1,inf)", "shuffle(0,1)",
    "shuffle(range(0,3))", "sort(1,0)", "sort(1,a)", "sort(range(0,3),reverse=true)", "sort(nan,1)",
    "tag(t,choice(0,1))", "tag(choice(0,1))", "tag(t,1)", "interval(0,1)", "interval(1)", "glob(*)",
    "glob([a*],exclude=b*)", "int(1.5,2.5)", "int(x)", "int(inf)", "float(3)", "str(1,2)",
    "str([1,{a:2}])", "bool(2)", "bool(x)", "int(range(0.5,3))", "json_str({a:1})",
    "extend_list(1)", "nosuch(1)", "int()", "int(1", "int(int(int('3')))", "choice(range(0,2))",
    "range(0,2),5", "inf,nan", "1e309,2", "true,false", "null,1", "'a','b'", "0,${rounds}",
    ",".join(map(str, range(1500))),
)  # fmt: skip
NESTED = (
    "[1,2]", "[1,[2,[3]]]", "[" * 15 + "]" * 15, "[" * 300, "[" * 200 + "]" * 200, "{a:1}",
    "{a:{b:{c:inf}}}", "{a:[1,nan]}", "{a:1,a:2}", "{1:2}", "{null:1}", "{[1]:2}", "{'a b':1}",
    "{a:}", "{:1}", "{a}", "[1,", "[,]", "[inf]", "[true,1]", "(" * 100,
    "int(" * 100 + "1" + ")" * 100, "{a:" * 12 + "1" + "}" * 12, "[1,2", "{lr:0.1}",
    "{name:fedavg}", "[${rounds}]", "{a:${training}}", "[" + "1," * 1000 + "1]",
)  # fmt: skip
KEYS = (
    "seed", "rounds", "num_clients", "evaluate_every", "training.lr", "training.batch_size",
    "training.epochs", "training.steps", "training.optimizer", "training.momentum",
    "strategy.num_clusters", "strategy.fraction_train", "strategy.server.ewma",
    "strategy.threshold", "strategy.name", "partition.alpha", "partition.name", "shift.angles",
    "shift.groups", "shift.newcomers", "model.name", "model.kwargs", "model.kwargs.hidden",
    "model.kwargs.a.b.c", "dataset.name", "dataset.path", "dataset.id", "dataset.max_train",
    "dataset.test_fraction", "data.root", "data.cache", "stop.target", "stop.metric",
    "stop.patience", "stop.wall_s", "halving.axis", "halving.min_rounds", "privacy.name",
    "resources.hosts.cpu.count", "resources.hosts", "resources.hosts.gpu.num_gpus",
    "resources.hosts.cpu.resources.x", "resources.trials", "resources.address",
    "resources.round_timeout_s", "tracking.uri", "tracking.output", "tracking.experiment",
    "tracking.log_models", "checkpoint.every", "checkpoint.storage_path",
)  # fmt: skip
HOSTILE_KEYS = (
    "", ".", "..", "training", "training.", ".lr", "training..lr", "training.lr.x", "training[lr]",
    "training.lrr", "sed", "a@b", "strategy@x", "strategy@training", "strategy/kmeans",
    "hydra.run.dir", "hydra", "defaults", "reproduction", "reproduction.rows", "_target_", "é",
    "'seed'", '"seed"', "${seed}", "seed seed", "--seed", "-seed", "~seed", "~", "+seed", "++seed",
    "+++seed", "+", "SEED", "seed.x", "__class__", "model.kwargs.", "x" * 500, "\x00", "config",
    "sweep", "axes", "strategy.server", "strategy.server.x", "resources.hosts.cpu",
    "resources.hosts.cpu.x", "0", "None",
)  # fmt: skip
LOOSE = (
    "", "=", "==", "-", "--", "-x", "~seed", "~training.lr=1", "seed", "--seed=1", "seed:1",
    "a b c", "'seed=1'", '"', "é=1", "=1", "seed==1", "seed=1=2", "seed =1", " seed=1", "seed= 1",
    "++seed=1", "+seed=1", "\n", "\x00=\x00", "$(x)=1", "--dry-run", "--fresh", "--no-such='a b'",
    "--address=", "--flag=", "@file", "[seed=1]", "seed=1;rounds=2",
)  # fmt: skip
AROUND = ("'@'", '"@"', "[@]", "{a:@}", "(@)", "int(@)", "@,@", " @ ", "'@", "@'", "-@")
# Few of them, and others rarely: each option is read from its file once.
OPTIONS = {
    "strategy": ("kmeans", "fedprox", "cfl", "flhc"),
    "partition": ("dirichlet", "centralized"),
    "shift": ("rotation",),
    "training": ("adam",),
    "model": ("logreg",),
    "privacy": ("fixed_server",),
    "dataset": ("mnist",),
    "resources": ("inline",),
    "experiment": ("drift", "mcmahan", "null"),
}


def value(draw: random.Random) -> str:
    kinds = (NUMBERS, TEXTS, REFERENCES, SWEEPS, NESTED)
    [kind] = draw.choices(kinds, weights=(4, 3, 2, 4, 2))
    chosen = draw.choice(kind)
    if draw.random() < 0.08:  # around it, what may be forgotten or doubled
        around = draw.choice(AROUND)
        chosen = around.replace("@", chosen)
    return chosen


def word(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.45:
        return f"{draw.choice(KEYS)}={value(draw)}"
    if kind < 0.6:
        return f"{draw.choice(HOSTILE_KEYS)}={value(draw) if draw.random() < 0.3 else '1'}"
    if kind < 0.7:
        return draw.choice(LOOSE)
    if kind < 0.75:
        return f"{draw.choice(groups())}={value(draw)}"
    group = draw.choice([*OPTIONS])
    chosen = draw.sample(OPTIONS[group], draw.randint(1, len(OPTIONS[group])))
    return f"{group}={','.join(chosen)}"


def run(words: Sequence[str]) -> None:
    compose_trial(words)


def sweep(words: Sequence[str]) -> None:
    remarks(expand("smoke", words)[1])


def sweep_by_name(words: Sequence[str]) -> None:
    name, *rest = words
    remarks(expand(name, rest)[1])


def reproduce(words: Sequence[str]) -> None:
    name, *rest = words
    load_experiment(name).trials(rest)


def command(words: Sequence[str]) -> None:
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(["config", *words])
    lines = err.getvalue().splitlines()
    assert (status, len(lines)) == (2, 1) or (status == 0 and "trial key" in out.getvalue()), lines
    if status:
        raise RunnerError(lines[0])


HOW: dict[str, Callable[[Sequence[str]], None]] = {
    "run": run,
    "sweep": sweep,
    "sweep_by_name": sweep_by_name,
    "reproduce": reproduce,
    "command": command,
}


def line(draw: random.Random) -> tuple[str, list[str]]:
    """Return a way to use words, and some."""
    words = [word(draw) for _ in range(draw.choices((1, 2, 3, 6), weights=(6, 3, 2, 1))[0])]
    how = draw.choices([*HOW], weights=(45, 42, 4, 1, 8))[0]
    if how == "sweep_by_name":
        words.insert(0, draw.choice((*options("sweep")[:2], *TEXTS)))
    if how == "reproduce":
        words.insert(0, draw.choice(("cfl", *TEXTS)))
    return how, words


def test_every_command_line_ends_in_trials_or_in_one_line() -> None:
    compose_trial([])  # what is imported and read once is no word's doing
    draw, ended = random.Random(16), Counter[str]()
    for _ in range(INPUTS):
        how, words = line(draw)
        began = time.perf_counter()
        try:
            HOW[how](words)
        except RunnerError as error:
            told = str(error)
            assert told.isprintable(), (how, words, told)
            assert len(told) < 2500, (how, words, told)
            ended["refused"] += 1
        except Exception as error:
            ended_in = f"{type(error).__name__}: {error}"
            raise AssertionError(f"{how} {words!r} ended in {ended_in}") from error
        else:
            ended["composed"] += 1
        took = time.perf_counter() - began
        assert took < LONGEST_S, (how, words, took)
    assert ended["refused"] > INPUTS // 4, ended
    assert ended["composed"] > INPUTS // 10, ended
