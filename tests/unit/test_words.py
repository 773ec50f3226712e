"""Words: what is read, what is refused in which line, and hints that a shell passes on."""

import shlex
import subprocess
import time

import pytest

from fedsweep import cli
from fedsweep.errors import ConfigError, RunnerError, shown
from fedsweep.sweeps.compose import SweepFile, compose, compose_trial, expand, expand_grids
from fedsweep.sweeps.sweep import SweepPlan
from fedsweep.sweeps.words import MOST_CELLS, literal, parse


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        expand("smoke", words)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("strategy=glob(*)", "is a pattern, and a grid has single values; list its values, as str"),
        ("seed=interval(0,1)", "is continuous, and a grid has single values; list its values, as"),
        ("seed=range(0,1,0)", "has no end: a range is start, stop"),
        ("seed=range(0,inf)", "has no end"),
        ("seed=range(0,nan)", "has no end"),
        ("seed=range(0,1,1e-300)", "values, and an axis has at most 10,000; take fewer"),
        ("seed=range(0,1000000000)", "'seed=range(0,1000000000)' has 1,000,000,000 values, and an"),
        ("seed=range(3,0)", "the grid is empty: 'seed=range(3,0)' has no value; list its values,"),
        ("seed=range(0,2),5", "has several values inside of others; write all, as seed=a,b"),
        ("model.kwargs.a=[range(0,2)]", "has several values inside of others"),
        ("seed=choice()", "'seed=choice()' can't be read: ValueError while evaluating 'choice()':"),
        ("seed=choice(choice(1),2)", "has several values inside of others"),
        ("seed=shuffle(0,1)", "leave out shuffle() and tag()"),
        ("seed=shuffle(range(0,3))", "leave out shuffle() and tag()"),
        ("seed=tag(x,choice(0,1))", "leave out shuffle() and tag()"),
        ("seed=sort(1,a)", "can't be read: TypeError while evaluating 'sort(1,a)'"),
        ("seed=int(x)", "can't be read: ValueError while evaluating 'int(x)'"),
        ("seed=nosuch(1)", "Unknown function 'nosuch'"),
        ("seed=" + "9" * 5000, "has 5,005 characters, and a word has at most 4,000; shorten it"),
        ("seed=" + "[" * 300, "has brackets in 300 levels, and at most 20 are read"),
        ("seed=" + "9" * 3000, "seed=9999"),
        ("seed=", "seed='': it is empty; give a value, or leave it out"),
        ("dataset.path=", "dataset.path='': it is empty"),
        ("~seed", "'~seed': a setting can't be deleted; set another value, such as seed=null"),
        ("~training.lr=1", "a setting can't be deleted; set another value, such as training.lr=nu"),
        ("strategy@x=kmeans", "'strategy@x=kmeans' names no key and no group; write GROUP=OPTION"),
        ("=1", "'=1' names no key and no group"),
        ("strategy/server=x", "unknown key or group 'strategy/server'"),
        ("training..lr=1", "can't be read"),
        ("training.lr.x=1", "training.lr={'x': 1}: it has to be a number above 0 and at most 1000"),
        ("rounds.x=1", "'rounds.x=1' can't be set: there are no keys below rounds=2"),
        ("seed.x=1", "'seed=0' can't be set beside seed={'x': 1}; give one of them"),
        ("strategy.name.x=1", "'strategy.name.x=1' can't be set: there are no keys below name='km"),
        ("training={lr:1}", "unknown training '{'lr': 1}'"),
        ("training.lr=${nothing}", "the configuration can't be resolved: Interpolation key 'nothi"),
        ("training.lr=${training.lr}", "the configuration can't be resolved: Recursive interpolat"),
        ("training.lr=${oc.env:NO_SUCH_VARIABLE}", "Environment variable 'NO_SUCH_VARIABLE' not f"),
        ("seed=a\x1b[31m", "'seed=a\\x1b[31m' holds a character that can't be printed; leave it o"),
        ("seed=a\nb", "'seed=a\\nb' holds a character that can't be printed"),
        ("seed=\udcff", "is no text in this shell's encoding; set LANG and LC_ALL to one of UTF-8"),
        ("--seed=1", "'--seed=1' is not key=value"),
        ("seed", "'seed' is not key=value"),
        ("x" * 500 + "=1", "unknown key or group 'xxx"),
        ('data.root="~no-such-user/x"', "the home folder of ~ is not known; set $HOME, or give an"),
        (f"data.root=/{'x' * 300}", "it is too long for a path; give a shorter one"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(word: str, sentence: str) -> None:
    began = time.perf_counter()
    assert sentence in refusal(word)
    assert time.perf_counter() - began < 5


def test_a_grid_has_an_end() -> None:
    told = refusal("seed=range(0,101)", "rounds=range(3,103)")
    sizes = "101 of seed x 100 of rounds"
    assert told.startswith(f"the grid has 10,100 cells ({sizes}), and at most 10,000 are expanded;")
    axes = {"seed": list(range(MOST_CELLS + 1))}
    with pytest.raises(ConfigError, match="the grid has 10,001 cells"):
        expand_grids([SweepFile(axes=axes)], [])


@pytest.mark.parametrize(
    ("word", "seeds"),
    [
        ("seed=0,1", [0, 1]),
        ("seed=choice(3,1)", [3, 1]),
        ("seed=sort(3,1)", [1, 3]),
        ("seed=range(0,3)", [0, 1, 2]),
        ("seed=range(3,0,-1)", [3, 2, 1]),
        ("seed=range(0,1e1,5)", [0, 5]),
        ("seed=int(1.5,2.5)", [1, 2]),
        ("+seed=0,1", [0, 1]),
        ("++seed=7", [7]),
        ("seed=${rounds}", [2]),
        ("seed=${rounds},5", [2, 5]),
        ("seed='${oc.decode:${oc.env:NO_SUCH_VARIABLE,8}}',5", [8, 5]),
    ],
)
def test_what_means_something_is_expanded(word: str, seeds: list[int]) -> None:
    assert [trial.config.seed for trial in expand("smoke", [word])[1]] == seeds


TEXTS = (
    "a b", "a(b)", "é", "日本", "a'b", 'a"b', "a'b\"c", "$HOME", "`id`", "; rm x", "a\\", "\\",
    "a|b&c", "(", "[1", "#", "~/x", "a=b", "!x", "*?", "%", "<b>", "it's \"x\" \\ y",
)  # fmt: skip


def shell(script: str) -> list[str]:
    """Return what a script prints, by its NULs."""
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_a_hint_is_typed_as_it_is_shown() -> None:
    """A shell hands on what the hint says, and it is the text that was meant."""
    hints = {}
    for text in TEXTS:
        try:
            parse([f"model.kwargs.a={text}"])
        except ConfigError as error:
            hints[text] = str(error).partition("type ")[2]
    assert len(hints) > 10
    script = "".join(f"printf '%s\\0' {hint};" for hint in hints.values())
    for text, word in zip(hints, shell(script), strict=True):
        assert parse([word])[0].value == text


def test_what_a_message_says_to_type_is_one_word_of_a_shell() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["model.kwargs.a='x y','z'"])
    [_, typed] = str(caught.value).split("quote a list as ")
    assert compose(shlex.split(typed)).model.kwargs == {"a": ["x y", "z"]}


