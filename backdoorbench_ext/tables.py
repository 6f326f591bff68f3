"""Tables, pure functions of records: long CSV with every number, LaTeX and Markdown as a paper
prints them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from string import ascii_letters

import pandas as pd

from . import registry
from .errors import InputError
from .records import METRICS, Record, precision, wilson
from .suite import Suite

ARROWS = {"ca": ("CA", "up"), "asr": ("ASR", "down"), "arr": ("ARR", "up")}
# a defense's other name is written in capitals
TITLES = {"none": "No Defense", "ft_sam": "FT-SAM", "i_bau": "I-BAU"}
ATTACKS = {
    "none": "No attack",
    "badnets": "BadNets",
    "wanet": "WaNet",
    "ftrojan": "FTrojan",
    "adaptive_noise": "Adaptive noise",
}
# another attack's name begins with a capital
ATTACKS |= {name: name.upper() for name in ("sig", "lc", "lf", "ctrl", "issba", "tuap")}
FORMATS = ("latex", "markdown", "csv")


def title(defense: str) -> str:
    """How a defense is called at the head of a table: ``mcci[inference=avg]`` -> ``MCCI
    [inference=avg]``.
    """
    name, bracket, options = defense.partition("[")
    return TITLES.get(name, name.upper()) + (f" {bracket}{options}" if bracket else "")


def _lettered(names: Mapping[str, str], used: int = 0) -> dict[str, str]:
    """Specs and what to call them: those with options get a letter, ``used`` being taken."""
    letters = iter(ascii_letters[used:])
    return {
        spec: name + (f" ({next(letters)})" if "[" in spec else "") for spec, name in names.items()
    }


def heads(defenses: Sequence[str]) -> dict[str, str]:
    """Short names for the head of a table: those with options get a letter, which the caption
    explains.
    """
    return _lettered({d: TITLES.get(name := d.partition("[")[0], name.upper()) for d in defenses})


def labels(attacks: Sequence[str], defenses: Sequence[str]) -> dict[str, str]:
    """The same for attacks; their letters come after those of the defenses."""
    named = {a: ATTACKS.get(name := a.partition("[")[0], name.capitalize()) for a in attacks}
    return _lettered(named, sum("[" in d for d in defenses))


def letters(*names: Mapping[str, str]) -> list[str]:
    """What the letters of ``heads`` and ``labels`` mean: ``(a) inference=avg``."""
    lettered = [(spec, name) for some in names for spec, name in some.items() if "[" in spec]
    return [
        f"{name.rpartition(' ')[2]} {', '.join(registry.split(spec.partition('[')[2][:-1]))}"
        for spec, name in lettered
    ]


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row a record: what was run, each metric in percent with its 95 % Wilson interval, what
    was given, where it ran.
    """
    rows = []
    for record in records:
        spec = record["spec"]
        row = dict(record["cell"])
        row |= {
            "rate": spec["rate"],
            "seed": spec["seed"],
            "protocol": f"{spec['protocol']['name']} v{spec['protocol']['version']}",
        }
        for name in METRICS:
            hits, n = record["metrics"][name]
            low, high = wilson(hits, n)
            row |= {
                name: 100 * hits / n if n else float("nan"),
                f"{name}_low": 100 * low,
                f"{name}_high": 100 * high,
                f"{name}_n": n,
            }
        for probe, metrics in sorted(record["probes"].items()):
            row |= {f"{probe} {name}": 100 * hits / n for name, (hits, n) in metrics.items() if n}
        row |= {
            "clean_images": record["given"]["clean_images"],
            "training_seconds": record["time"]["training"],
        }
        row |= {
            "device": record["surroundings"]["device"],
            "precision": precision(record),
            "commit": record["surroundings"]["commit"],
        }
        rows.append(row)
    return pd.DataFrame(rows)


def summary(records: Sequence[Record]) -> pd.DataFrame:
    """Mean, sample standard deviation and count over seeds of each metric, by data set, rate,
    attack and defense, in that order.
    """
    data = frame(records)
    groups = data.groupby(["dataset", "rate", "attack", "defense"], sort=False)
    return groups[list(METRICS)].agg(["mean", "std", "count"])


def mark(values: Sequence[float], higher: bool) -> list[str]:
    """ "best", "second" or "" for each value, compared as printed (two decimals); equal values
    share a mark, nan has none.
    """
    printed = [round(v, 2) for v in values]
    ranks = sorted({v for v in printed if v == v}, reverse=higher)
    return (
        [
            "best" if v == ranks[0] else "second" if len(ranks) > 1 and v == ranks[1] else ""
            for v in printed
        ]
        if ranks
        else [""] * len(values)
    )


