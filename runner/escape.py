"""Text from outside, as it goes out: names of classes, data and hosts, settings, errors, commands.

Any of them may hold any character. Each place where text leaves has one function here, and calls it
itself on all that it writes, so that who hands a text over has nothing to think of; HTML is escaped
by its template.
"""

import re
import shlex
import unicodedata
from collections.abc import Iterable
from hashlib import sha256
from os import fsencode

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Controls, marks that change directions, surrogates, ends of lines and paragraphs."""
_JOINERS = "\u200c\u200d"  # within words of Persian and within emoji
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "<": "$<$", ">": "$>$", "|": "$|$",
    "-": "-{}", "`": "`{}", "'": "'{}", "?": "?{}", "!": "!{}",
}  # fmt: skip
_LATEX_SPECIAL = re.compile(r"[\\{}$&%#_~^<>|±]|([-`'])(?=\1)|[?!](?=`)")  # last: ligatures
_MARKDOWN_SPECIAL = re.compile(
    r"[\\`*~|$]|&(?=#?\w+;)"
    r"|<(?=\S)"  # of an element; by itself it is a sign
    r"|(?<=\])[(\[:]|(?<=!)\["  # of links and pictures: an interval in brackets is none
    r"|(?<![^\W_])_|_(?![^\W_])"  # within a word it is a letter
    r"|(?<!\S)#"  # the first ends a heading, too
)
_BRACKET = re.compile(r"(\\.)|[\[\]]")
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # surrogates that are no byte of a name
_KEY_SPECIAL = re.compile(r"[^\w./ :-]")
KEY = 250
"""Characters that MLflow takes in the key of a param, metric or tag, and in the name of a run."""


def line(text: str) -> str:
    r"""Return a text as one line that people read: what can't be seen, or is no text, as an escape.

    Newlines become ``\n``, the terminal's control sequences lose their meaning, letters keep their
    order, and what can't be encoded (a file name that is no UTF-8) becomes ``\udcff``.
    """
    if text.isascii() and text.isprintable():
        return text
    told, before = [], " "
    for char in text:
        kind = unicodedata.category(char)
        if char in _JOINERS or kind in ("Mn", "Me"):  # seen with the letter before it alone
            seen = before in _JOINERS or unicodedata.category(before)[0] in "LMNS"
        else:
            seen = kind not in _HIDDEN
        told.append(char if seen else char.encode("unicode_escape").decode())
        before = char if seen else " "
    return "".join(told)


def lines(text: str) -> str:
    """Return a text of several lines that people read: see :func:`line`."""
    return "\n".join(map(line, text.split("\n")))


def bold(text: str) -> str:
    """Return what a line of Markdown shows as this text, in bold."""
    told = markdown(text).strip()
    return f"**{told}**" if told else ""


def picture(path: str, caption: str) -> str:
    """Return a picture in Markdown, with a caption that is read where it can't be seen."""
    told = _BRACKET.sub(lambda found: found[1] or f"\\{found[0]}", markdown(caption))
    return f"![{told}]({path})"


def fence(command: str) -> str:
    """Return a command as a block of Markdown; it is one line, so it can't end the block."""
    return f"```bash\n{line(command)}\n```"


def shortened(text: str, most: int) -> str:
    """Return a text of at most so many characters: its beginning and its end."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def storable(text: str) -> str:
    """Return a text that files and databases take: as it is, but for NUL and what is no Unicode."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", r"\x00")


def markdown(text: str) -> str:
    """Return what a line of Markdown (CommonMark, GitHub's tables) shows as this text."""
    return _MARKDOWN_SPECIAL.sub(r"\\\g<0>", line(text))


def latex(text: str) -> str:
    """Return what LaTeX sets as this text; it is safe as a cell, the first of a line too."""
    escaped = _LATEX_SPECIAL.sub(lambda found: _LATEX[found[0]], line(text))
    if escaped[:1] in ("[", "*"):  # would be an argument of the \\ before it
        return f"{{{escaped[0]}}}{escaped[1:]}"
    return escaped


def command(words: Iterable[str]) -> str:
    r"""Return a line that a shell reads as these words, to be copied from a terminal or a page.

    Words with characters that can't be seen are quoted as ``$'a\n'``, which bash, zsh and
    POSIX.1-2024 know.
    """
    return " ".join(map(_word, words))


def _word(word: str) -> str:
    if line(word) == word:
        return shlex.quote(word)
    word = _NO_BYTE.sub(lambda found: line(found[0]), word)
    # Byte by byte, as the system hands words over; letters stay readable.
    return f"$'{''.join(map(_byte, fsencode(word)))}'"


def _byte(value: int) -> str:
    plain = 32 <= value < 127 and chr(value) not in "\\'"
    return chr(value) if plain else f"\\{value:03o}"


def key(name: str, most: int = KEY) -> str:
    """Return a name that MLflow takes as a key: itself, or what is left of it with a digest.

    Each name has a key of its own.
    """
    path = {"", ".", ".."}.isdisjoint(name.split("/")) and not name.startswith("..")
    if path and len(name) <= most and not _KEY_SPECIAL.search(name):
        return name
    kept = "/".join(part for part in _KEY_SPECIAL.sub("_", name).split("/") if part.strip("."))
    return _with_digest(kept.lstrip("."), name, most)


def tag_is(tag: str, value: str) -> str:
    """Return the clause of an MLflow filter that finds the runs whose tag has a value.

    Its texts have no escape: for a value with a quote it finds all runs with that tag, so that what
    is found has to be compared.
    """
    plain = re.fullmatch(r"[\w .,:=+/-]*", value)
    return f"tags.`{tag}` = '{value}'" if plain else f"tags.`{tag}` != ''"


def label(name: str) -> str:
    """Return the name of a label of LaTeX: the name itself, or what is left of it with a digest."""
    kept = re.sub("[^A-Za-z0-9_-]", "-", name)
    return name if name == kept else _with_digest(kept, name, KEY)


def _with_digest(kept: str, name: str, most: int) -> str:
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{kept[: most - 1 - len(digest)]}-{digest}"
