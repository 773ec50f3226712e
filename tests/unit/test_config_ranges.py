"""Numbers: each setting that takes some says which, and takes no others."""

from collections.abc import Iterator
from math import inf, nan
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from fedsweep.config import RunConfig, Section
from fedsweep.config.section import OneOf, group_of
from fedsweep.errors import ConfigError
from fedsweep.strategies.ranges import allowed, bounds, leaves
from fedsweep.sweeps.compose import compose, validated
from fedsweep.sweeps.words import literal

LIMIT = 1 << 63


Path = tuple[str, ...]


def fields(owner: type[Section], path: Path = ()) -> Iterator[tuple[Path, FieldInfo]]:
    """Yield every field of every section, by its full key; a mapping's name is ``x``."""
    for name, field in owner.model_fields.items():
        sections = [kind for kind in leaves(field.annotation) if hasattr(kind, "model_fields")]
        if isinstance(one_of := group_of(field), OneOf):
            family = one_of.family  # the part that is meant where none is named comes first
            parts = sorted(family, key=lambda part: part != family.default)
            sections = [family.settings(part) for part in parts]
        inner = (*path, name, *(("x",) if get_origin(field.annotation) is dict else ()))
        for section in sections:
            yield from fields(section, inner)
        if not sections:
            yield inner, field


def numbers(field: FieldInfo) -> dict[type, dict[str, float]]:
    """Return the kinds of numbers in a field, with the bounds of each."""
    found: dict[type, dict[str, float]] = {}

    def walk(annotation: Any, limits: list[Any]) -> None:
        if get_origin(annotation) is Annotated:
            first, *more = get_args(annotation)
            walk(first, limits + [m for extra in more for m in getattr(extra, "metadata", [extra])])
        elif get_args(annotation):
            for part in get_args(annotation):
                walk(part, limits)
        elif annotation in (int, float):
            found[annotation] = bounds(limits)

    walk(field.annotation, list(field.metadata))
    return found


ALL: dict[Path, FieldInfo] = {}
for place, own in fields(RunConfig):
    ALL.setdefault(place, own)  # of several options that have a key the first one's
NUMBERS = {path: field for path, field in ALL.items() if numbers(field)}
BOOLEANS = {path: field for path, field in ALL.items() if field.annotation is bool}


def given(path: Path, value: Any) -> Any:
    """Return the values of a configuration in which one setting is something."""
    field = ALL[path]
    if get_origin(next(iter(get_args(field.annotation)), None)) is tuple:
        value = [value]  # of a list, a list
    for name in reversed(path):
        value = {name: value}
    top, rest = next(iter(value.items()))
    options = (
        group.options_of(path[1]) if (group := group_of(RunConfig.model_fields[top])) else None
    )
    option = options[0] if options else None
    key = group.family.key if isinstance(group, OneOf) else "name"
    return {top: rest | {key: option}} if option and isinstance(rest, dict) else value


def refusal(path: Path, value: Any) -> str:
    try:
        config = validated(RunConfig, given(path, value), "")
    except ConfigError as error:
        return str(error)
    return f"accepted: {config}"


def test_the_walk_finds_the_numbers() -> None:
    known = {("training", "lr"), ("seed",), ("strategy", "server", "ewma"), ("shift", "angles")}
    known |= {("resources", "hosts", "x", "count"), ("resources", "hosts", "x", "resources", "x")}
    assert known < {*NUMBERS}
    assert len(NUMBERS) > 80


@pytest.mark.parametrize("path", NUMBERS, ids=".".join)
def test_each_number_has_a_range_and_takes_nothing_else(path: Path) -> None:
    """The one property of them all: what is refused, in one line with the key and the range."""
    field = NUMBERS[path]
    sentence = allowed(field.annotation, field.metadata)
    assert sentence
    for limits in numbers(field).values():
        assert len(limits) == 2, f"{path} has no range with two ends"
        assert {"ge", "gt"} & {*limits}
        assert all(abs(bound) < LIMIT for bound in limits.values())
    tiny = 1e-300  # no number that float32 tells from 0
    for bad in (inf, -inf, nan, 1e309, True, False, "3", "x", 1e29, -1e29, 10**30, 10**400, tiny):
        told = refusal(path, bad)
        assert told.startswith(".".join(path).removesuffix(".x")), (bad, told)
        assert told.endswith(f"it has to be {sentence}"), (bad, told)
        assert "\n" not in told


