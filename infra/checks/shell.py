"""Shell text taken apart into simple commands, without running any."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

_OPERATORS = {"|", "||", "&&", ";", "&", "(", ")"}
_REDIRECTIONS = {">", ">>", "<", "2>", "&>"}
_SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)


def simple_commands(text: str) -> list[list[str]]:
    """The words of each simple command: those joined by ; && || |, and those inside $( ).

    Assignments before a command and redirections are left out.

    Raises:
        ValueError: a quote that is not closed.
    """
    inner = [words for found in _SUBSTITUTION.findall(text) for words in simple_commands(found)]
    commands: list[list[str]] = []
    for line in _SUBSTITUTION.sub("SUBSTITUTED", text).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        commands.append([])
        skip = False
        for word in lexer:
            if word in _OPERATORS:
                commands.append([])
            elif word in _REDIRECTIONS or skip:
                skip = not skip
            elif commands[-1] or not _ASSIGNMENT.fullmatch(word):
                commands[-1].append(word)
    return [words for words in commands if words] + inner


def option(words: Sequence[str], name: str) -> str:
    """The value of an option, given as `--name value` or `--name=value`; empty if it is absent."""
    for place, word in enumerate(words):
        if word == name:
            return "".join(words[place + 1 : place + 2])
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""


def code_blocks(markdown: str, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language, each with the number of its first line."""
    blocks = []
    for found in re.finditer(rf"^```{language}\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL):
        blocks.append((markdown.count("\n", 0, found.start(1)) + 1, found[1]))
    return blocks
