"""Tables, pure functions of records: long CSV with every number, LaTeX and Markdown as a paper prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from . import registry
from .api import InputError
from .records import METRICS, Record, wilson
from .suite import Suite

ARROWS = {"ca": ("CA", "up"), "asr": ("ASR", "down"), "arr": ("ARR", "up")}
TITLES = {"none": "No Defense", "ft_sam": "FT-SAM", "i_bau": "I-BAU"}
FORMATS = ("latex", "markdown", "csv")


def title(defense: str) -> str:
    """How a defense is called at the head of a table: ``mcci[inference=avg]`` -> ``MCCI [inference=avg]``."""
    name, bracket, options = defense.partition("[")
    return TITLES.get(name, name.upper()) + (f" {bracket}{options}" if bracket else "")


def heads(defenses: Sequence[str]) -> dict[str, str]:
    """Short names for the head of a table: those with options get a letter, which the caption explains."""
    lettered = [d for d in defenses if "[" in d]
    return {d: TITLES.get(name := d.partition("[")[0], name.upper()) + (f" ({chr(97 + lettered.index(d))})" if d in lettered else "") for d in defenses}


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row a record: what was run, each metric in percent with its 95 % Wilson interval, what was given, where it ran."""
    rows = []
    for record in records:
        spec, row = record["spec"], dict(record["cell"])
        row |= {"rate": spec["rate"], "seed": spec["seed"], "protocol": f"{spec['protocol']['name']} v{spec['protocol']['version']}"}
        for name in METRICS:
            hits, n = record["metrics"][name]
            low, high = wilson(hits, n)
            row |= {name: 100 * hits / n if n else float("nan"), f"{name}_low": 100 * low, f"{name}_high": 100 * high, f"{name}_n": n}
        for probe, metrics in sorted(record["probes"].items()):
            row |= {f"{probe} {name}": 100 * hits / n for name, (hits, n) in metrics.items() if n}
        row |= {"clean_images": record["given"]["clean_images"], "training_seconds": record["time"]["training"]}
        row |= {"device": record["surroundings"]["device"], "commit": record["surroundings"]["commit"]}
        rows.append(row)
    return pd.DataFrame(rows)


def summary(records: Sequence[Record]) -> pd.DataFrame:
    """Mean, sample standard deviation and count over seeds of each metric, by data set, rate, attack and defense, in that order."""
    data = frame(records)
    groups = data.groupby(["dataset", "rate", "attack", "defense"], sort=False)
    return groups[list(METRICS)].agg(["mean", "std", "count"])


def mark(values: Sequence[float], higher: bool) -> list[str]:
    """ "best", "second" or "" for each value, compared as printed (two decimals); equal values share a mark, nan has none."""
    printed = [round(v, 2) for v in values]
    ranks = sorted({v for v in printed if v == v}, reverse=higher)
    return ["best" if v == ranks[0] else "second" if len(ranks) > 1 and v == ranks[1] else "" for v in printed] if ranks else [""] * len(values)


def _grid(records: Sequence[Record], suite: Suite) -> tuple[list[str], list[tuple[str, list[list[str]], list[list[str]]]]]:
    """The defenses, and per line (label, texts, marks): texts and marks by defense, then metric. A line without marks is a heading."""
    numbers = summary(records)
    defenses = [d for d in suite.defenses if d in numbers.index.get_level_values("defense")]
    lines: list[tuple[str, list[list[str]], list[list[str]]]] = []

    def line(label: str, cells: Mapping[str, pd.Series]) -> None:
        texts, marks = [["--"] * len(METRICS) for _ in defenses], [[""] * len(METRICS) for _ in defenses]
        for column, metric in enumerate(METRICS):
            ranked = [i for i, d in enumerate(defenses) if d in cells and d.partition("[")[0] != "none"]
            for i, found in zip(ranked, mark([cells[defenses[i]][metric, "mean"] for i in ranked], metric != "asr"), strict=True):
                marks[i][column] = found
            for i, d in enumerate(defenses):
                if d in cells:
                    mean, std, count = cells[d][metric]
                    texts[i][column] = f"{mean:.2f}" + (f" ± {std:.2f}" if count > 1 else "")
        lines.append((label, texts, marks))

    def rows(dataset: str, rate: float) -> list[tuple[str, float]]:
        """The attacks of a block, those with a rate of their own in the first one."""
        found = {(i[1], i[2]) for i in numbers.index if i[0] == dataset}
        own = suite.own_rates if rate == suite.rates[0] else dict.fromkeys(suite.own_rates, -1.0)
        return [(a, own.get(a, rate)) for a in suite.attacks if (own.get(a, rate), a) in found]

    blocks = [(d, r, rows(d, r)) for d in suite.datasets for r in suite.rates if rows(d, r)]
    for dataset, rate, attacks in blocks:
        if len(blocks) > 1:
            lines.append((f"{dataset}, poisoning rate {100 * rate:g} %", [], []))
        block = {(a, d): numbers.loc[dataset, r, a, d] for a, r in attacks for d in defenses if (dataset, r, a, d) in numbers.index}
        for attack, own in attacks:
            line(attack if own == rate else f"{attack}, rate {100 * own:g} %", {d: block[attack, d] for d in defenses if (attack, d) in block})
        harmful = [a for a, _ in attacks if a != "none"]
        full = [d for d in defenses if all((a, d) in block for a in harmful)]
        if len(harmful) > 1 and full:
            means = {d: pd.DataFrame([block[a, d] for a in harmful]).mean() for d in full}
            for row in means.values():
                row[[(m, "count") for m in METRICS]] = 1
            line("Average", means)
    return defenses, lines