# more defenses than these stand below each other, not beside
WIDE = 6
# text and mark of each metric
Cell = list[tuple[str, str]]
EMPTY: Cell = [("--", "")] * len(METRICS)


@dataclass(frozen=True)
class Line:
    """A row of a table: its label, what stands in the column of clean images, and a cell for each
    group of columns; without cells a heading.
    """

    label: str
    given: str = ""
    cells: tuple[Cell, ...] = ()
    rule: bool = False


@dataclass(frozen=True)
class Layout:
    """A table: what its groups of columns are called, what its rows are, the clean images given to
    each group where a group is a defense.
    """

    groups: list[str]
    rows: str
    lines: list[Line]
    given: list[str]


def _block(
    numbers: pd.DataFrame,
    dataset: str,
    attacks: Sequence[tuple[str, float]],
    defenses: Sequence[str],
) -> dict[tuple[str, str], Cell]:
    """The cells of a data set and rate, by (attack, defense), the average over all attacks under
    "Average".
    """
    found = {
        (a, d): numbers.loc[dataset, r, a, d]
        for a, r in attacks
        for d in defenses
        if (dataset, r, a, d) in numbers.index
    }
    harmful = [a for a, _ in attacks if a != "none"]
    for d in defenses:
        if len(harmful) > 1 and all((a, d) in found for a in harmful):
            found["Average", d] = pd.DataFrame([found[a, d] for a in harmful]).mean()
            found["Average", d][[(m, "count") for m in METRICS]] = 1
    cells: dict[tuple[str, str], Cell] = {key: [] for key in found}
    for attack in dict.fromkeys(a for a, _ in found):
        own = [d for d in defenses if (attack, d) in found]
        ranked = [d for d in own if d.partition("[")[0] != "none"]
        for metric in METRICS:
            marks = dict(
                zip(
                    ranked,
                    mark([found[attack, d][metric, "mean"] for d in ranked], metric != "asr"),
                    strict=True,
                )
            )
            for d in own:
                mean, std, count = found[attack, d][metric]
                cells[attack, d].append(
                    (f"{mean:.2f}" + (f" ± {std:.2f}" if count > 1 else ""), marks.get(d, ""))
                )
    return cells


def _each(suite: Suite, values: Mapping[str, str]) -> str:
    """The values of several data sets in the suite's order, once if they are the same."""
    return " / ".join(dict.fromkeys(values[d] for d in suite.datasets if d in values))


def layout(records: Sequence[Record], suite: Suite) -> Layout:
    """Attacks down and defenses across, or the other way round where there are more than ``WIDE``
    defenses.
    """
    numbers = summary(records)
    defenses = [d for d in suite.defenses if d in numbers.index.get_level_values("defense")]
    given = {
        (r["cell"]["dataset"], r["cell"]["defense"]): str(r["given"]["clean_images"])
        for r in records
    }

    def rows(dataset: str, rate: float) -> list[tuple[str, float]]:
        """The attacks of a block, those with a rate of their own in the first one."""
        found = {(i[1], i[2]) for i in numbers.index if i[0] == dataset}
        own = suite.own_rates if rate == suite.rates[0] else dict.fromkeys(suite.own_rates, -1.0)
        return [(a, own.get(a, rate)) for a in suite.attacks if (own.get(a, rate), a) in found]

    blocks = [(d, r, rows(d, r)) for d in suite.datasets for r in suite.rates if rows(d, r)]
    rated = {
        a: f", rate {100 * own:g} %" * (own != rate)
        for _, rate, attacks in reversed(blocks)
        for a, own in reversed(attacks)
    }
    shown = [a for a in suite.attacks if a in rated]
    called = labels(shown, defenses) | {"Average": "Average"}
    across = len(defenses) <= WIDE
    lines = []
    for dataset, rate, attacks in blocks:
        cells = _block(numbers, dataset, attacks, defenses)
        if len(blocks) > 1:
            lines.append(Line(f"{dataset}, poisoning rate {100 * rate:g} %"))
        if across:
            for a, own in [
                *attacks,
                *([("Average", rate)] if any(key[0] == "Average" for key in cells) else []),
            ]:
                label = called[a] + f", rate {100 * own:g} %" * (own != rate)
                lines.append(
                    Line(
                        label, "", tuple(cells.get((a, d), EMPTY) for d in defenses), a == "Average"
                    )
                )
        else:
            columns = [*shown, "Average"] if len(shown) > 1 else shown
            lines += [
                Line(
                    name,
                    given.get((dataset, d), "--"),
                    tuple(cells.get((a, d), EMPTY) for a in columns),
                )
                for d, name in heads(defenses).items()
            ]
    if across:
        return Layout(
            list(heads(defenses).values()),
            "Attack",
            lines,
            [_each(suite, {s: n for (s, own), n in given.items() if own == d}) for d in defenses],
        )
    return Layout(
        [called[a] + rated[a] for a in shown] + ["Average"] * (len(shown) > 1), "Defense", lines, []
    )