def test_a_trials_command_gives_the_trial_again_whatever_its_words() -> None:
    names = (f"t{number}" for number in range(len(TEXTS)))
    given = zip(names, TEXTS, strict=True)
    values = [f"model.kwargs.{name}={literal(text)}" for name, text in given]
    trial = compose_trial(values)
    echo = f"fedsweep() {{ shift 1; printf '%s\\0' \"$@\"; }}; {trial.command}"
    assert compose(shell(echo)).key == trial.config.key
    assert list(trial.config.model.kwargs.values()) == list(TEXTS)


@pytest.mark.parametrize("arguments", [["sweep", "smoke"], ["reproduce", "cfl"]])
def test_the_command_to_go_on_is_typed_as_it_is_shown(
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plans: list[SweepPlan] = []

    def execute(plan: SweepPlan, mode: str) -> int:
        plans.append(plan)
        return 130

    monkeypatch.setattr(cli, "_execute", execute)
    word = "tracking.experiment='a b; $(id)'"
    assert cli.main([*arguments, word, "--address", "it's:1"]) == 130
    typed = shlex.split(plans[0].command)
    assert typed[1:] == [*arguments, word, 'resources.address="it\'s:1"']
    assert {trial.config.resources.address for trial in plans[0].trials} == {"it's:1"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["swep"], "argument COMMAND: invalid choice: 'swep'"),
        (["sweep"], "name a sweep (beyond_images, captured, default, "),
        (["run", "--dry"], "unknown option '--dry'; see `fedsweep run --help`"),
        (["run", "--no-such='a b'"], "unknown option '--no-such='a b'"),
        (["run", "--flag="], "unknown option '--flag='"),
        (["run", "--fresh=1"], "argument --fresh: ignored explicit argument '1'"),
        (["run", "--address"], "argument --address: expected one argument"),
        (["run", "--address="], "resources.address='': it is empty"),
        (["run", "--quiet", "--json"], "argument --json: not allowed with argument --quiet"),
        (["report", "x", "--test=z"], "--test='z': input should be 't' or 'wilcoxon'"),
        (["ui", "--port", "x"], "argument --port: invalid int value: 'x'"),
        (["sweep", "no\nsuch\x1b"], "unknown sweep 'no\\nsuch\\x1b'"),
        (["config", "\x00"], "holds a character that can't be printed"),
        ([], "the following arguments are required: COMMAND"),
    ],
)  # fmt: skip
def test_a_command_line_is_refused_in_one_line(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1
    assert err[:-1].isprintable()


def test_a_message_is_one_line_that_can_be_read() -> None:
    told = str(RunnerError(f"a\nb\x1b\x00\udcff{'x ' * 9000}"))
    assert told.startswith("a b\\x1b\\x00\\udcffx x")
    assert told.isprintable()
    assert len(told) == 2000


def test_a_shown_text_is_short() -> None:
    assert shown("x" * 300, 20) == "x" * 10 + "…" + "x" * 9


def test_options_give_what_hydra_composes_of_all_of_them() -> None:
    """Each is composed once; Hydra makes the same of them at once."""
    from fedsweep.sweeps.compose import CONFIGS, _composed, _hydra, groups, options

    ours = (str(CONFIGS),)
    for pick in (0, -1):
        of = [group for group in groups() if group != "experiment"]
        choices = tuple(f"{group}={options(group)[pick]}" for group in of)
        assert _composed(choices) == _hydra(choices, ours)
        assert _composed((*choices, "experiment=drift")) == _hydra(
            (*choices, "experiment=drift"), ours
        )


def test_a_mapping_is_merged_and_a_list_replaced() -> None:
    config = compose(["model.kwargs={a:1,b:{c:2},l:[1,2]}", "model.kwargs={b:{d:3},l:[4]}"])
    assert config.model.kwargs == {"a": 1, "b": {"c": 2, "d": 3}, "l": [4]}
    groups_of_hosts = compose(["resources=mixed", "resources.hosts.more={count:2}"]).resources.hosts
    assert {*groups_of_hosts} > {*compose(["resources=mixed"]).resources.hosts}