@pytest.mark.parametrize("path", NUMBERS, ids=".".join)
def test_the_range_that_is_said_is_the_one_that_holds(path: Path) -> None:
    kinds = numbers(NUMBERS[path])
    [(kind, limits)] = kinds.items()
    for name, bound in limits.items():
        inside = name in ("ge", "le")
        assert refusal(path, kind(bound)).endswith(f"it has to be {allowed(*said(path))}") != inside
        beyond = bound + (1 if name in ("le", "lt") else -1)
        assert refusal(path, kind(beyond)).endswith(f"it has to be {allowed(*said(path))}")


def said(path: Path) -> tuple[Any, list[Any]]:
    return NUMBERS[path].annotation, NUMBERS[path].metadata


@pytest.mark.parametrize("path", BOOLEANS, ids=".".join)
def test_a_number_and_a_word_are_no_truth(path: Path) -> None:
    for bad in (0, 1, 1.0, "true", "yes", nan):
        assert refusal(path, bad).endswith("it has to be true or false")


WHOLE = [path for path, field in NUMBERS.items() if int in numbers(field)]


@pytest.mark.parametrize("path", WHOLE, ids=".".join)
def test_a_whole_number_may_be_written_with_a_point(path: Path) -> None:
    """``rounds=1e1`` is ten; what is not whole is refused, never rounded."""
    sentence = f"it has to be {allowed(*said(path))}"
    limits = numbers(NUMBERS[path])[int]
    value = float(min(limits["le"], limits["ge"] + 1))
    assert not refusal(path, value).endswith(sentence)
    assert refusal(path, value + 0.5).endswith(sentence)


def test_whole_numbers_are_whole_numbers_in_the_end() -> None:
    config = compose(["rounds=1e1", "training.batch_size=20.0", "resources.hosts.cpu.count=2.0"])
    assert (repr(config.rounds), repr(config.training.batch_size)) == ("10", "20")
    assert repr(config.resources.hosts["cpu"].count) == "2"
    assert compose(["rounds=1e1"]).key == compose(["rounds=10"]).key
    with pytest.raises(ConfigError, match="seed=1e.18: it has to be a whole number from 0 to 9223"):
        compose(["seed=1e18"])  # a float is not every whole number there


def test_numbers_are_finite_where_anything_may_stand_too() -> None:
    for bad in ("inf", "nan", "1e309", "1e-300", "[1,[2,inf]]", "{b:{c:nan}}", str(10**30)):
        with pytest.raises(ConfigError, match=r"^model.kwargs=.*a number has to be finite"):
            compose([f"model.kwargs.a={bad}"])
    assert compose(["model.kwargs={a:[1,2.5],b:true}"]).model.kwargs == {"a": [1, 2.5], "b": True}


@pytest.mark.parametrize("bad", ["inf", "nan", "1e309", "true", "'3'", "1e26", "-1", "1e-300"])
def test_words_are_refused_like_values(bad: str) -> None:
    for key in ("training.lr", "seed", "training.batch_size", "rounds", "strategy.fraction_train"):
        told = rf"^{key}=.*: it has to be a (whole )?number "
        with pytest.raises(ConfigError, match=told) as caught:
            compose([f"{key}={bad}"])
        assert "\n" not in str(caught.value)


def test_defaults_lie_in_their_ranges() -> None:
    config = RunConfig()
    assert RunConfig.model_validate(config.model_dump()).key == config.key


def test_text_of_a_file_stays_text() -> None:
    """What is written in YAML is what is composed, through the grammar of words."""
    texts = ("true", "null", "3", "1e5", "inf", "a b", "a,b", "range(0,3)", "é", "a'b\"c", "[1]")
    for value in (*texts, ""):
        word = f"model.kwargs.a={literal(value)}"
        assert compose([word]).model.kwargs == {"a": value}