def present(records: Sequence[Record], suite: Suite) -> tuple[list[str], list[str]]:
    """The attacks and the defenses that have records, in the suite's order."""
    attacks, defenses = ({r["cell"][kind] for r in records} for kind in ("attack", "defense"))
    return [a for a in suite.attacks if a in attacks], [d for d in suite.defenses if d in defenses]


def _protocols(suite: Suite, datasets: Sequence[str]) -> str:
    """The protocol of the first data set, and of the others what differs from it."""
    first, *others = [(d, str(suite.protocol.on(d)).split(", ")) for d in datasets]
    unlike = [(d, [part for part in parts if part not in first[1]]) for d, parts in others]
    return "; ".join(
        [", ".join(first[1]), *(f"{d}: {', '.join(parts)}" for d, parts in unlike if parts)]
    )


def mixed(records: Sequence[Record]) -> list[str]:
    """The attacks whose poisoned images were not the same in all records of a data set, rate and
    seed: a picture was changed, or a trigger learned anew.
    """
    seen: dict[tuple[object, ...], set[str]] = {}
    for r in records:
        key = (r["cell"]["attack"], r["cell"]["dataset"], r["spec"]["rate"], r["spec"]["seed"])
        seen.setdefault(key, set()).update({r["surroundings"].get("poison")} - {None})
    return list(
        dict.fromkeys(str(attack) for (attack, *_), digests in seen.items() if len(digests) > 1)
    )


def caption(records: Sequence[Record], suite: Suite) -> str:
    """What a reader must know of the numbers: protocol, counts, seeds, options, where they come
    from.
    """
    seeds = sorted({r["spec"]["seed"] for r in records})
    attacks, defenses = present(records, suite)
    called = labels(attacks, defenses)
    options = letters(heads(defenses), called)
    unlike = [called[attack] for attack in mixed(records)]
    counts = {
        m: _each(suite, {r["cell"]["dataset"]: str(r["metrics"][m][1]) for r in reversed(records)})
        for m in METRICS
    }
    counts["train"] = _each(
        suite, {r["cell"]["dataset"]: str(r["given"]["train_images"]) for r in reversed(records)}
    )
    commits = sorted({r["surroundings"]["commit"] or "unknown" for r in records})
    machines: dict[str, list[str]] = {}
    for r in records:
        machines.setdefault(r["surroundings"]["device"], []).append(precision(r))
    devices = [
        f"{device} ({' and '.join(sorted(set(kinds)))})" if all(kinds) else device
        for device, kinds in machines.items()
    ]
    rates = ", ".join(f"{100 * r:g} %" for r in suite.rates) + " unless said" * bool(
        suite.own_rates
    )
    there = [d for d in suite.datasets if any(r["cell"]["dataset"] == d for r in records)]
    parts = [
        f"{suite.name}: {', '.join(there)}; percent; poisoning rate {rates}; "
        + (
            f"mean and standard deviation over the seeds {', '.join(map(str, seeds))}"
            if len(seeds) > 1
            else f"one run, seed {seeds[0]}"
        ),
        f"{counts['train']} training images, CA over {counts['ca']} test images, ASR and ARR over "
        f"{counts['asr']}",
        "best defense bold, second underlined",
        *(
            [f"defenses did not have the same poisoned images of: {', '.join(unlike)}"]
            if unlike
            else []
        ),
        *(["options: " + "; ".join(options)] if options else []),
        "protocol "
        + _protocols(
            suite, [d for d in suite.datasets if any(r["cell"]["dataset"] == d for r in records)]
        ),
        "; ".join(devices)
        + ", "
        + (f"commit {commits[0]}" if len(commits) == 1 else f"{len(commits)} commits, see the CSV"),
    ]
    return ". ".join([parts[0], *(part[0].upper() + part[1:] for part in parts[1:])]) + "."


def escape(text: str) -> str:
    """Plain text -> LaTeX."""
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "→": r"$\rightarrow$",
    }
    return re.sub(
        r"^-(?=\d)", "$-$", "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)
    )


# more columns than these want both columns of a two-column paper
NARROW = 7


