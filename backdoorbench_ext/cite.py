"""BibTeX of methods, from their docstrings, which name their paper: ``Authors: "Title", VENUE YEAR,
link``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from . import __version__, registry
from .errors import nearest

PAPER = re.compile(
    r"""(?P<authors>[A-Z][^.:"]*(?:\ al\.)?):\ "(?P<title>[^"]+)",\ (?:(?P<venue>[^.,]+?)\ )?"""
    r"""(?P<year>\d{4})\b.*?(?P<url>https://[^\s,;)]+?)(?=[\s,;)]|\.?$|\.\s)"""
)
KINDS: tuple[str, ...] = ("attacks", "defenses")
# a program, for the entry of this software
SOFTWARE = f"""@software{{backdoorbench_ext,
  title = {{{{backdoorbench\\_ext}}: a backdoor benchmark suite}},
  author = {{{{The backdoorbench\\_ext authors}}}},
  version = {{{__version__}}},
}}
"""
NOTE = "% family names only: see the link for the full ones"


def cite(names: Sequence[str], attacks: Sequence[str] = (), defenses: Sequence[str] = ()) -> str:
    """This software's entry and those of methods, by their names with or without options.

    Args:
        names: of either kind.
        attacks, defenses: of one, as a grid has them, where two methods may have one name.

    Raises:
        InputError: a name that is neither an attack's nor a defense's.
    """
    asked = [(name, KINDS) for name in names]
    asked += [(name, ("attacks",)) for name in attacks]
    asked += [(name, ("defenses",)) for name in defenses]
    entries: dict[str, str] = {}
    for text, among in asked:
        name = registry.parse(text)[0]
        kinds = [kind for kind in among if name in registry.modules(kind)]
        if not kinds:
            known = list(dict.fromkeys(n for kind in among for n in registry.modules(kind)))
            raise nearest(name, known, " and ".join(among))
        for kind in kinds:
            if paper := found(kind, name):
                # methods may share a paper
                entries.setdefault(paper["url"], _entry(name, paper))
    return "\n".join([SOFTWARE, *([NOTE] if entries else []), *entries.values()])


def found(kind: str, name: str) -> re.Match[str] | None:
    """What the docstring of a method's file says of its paper."""
    module = sys.modules[registry.get_class(kind, name).__module__]
    return PAPER.search(" ".join((module.__doc__ or "").split()))


def _entry(name: str, paper: re.Match[str]) -> str:
    authors = paper["authors"].replace(" et al.", ", others").replace(", ", " and ")
    lines = [
        f"@{'inproceedings' if paper['venue'] else 'misc'}{{{name}{paper['year']},",
        f"  title = {{{{{paper['title']}}}}},",
        f"  author = {{{authors}}},",
        *([f"  booktitle = {{{paper['venue']}}},"] if paper["venue"] else []),
        f"  year = {{{paper['year']}}},",
        f"  url = {{{paper['url']}}},",
        "}",
        "",
    ]
    return "\n".join(lines)