def caption(records: Sequence[Record], suite: Suite) -> str:
    """What a reader must know of the numbers: protocol, counts, seeds, clean images given, where they come from."""
    first = records[0]
    seeds = sorted({r["spec"]["seed"] for r in records})
    given = {r["cell"]["defense"]: r["given"]["clean_images"] for r in records}
    short = heads([d for d in suite.defenses if d in given])
    options = [f"{name.rpartition(' ')[2]} {', '.join(registry.split(d.partition('[')[2][:-1]))}" for d, name in short.items() if "[" in d]
    protocols = sorted({str(suite.protocol.on(r["cell"]["dataset"])) for r in records})
    commits = sorted({r["surroundings"]["commit"] or "unknown" for r in records})
    rates = ", ".join(f"{100 * r:g} %" for r in suite.rates) + " unless said" * bool(suite.own_rates)
    parts = [
        f"{suite.name}: {', '.join(suite.datasets)}; percent; poisoning rate {rates}; "
        + (f"mean and standard deviation over the seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"one run, seed {seeds[0]}"),
        f"CA over {first['metrics']['ca'][1]} test images, ASR and ARR over {first['metrics']['asr'][1]}",
        "best defense bold, second underlined",
        *(["options: " + "; ".join(options)] if options else []),
        "clean images given: " + ", ".join(f"{name} {given[d]}" for d, name in short.items()),
        "protocol " + " / ".join(protocols),
        f"{first['surroundings']['device']}, " + (f"commit {commits[0]}" if len(commits) == 1 else f"{len(commits)} commits, see the CSV"),
    ]
    return ". ".join([parts[0], *(part[0].upper() + part[1:] for part in parts[1:])]) + "."


def escape(text: str) -> str:
    """Plain text -> LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "→": r"$\rightarrow$"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)


def latex(records: Sequence[Record], suite: Suite) -> str:
    """A table for a paper; it needs the packages booktabs and graphicx, and shrinks to the width of the text if it is wider."""
    defenses, lines = _grid(records, suite)
    width, dress = len(METRICS), {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
    metrics = [rf"{name} $\{arrow}arrow$" for name, arrow in map(ARROWS.__getitem__, METRICS)]
    rows = []
    for label, texts, marks in lines:
        if not marks:
            rows.append(rf"\addlinespace \multicolumn{{{1 + width * len(defenses)}}}{{l}}{{{escape(label)}}} \\")
            continue
        cells = [dress[m] % escape(t) for ts, ms in zip(texts, marks, strict=True) for t, m in zip(ts, ms, strict=True)]
        rows.append((r"\midrule " if label == "Average" else "") + " & ".join([escape(label), *cells]) + r" \\")
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,graphicx}; in two columns, table* gives it both",
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{escape(caption(records, suite))}}}",
            rf"\label{{tab:{suite.name}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{l{('r' * width) * len(defenses)}}}",
            r"\toprule",
            " & ".join([""] + [rf"\multicolumn{{{width}}}{{c}}{{{escape(name)}}}" for name in heads(defenses).values()]) + r" \\",
            " ".join(rf"\cmidrule(lr){{{2 + i * width}-{1 + (i + 1) * width}}}" for i in range(len(defenses))),
            " & ".join(["Attack", *metrics * len(defenses)]) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def markdown(records: Sequence[Record], suite: Suite) -> str:
    """The same table for a README or an issue."""
    defenses, lines = _grid(records, suite)
    dress = {"best": "**%s**", "second": "<u>%s</u>", "": "%s"}
    columns = [f"{name} {ARROWS[m][0]} {'↑' if ARROWS[m][1] == 'up' else '↓'}" for name in heads(defenses).values() for m in METRICS]
    rows = [[label, *(dress[m] % t for ts, ms in zip(texts, marks, strict=True) for t, m in zip(ts, ms, strict=True))] for label, texts, marks in lines]
    rows = [row + [""] * (1 + len(columns) - len(row)) for row in rows]
    table = [["Attack", *columns], ["---"] + ["---:"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in table) + f"\n\n{caption(records, suite)}\n"


def render(records: Sequence[Record], suite: Suite, form: str) -> str:
    """The table as "latex", "markdown" or "csv".

    Raises:
        InputError: no records, or another format.
    """
    if not records:
        raise InputError(f"no records of {suite.name} yet: bbx run {suite.name}")
    if form == "csv":
        return str(frame(records).to_csv(index=False, float_format="%.4f"))
    if form not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, not {form!r}")
    return latex(records, suite) if form == "latex" else markdown(records, suite)


def write(records: Sequence[Record], suite: Suite, folder: Path) -> list[Path]:
    """Write table.tex, table.md and table.csv into ``folder``."""
    files = [folder / f"table.{suffix}" for suffix in ("tex", "md", "csv")]
    for file, form in zip(files, FORMATS, strict=True):
        file.write_text(render(records, suite, form))
    return files