def _dressed(note: str, label: str, groups: Sequence[str], body: Sequence[str]) -> str:
    """The environment around the rows of a table; ``groups`` of columns, "l" or "r" each, stand
    apart.
    """
    kind = "table*" if sum(map(len, groups)) > NARROW else "table"
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,graphicx}",
            rf"\begin{{{kind}}}[t]",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption[{escape(label)}]{{\footnotesize {escape(note)}}}",
            rf"\label{{tab:{label}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            r"\begin{tabular}{" + r"@{\hspace{9pt}}".join(groups) + "}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            rf"\end{{{kind}}}",
            "",
        ]
    )


def latex(records: Sequence[Record], suite: Suite) -> str:
    """A table for a paper of one or two columns; it needs the packages booktabs and graphicx, and
    shrinks to the width of the text if it is wider.

    All numbers have two decimals and stand to the right, so that their points are in line without
    siunitx, whose columns know no underlining.
    """
    table = layout(records, suite)
    width = len(METRICS)
    dress = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
    metrics = [rf"{name} $\{arrow}arrow$" for name, arrow in map(ARROWS.__getitem__, METRICS)]
    first = 1 if table.given else 2
    rows = []
    for line in table.lines:
        if not line.cells:
            rows.append(
                r"\addlinespace "
                rf"\multicolumn{{{first + width * len(table.groups)}}}{{l}}"
                rf"{{{escape(line.label)}}} \\"
            )
            continue
        cells = [dress[m] % escape(text) for cell in line.cells for text, m in cell]
        rows.append(
            r"\midrule " * line.rule
            + " & ".join([escape(line.label), *([line.given] if not table.given else []), *cells])
            + r" \\"
        )
    if table.given:
        rows.append(
            r"\midrule Clean images & "
            + " & ".join(rf"\multicolumn{{{width}}}{{c}}{{{n}}}" for n in table.given)
            + r" \\"
        )
    titles = [table.rows] if table.given else [table.rows, "Clean images"]
    top = [
        " & ".join(
            [""] * first
            + [rf"\multicolumn{{{width}}}{{c}}{{{escape(name)}}}" for name in table.groups]
        )
        + r" \\",
        " ".join(
            rf"\cmidrule(lr){{{first + 1 + i * width}-{first + (i + 1) * width}}}"
            for i in range(len(table.groups))
        ),
        " & ".join([*titles, *metrics * len(table.groups)]) + r" \\",
        r"\midrule",
    ]
    return _dressed(
        caption(records, suite),
        suite.name,
        ["l" + "r" * (first - 1), *["r" * width] * len(table.groups)],
        [*top, *rows],
    )


def markdown(records: Sequence[Record], suite: Suite) -> str:
    """The same table for a README or an issue."""
    table = layout(records, suite)
    dress = {"best": "**%s**", "second": "<u>%s</u>", "": "%s"}
    titles = [table.rows] if table.given else [table.rows, "Clean images"]
    columns = [
        f"{name} {ARROWS[m][0]} {'↑' if ARROWS[m][1] == 'up' else '↓'}"
        for name in table.groups
        for m in METRICS
    ]
    rows = [
        [
            line.label,
            *([line.given] if not table.given else []),
            *(dress[m] % text for cell in line.cells for text, m in cell),
        ]
        for line in table.lines
    ]
    if table.given:
        rows.append(
            [
                "Clean images",
                *(text for n in table.given for text in (n, *[""] * (len(METRICS) - 1))),
            ]
        )
    rows = [row + [""] * (len(titles) + len(columns) - len(row)) for row in rows]
    lines = [[*titles, *columns], ["---"] + ["---:"] * (len(titles) + len(columns) - 1), *rows]
    return (
        "\n".join("| " + " | ".join(row) + " |" for row in lines)
        + f"\n\n{caption(records, suite)}\n"
    )


# rows of a comparison on a page
LONG = 40
# points; what one seed, another order of the data and another library may do
TOLERANCE = 5.0


def against(records: Sequence[Record], suite: Suite) -> pd.DataFrame:
    """One row a cell that a paper reports: mean over seeds, published number and difference of each
    metric, and which differ by more than ``TOLERANCE``.
    """
    rows = []
    seconds = (
        frame(records).groupby(["dataset", "rate", "attack", "defense"])["training_seconds"].mean()
    )
    for (dataset, rate, attack, defense), found in summary(records).iterrows():
        published = suite.reported.get((dataset, attack, defense, rate))
        if published:
            row: dict[str, object] = {
                "dataset": dataset,
                "attack": attack,
                "rate": rate,
                "defense": defense,
            }
            far = []
            for metric in METRICS:
                ours = found[metric, "mean"]
                theirs = published.get(metric, float("nan"))
                row |= {
                    metric: ours,
                    f"{metric} reported": theirs,
                    f"{metric} difference": ours - theirs,
                }
                far += [ARROWS[metric][0]] * bool(abs(ours - theirs) > TOLERANCE)
            if "seconds" in published:
                row |= {
                    "seconds": seconds[dataset, rate, attack, defense],
                    "seconds reported": published["seconds"],
                }
            rows.append(row | {"not reproduced": " ".join(far)})
    return pd.DataFrame(rows)


def comparison(records: Sequence[Record], suite: Suite, form: str) -> str:
    """``against`` as a table, a line a cell.

    Raises:
        InputError: nothing was published of these cells.
    """
    data = against(records, suite)
    if data.empty:
        raise InputError(f"{suite.name} has no published numbers of the cells that have records")
    if form == "csv":
        return str(data.to_csv(index=False, float_format="%.2f"))
    note = (
        "Each metric: ours, reported, difference. Not reproduced: more than "
        f"{TOLERANCE:g} points away. {caption(records, suite)}"
    )
    unknown = [m for m in METRICS if data[f"{m} reported"].isna().all()]
    # the caption says it
    same = [c for c in ("dataset", "rate") if data[c].nunique() == 1]
    columns = [c for c in data.columns if c.partition(" ")[0] not in unknown and c not in same]
    attacks, defenses = present(records, suite)
    short = {"defense": heads(defenses), "attack": labels(attacks, defenses)}

    def text(column: str, value: object) -> str:
        if isinstance(value, float):
            return (
                "--"
                if value != value
                else f"{value:+.2f}"
                if "difference" in column
                else f"{100 * value:g} %"
                if column == "rate"
                else f"{value:.2f}"
            )
        return short.get(column, {}).get(str(value), str(value))

    lines = [[text(c, row[c]) for c in columns] for _, row in data.iterrows()]
    left = [c in ("dataset", "attack", "defense", "not reproduced") for c in columns]
    titles = [
        " ".join(
            ARROWS[word][0] if word in ARROWS else word
            for word in c.replace("difference", "diff.").split()
        )
        for c in columns
    ]
    if form == "markdown":
        table = [titles, ["---" if words else "---:" for words in left], *lines]
        return "\n".join("| " + " | ".join(row) + " |" for row in table) + f"\n\n{note}\n"
    names = columns.index("defense")
    pages: list[list[str]] = [[]]
    # what stands before the defense is printed once
    for _, group in groupby(lines, key=lambda row: row[:names]):
        first, *more = group
        rows = [first, *([""] * names + row[names:] for row in more)]
        if len(pages[-1]) + len(rows) > LONG and pages[-1]:
            pages.append([])
        gap = r"\addlinespace " * bool(pages[-1])
        pages[-1] += [gap * (row is first) + " & ".join(map(escape, row)) + r" \\" for row in rows]
    shape = "".join("l" if words else "r" for words in left)
    top = [" & ".join(map(escape, titles)) + r" \\", r"\midrule"]
    label = f"{suite.name}-reported"
    return "\n".join(
        _dressed(
            f"{suite.name}, continued." if i else note,
            label + f"-{i + 1}" * (i > 0),
            [shape],
            [*top, *page],
        )
        for i, page in enumerate(pages)
    )


def render(records: Sequence[Record], suite: Suite, form: str, against: bool = False) -> str:
    """The table as "latex", "markdown" or "csv"; ``against``: beside the published numbers.

    Raises:
        InputError: no records, or another format.
    """
    if not records:
        raise InputError(f"no records of {suite.name} yet: bbx run {suite.name}")
    if against and form in FORMATS:
        return comparison(records, suite, form)
    if form == "csv":
        return str(frame(records).to_csv(index=False, float_format="%.4f"))
    if form not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, not {form!r}")
    return latex(records, suite) if form == "latex" else markdown(records, suite)


def write(records: Sequence[Record], suite: Suite, folder: Path) -> list[Path]:
    """Write table.tex, table.md and table.csv into ``folder``, and where there are published
    numbers the comparison as reported.tex, .md and .csv.
    """
    files = []
    for name, compared in (
        ("table", False),
        *([("reported", True)] if len(against(records, suite)) else []),
    ):
        for form, suffix in zip(FORMATS, ("tex", "md", "csv"), strict=True):
            files.append(folder / f"{name}.{suffix}")
            files[-1].write_text(render(records, suite, form, against=compared))
    return files
