"""Tables against golden texts, from records made by hand."""

import shutil
import subprocess
from dataclasses import replace

import pytest
from conftest import RULES, here
from matplotlib.text import Text

from backdoorbench_ext import gather, layout, plots, records, registry, tables
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.frame import frame
from backdoorbench_ext.metrics import get
from backdoorbench_ext.naming import explained, heads, labels
from backdoorbench_ext.suite import Suite

SUITE = Suite(
    "paper",
    RULES,
    ("digits",),
    ("badnets", "blend"),
    ("none", "cbd", "mcci[inference=avg]"),
    seeds=(0,),
)


def record(attack, defense, ca, asr, arr, seed=0):
    return {
        "format": 1,
        "spec": {
            "dataset": "digits",
            "attack": {"name": attack},
            "defense": {"name": defense},
            "rate": 0.1,
            "seed": seed,
            "protocol": RULES.spec(),
        },
        "cell": {"dataset": "digits", "attack": attack, "defense": defense},
        "metrics": {"ca": [ca, 1000], "asr": [asr, 900], "arr": [arr, 900]},
        "probes": {"f_B": {"ca": [500, 1000], "asr": [900, 900], "arr": [0, 900]}},
        "given": {"train_images": 3800, "clean_images": 100 if "mcci" in defense else 0},
        "time": {"training": 1.5},
        "curves": {},
        "surroundings": {"device": "CPU_x & y", "commit": "abc", "versions": {}},
    }


RECORDS = [
    record("badnets", "none", 900, 900, 0),
    record("badnets", "cbd", 880, 9, 801),
    record("badnets", "mcci[inference=avg]", 890, 9, 810),
    record("blend", "none", 910, 855, 27),
    record("blend", "cbd", 870, 18, 792),
]

UP = r"CA $\uparrow$ & ASR $\downarrow$ & ARR $\uparrow$"
LATEX = (
    r"""\begin{tabular}{l@{\hspace{9pt}}rrr@{\hspace{9pt}}rrr@{\hspace{9pt}}rrr}
\toprule
 & \multicolumn{3}{c}{No Defense} & \multicolumn{3}{c}{CBD} & \multicolumn{3}{c}{MCCI} \\
\cmidrule(lr){2-4} \cmidrule(lr){5-7} \cmidrule(lr){8-10}
"""
    rf"Attack & {UP} & {UP} & {UP} \\"
    "\n"
    r"""\midrule
"""
    r"BadNets & 90.00 & 100.00 & 0.00 & \underline{88.00} & \textbf{1.00} & \underline{89.00} & "
    r"\textbf{89.00} & \textbf{1.00} & \textbf{90.00} \\"
    "\n"
    r"Blend & 91.00 & 95.00 & 3.00 & \textbf{87.00} & \textbf{2.00} & \textbf{88.00} & "
    r"-- & -- & -- \\"
    "\n"
    r"\midrule Average & 90.50 & 97.50 & 1.50 & \textbf{87.50} & \textbf{1.50} & \textbf{88.50} & "
    r"-- & -- & -- \\"
    "\n"
    r"\midrule Clean images & \multicolumn{3}{c}{0} & \multicolumn{3}{c}{0} & "
    r"\multicolumn{3}{c}{100} \\"
    r"""
\bottomrule
\end{tabular}
"""
)


def caption(records, suite):
    return layout.caption(records, suite, tables.USUAL_STYLE)


def test_latex():
    text = tables.render(RECORDS, SUITE, "latex")
    assert LATEX in text
    assert (
        r"5 \%" in text
        and r"CPU\_x \& y, commit abc" in text
        and "Options: MCCI: inference=avg." in text
    )
    assert (
        text.count("{") == text.count("}")
        and r"\usepackage{booktabs,threeparttable}" in text
        and r"\begin{table*}[t]" in text
    )
    assert r"\begin{table}[t]" in tables.render(RECORDS[:2], SUITE, "latex"), (
        "seven columns fit one of two"
    )


def test_learning_puts_stages_one_after_the_other(tmp_path):
    time = {"training": 6.0, "stages": {"first": 2.0, "after": 4.0}}
    curves = {
        "first, CA": [10.0, 20.0],
        "first, ASR": [90.0, 80.0],
        "after, CA": [30.0],
        "after, ASR": [5.0],
        "first loss": [1.0, 1.0],
        "after loss": [1.0],
    }
    records.write(tmp_path / "made.json", RECORDS[1] | {"time": time, "curves": curves})
    made = records.read(tmp_path / "made.json")
    ca, asr = plots.learning(
        [RECORDS[2] | {"time": time, "curves": made["curves"]}, made, RECORDS[0] | {"curves": {}}],
        SUITE,
    ).axes
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in ca.lines] == [
        ([1, 2], [10, 20]),
        ([6], [30]),
    ]
    assert [list(line.get_ydata()) for line in asr.lines] == [[90, 80], [5]]
    # the same victim, another repair
    repaired = RECORDS[2] | {
        "time": time,
        "curves": curves | {"after, CA": [40.0], "after, ASR": [6.0]},
    }
    ca, _ = plots.learning([made, repaired], SUITE).axes
    assert [(line.get_color(), list(line.get_ydata())) for line in ca.lines] == [
        ("#D55E00", [10, 20]),
        ("#D55E00", [30]),
        ("#0072B2", [40]),
    ]
    # a victim that was trained again on another machine is not a curve of the repair's own
    time = {"training": 6.0, "stages": {"train": 4.0, "fine-tuning": 2.0}}
    own = {"fine-tuning, CA": [30.0], "fine-tuning, ASR": [5.0]}
    bare = {"train, CA": [70.0], "train, ASR": [90.0]}
    again = {"train, CA": [71.0], "train, ASR": [91.0]}
    victim = RECORDS[0] | {"time": {"training": 4.0, "stages": {"train": 4.0}}, "curves": bare}
    repaired = record("badnets", "fp", 880, 9, 801) | {"time": time, "curves": again | own}
    grid = replace(SUITE, defenses=("none", "fp"))
    lines = gather.learning([repaired, victim], grid)["badnets", "digits", 0.1]
    assert [(line.defense, line.seconds, line.ca) for line in lines] == [
        ("none", [4.0], [70.0]),
        ("fp", [6.0], [30.0]),
    ]
    with pytest.raises(InputError, match="--audit logs it"):
        plots.learning([RECORDS[0] | {"curves": {}}], SUITE)


def test_data_sets_with_other_counts_say_so():
    """Clean, training and test images of each data set, in the suite's order; once where they are
    the same.
    """
    both = replace(SUITE, datasets=("digits", "signs"))
    more = {
        "cell": RECORDS[2]["cell"] | {"dataset": "signs"},
        "spec": RECORDS[2]["spec"] | {"dataset": "signs"},
        "given": {"train_images": 4967, "clean_images": 26},
    }
    metrics = {"ca": [890, 1263], "asr": [9, 900], "arr": [810, 900]}
    records = [RECORDS[2] | more | {"metrics": metrics}, *RECORDS]
    text = tables.render(records, both, "markdown")
    assert (
        "| Clean images | 0 |  |  | 0 |  |  | 100 / 26 |" in text
        and "3800 / 4967 training images, CA over 1000 / 1263 test images, ASR and ARR over 900. "
        in text
    )
    many = replace(both, defenses=(*SUITE.defenses, *(f"d{i}" for i in range(layout.WIDE))))
    extra = [record("badnets", f"d{i}", 1, 1, 1) for i in range(layout.WIDE)]
    lines = [
        line
        for line in layout.layout([*records, *extra], many, tables.USUAL_STYLE).lines
        if line.label.startswith("MCCI")
    ]
    assert [line.given for line in lines] == ["100", "26"]


def has_latex(*packages):
    """Whether pdflatex is there, with these."""
    if not shutil.which("pdflatex"):
        return False
    asked = [f"{package}.sty" for package in packages]
    return not subprocess.run(["kpsewhich", *asked], capture_output=True, check=False).returncode


WIDE = replace(SUITE, defenses=("none", "cbd", *(f"mcci[images={n}]" for n in (1, 10, 100))))


@pytest.mark.skipif(not has_latex("threeparttable"), reason="no pdflatex with threeparttable here")
@pytest.mark.parametrize("columns", ["", "twocolumn"])
def test_latex_compiles_and_fits_the_page(columns, tmp_path):
    """Nothing stands over the edge, and nothing is scaled: letters are as large as is said."""
    wide = [record("badnets", defense, 900, 9, 810) for defense in WIDE.defenses]
    body = tables.render(RECORDS, SUITE, "latex")
    body += tables.render(wide, WIDE, "latex", style=layout.Style(highlight="cbd"))
    packages = r"\usepackage{booktabs,threeparttable}\usepackage[table]{xcolor}"
    (tmp_path / "page.tex").write_text(
        rf"\documentclass[{columns}]{{article}}{packages}\begin{{document}}{body}\end{{document}}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "Overfull \\hbox" not in done.stdout, done.stdout[-2000:]
    assert "box{" not in body


def test_wide_tables_are_split_before_letters_get_small():
    """Panels of even shares below each other, each with its own head and clean images."""
    found = [record("badnets", defense, 900, 9, 810) for defense in WIDE.defenses]
    text = tables.render(found, WIDE, "latex")
    heads = [line for line in text.splitlines() if line.startswith(r" & \multicolumn")]
    assert [line.count("multicolumn") for line in heads] == [3, 2]
    assert "MCCI, 1 image}" in heads[0] and "MCCI, 10 images}" in heads[1]
    assert text.count("Clean images") == 2 and text.count(r"\midrule[\heavyrulewidth]") == 1
    assert r"\begin{table*}[t]" in text
    narrow = layout.Style((get("asr"),), decimals=0)
    text = tables.render(found, WIDE, "latex", style=narrow)
    assert "BadNets & 1 & 1 & 1" in text


MINE = """
from dataclasses import dataclass
from backdoorbench_ext.api import Defense

@dataclass(frozen=True)
class Mine(Defense):
    version = VERSION

    def fit(self, train, engine):
        return None
"""


def test_records_alone_are_enough(tmp_path, monkeypatch, capsys):
    """A plugin's numbers are there without the plugin, and with a later version, which is said;
    those of another protocol are not.
    """
    monkeypatch.setattr(registry, "_plugins", {})
    file = tmp_path / "mine.py"
    file.write_text(MINE.replace("VERSION", "2"))
    registry.add_file(file)
    suite = replace(SUITE, defenses=("none", "mine"), attacks=("badnets",))
    folder = tmp_path / "paper"
    suite.save(folder)
    for cell, ca in zip(suite.cells(), (900, 880), strict=True):
        one = record("badnets", cell.defense, ca, 9, 801)
        records.write(folder / cell.path, one | {"spec": cell.spec})
    row = "| BadNets | 90.00 | 1.00 | 89.00 | 88.00 | 1.00 | 89.00 |"
    monkeypatch.setattr(registry, "_plugins", {})
    assert here("table", folder) == 0
    told = capsys.readouterr().out
    assert row in told and "| No Defense CA ↑ |" in told and "| MINE ASR ↓ |" in told
    file.write_text(MINE.replace("VERSION", "10"))
    assert here("table", folder, "--plugin", file) == 0
    told = capsys.readouterr().out
    assert row in told and "Made by earlier versions of: MINE." in told
    other = replace(suite, protocol=replace(RULES, target=1))
    assert records.of_grid(other, folder) == []


def test_a_part_of_a_grid(tmp_path, capsys):
    """--only, for tables, plots, ranks and comparisons, by the words that a run has; also where a
    name of the grid is not known here.
    """
    folder = tmp_path / "paper"
    suite = replace(SUITE, defenses=("none", "cbd", "fp"))
    for cell in suite.cells():
        one = record(cell.attack, cell.defense, 900, 9 if cell.defense == "fp" else 800, 10)
        records.write(folder / cell.path, one | {"spec": cell.spec})
    for grid in (suite, replace(suite, defenses=("none", "cbd", "fp", "lost"))):
        grid.save(folder)
        assert here("table", folder, "--only", "badnets /none/ | badnets/fp") == 0
        told = capsys.readouterr().out
        assert "No Defense" in told and "FP" in told and "CBD" not in told and "Blend" not in told
    suite.save(folder)
    assert here("rank", folder, "--only", "/none/ | /cbd/") == 0
    told = capsys.readouterr().out
    assert "CBD" in told and "FP" not in told
    assert here("compare", folder, "fp", "none", "--only", "badnets") == 0
    assert "Blend" not in capsys.readouterr().out
    assert here("compare", folder, "fp", "none", "--only", "/none/") == 2
    assert "no 'fp' among the defenses with records" in capsys.readouterr().err
    assert here("plot", "bars", folder, "--only", "blend", "--format", "svg") == 0
    drawn = (folder / "plot.svg").read_text()
    assert "Blend" in drawn and "BadNets" not in drawn
    part = ("plot", folder, "--only", "blend", "--to")
    capsys.readouterr()
    assert here(*part, tmp_path / "figures" / "blend.svg") == 0
    assert capsys.readouterr().out == f"{tmp_path}/figures/blend.svg\n"
    assert here(*part, tmp_path / "figures", "--format", "svg") == 0
    assert (tmp_path / "figures" / "plot.svg").read_text() == drawn
    assert here(*part, tmp_path / "v1.0", "--format", "svg") == 0
    assert (tmp_path / "v1.0.svg").read_text() == drawn
    assert here(*part, "blend.svg", "--format", "png") == 2
    assert "either --format or an ending of --to" in capsys.readouterr().err
    assert here(*part, "blend.jpg") == 2
    assert "format must be pdf, png or svg, not 'jpg'" in capsys.readouterr().err
    for command in ("table", "rank", "plot"):
        assert here(command, folder, "--only", "wanet") == 2
        assert "no record of paper has 'wanet' in its path" in capsys.readouterr().err


def test_style():
    found = [record("badnets", defense, 900, 9, 810) for defense in ("none", "cbd")]
    full = tables.render(found, SUITE, "latex", style=layout.Style(caption="full"))
    assert "threeparttable" not in full and "Protocol test v2" in full.split(r"\label")[0]
    shaded = tables.render(found, SUITE, "latex", style=layout.Style(highlight="cbd"))
    assert r"\usepackage[table]{xcolor}" in shaded and shaded.count(r"\cellcolor{black!8}") == 4
    for options, says in (
        ({"marks": "some"}, "marks must be fell or all"),
        ({"caption": "none"}, "caption must be short or full"),
        ({"decimals": 9}, "decimals must be 0 to 4"),
    ):
        with pytest.raises(InputError, match=says):
            layout.Style(**options)
    with pytest.raises(InputError, match="no 'cbb' among the defenses of this table"):
        tables.render(found, SUITE, "latex", style=layout.Style(highlight="cbb"))


def test_names_are_the_options_that_differ():
    """The fewest that tell a method from its others; one alone has none."""
    mcci = ("mcci[inference=avg]", "mcci[inference=sg]", "mcci[inference=sg,lr=1.0]")
    assert list(heads(("cbd", "cbd[t1=350]", "abl[epochs=6]", *mcci)).values()) == [
        *("CBD", "CBD, T1 = 350", "ABL", "MCCI, avg", "MCCI, sg", "MCCI, lr = 1.0")
    ]
    counted = ("mcci[images=1]", "mcci[images=10]", "mcci[k=1.5]", "mcci[k=1.5,images=1]")
    assert list(heads(counted).values()) == [
        *("MCCI, 1 image", "MCCI, 10 images", "MCCI, k = 1.5", "MCCI, k = 1.5, 1 image")
    ]
    # two options with one value
    assert list(labels(("a[x=on]", "a[y=on]")).values()) == ["A [x=on]", "A [y=on]"]
    assert explained(heads(mcci))[2] == "MCCI, lr = 1.0: inference=sg, lr=1.0"


def test_markdown():
    lines = tables.render(RECORDS, SUITE, "markdown").splitlines()
    assert (
        lines[2]
        == "| BadNets | 90.00 | 100.00 | 0.00 | <u>88.00</u> | **1.00** | <u>89.00</u> | **89.00** "
        "| **1.00** | **90.00** |"
    )
    assert lines[5] == "| Clean images | 0 |  |  | 0 |  |  | 100 |  |  |"
    assert "test v2: bbx_test" in lines[-1]


@pytest.mark.parametrize("shown", [("ca", "asr"), ("ca",)])
def test_a_defense_that_lets_the_attack_through_is_not_marked(shown):
    """The best CA is that of a defense whose ASR is 60 of 100; without No Defense it is not known
    which let it through; without an attack all may be best.
    """
    rows = [("none", 950, 900, 0), ("cbd", 940, 540, 300), ("mcci[inference=avg]", 900, 440, 500)]
    found = [record("badnets", *row) for row in rows]
    found += [record("none", *row) for row in rows]
    suite = replace(SUITE, attacks=("badnets", "none"))
    metrics = tuple(get(name) for name in shown)

    def marked(some, attack, marks="fell"):
        lines = tables.render(
            some, suite, "markdown", style=layout.Style(metrics, marks)
        ).splitlines()
        row = next(line for line in lines if line.startswith(f"| {attack}"))
        return [cell.strip() for cell in row.split("|")][2 : 2 + 3 * len(shown) : len(shown)]

    assert marked(found, "BadNets") == ["95.00", "94.00", "**90.00**"]
    assert marked(found, "BadNets", "all") == ["95.00", "**94.00**", "<u>90.00</u>"]
    assert marked(found, "No attack") == ["95.00", "**94.00**", "<u>90.00</u>"]
    assert marked(found[1:3], "BadNets")[:2] == ["94.00", "90.00"]


def test_many_defenses_stand_below_each_other():
    """Then there is a column of the clean images given, and the best of each column is marked."""
    many = ("none", "cbd", *(f"mcci[alpha=0.{i}]" for i in range(1, 7)))
    suite = Suite(
        "paper",
        RULES,
        ("digits",),
        ("badnets", "blend"),
        many,
        seeds=(0,),
        own_rates={"blend": 0.05},
    )
    found = [record("badnets", d, 800 + 10 * i, 90 - 9 * i, 0) for i, d in enumerate(many)]
    found += [
        {**r, "spec": r["spec"] | {"rate": 0.05}}
        for r in (record("blend", "none", 900, 9, 0), record("blend", "cbd", 700, 18, 9))
    ]
    lines = tables.render(found, suite, "markdown", style=layout.Style(marks="all")).splitlines()
    groups = ("BadNets", "Blend, rate 5 %", "Average")
    assert (
        lines[0]
        == "| Defense | Clean images | "
        + " | ".join(f"{g} {m}" for g in groups for m in ("CA ↑", "ASR ↓", "ARR ↑"))
        + " |"
    )
    assert (
        lines[2]
        == "| No Defense | 0 | 80.00 | 10.00 | 0.00 | 90.00 | 1.00 | 0.00 | 85.00 | 5.50 | 0.00 |"
    )
    assert (
        lines[3]
        == "| CBD | 0 | 81.00 | 9.00 | **0.00** | **70.00** | **2.00** | **1.00** | **75.50** | "
        "**5.50** | **0.50** |"
    )
    assert (
        lines[9]
        == "| MCCI, alpha = 0.6 | 100 | **87.00** | **3.00** | **0.00** | -- | -- | -- | -- | -- "
        "| -- |"
    )
    text = tables.render(found, suite, "latex", style=layout.Style(marks="all"))
    assert (
        r"\begin{tabular}{lr@{\hspace{9pt}}rrr@{\hspace{9pt}}rrr}" in text
        and r"Defense & Clean images & CA $\uparrow$" in text
        and r"\cmidrule(lr){3-5}" in text
    )
    assert r"CBD & 0 & 81.00 & 9.00 & \textbf{0.00} & \textbf{70.00}" in text


def test_csv():
    head, first, *_ = tables.render(RECORDS, SUITE, "csv").splitlines()
    row = dict(zip(head.split(","), first.split(","), strict=True))
    assert (row["ca"], row["ca_n"], row["f_B asr"], row["clean_images"]) == (
        "90.0000",
        "1000",
        "100.0000",
        "0",
    )
    assert float(row["ca_low"]) == pytest.approx(87.98, abs=0.01) and float(
        row["ca_high"]
    ) == pytest.approx(91.71, abs=0.01)


def test_options_are_in_the_caption():
    """Those of attacks after those of defenses; protocols of other data sets are told by what
    differs.
    """
    rules = replace(RULES, overrides={"signs": {"target": 1, "normalise": True}})
    both = replace(
        SUITE, protocol=rules, datasets=("digits", "signs"), attacks=("sig[delta=40]", "none")
    )
    found = [
        record("sig[delta=40]", "mcci[inference=avg]", 1, 1, 1),
        record("none", "cbd", 1, 1, 1),
    ]
    found.append(
        found[0]
        | {
            "cell": found[0]["cell"] | {"dataset": "signs"},
            "spec": found[0]["spec"] | {"dataset": "signs"},
        }
    )
    text = tables.render(found, both, "markdown")
    assert (
        "| SIG | --" in text
        and "| No attack | **0.10** |" in text
        and "Options: MCCI: inference=avg; SIG: delta=40." in text
    )
    assert (
        text.count("test v2: bbx_test") == 1
        and "ASR and ARR without the target class; signs: normalised, target 1. CPU" in text
    )


def test_several_seeds_show_mean_and_spread():
    several = [
        record("badnets", "cbd", ca, 9, 810, seed) for seed, ca in enumerate((870, 880, 890))
    ]
    text = tables.render(several, SUITE, "latex")
    assert r"88.00 $\pm$ 1.00" in text and "standard deviation over the seeds 0, 1, 2" in text


def test_marks():
    assert layout.mark([1.0, 3.0, 2.0, 3.001], higher=True) == ["", "best", "second", "best"]
    assert layout.mark([1.0, float("nan"), 2.0], higher=False) == ["best", "", "second"]


def test_escape():
    assert (
        tables.escape(r"a_b%{c}\~^&#$")
        == r"a\_b\%\{c\}\textbackslash{}\textasciitilde{}\textasciicircum{}\&\#\$"
    )


def test_plot_shows_every_number():
    figure = plots.bars(RECORDS, SUITE)
    axes = [ax for ax in figure.axes if ax.axison]
    heights = [[round(bar.get_height(), 2) for bar in ax.patches] for ax in axes]
    assert (
        sorted(heights[0]) == sorted([90.0, 88.0, 89.0, 100.0, 1.0, 1.0, 0.0, 89.0, 90.0])
        and len(heights[1]) == 6
    )
    gaps = [[text.get_text() for text in ax.texts].count("not run") for ax in axes]
    assert gaps == [0, 1]


def test_every_machine_is_named():
    """A reader of the caption knows of each device and precision that a number comes from."""
    around = [("CPU A", False), ("GPU B", True), ("CPU A", True), ("CPU A", False)]
    mixed = [
        r | {"surroundings": r["surroundings"] | {"device": device, "bf16": bf16}}
        for r, (device, bf16) in zip(RECORDS, around, strict=False)
    ]
    assert "CPU A (bf16 and float32); GPU B (bf16), commit abc" in caption(mixed, SUITE)
    assert (
        list(frame(mixed, tables.USUAL)["precision"])
        == ["float32", "bf16", "bf16", "float32"][: len(mixed)]
    )


def test_unlike_poisoned_images_are_told():
    """One of BadNets' three cells has another trigger; blend's two are not known to differ, as one
    record does not say.
    """
    poison = ["a", "b", "a", "c", None]
    told = [
        r | {"surroundings": r["surroundings"] | ({"poison": p} if p else {})}
        for r, p in zip(RECORDS, poison, strict=True)
    ]
    assert layout.mixed(told) == ["badnets"]
    assert "Defenses did not have the same poisoned images of: BadNets." in caption(told, SUITE)
    assert "same poisoned images" not in caption(told[:1] + told[2:], SUITE)


def test_a_long_title_has_several_lines():
    assert plots.wrapped("ABL   digits, 10 % poisoned", 40) == "ABL   digits, 10 % poisoned"
    assert plots.wrapped("ABL [holds=sample,epochs=24]   digits, 10 % poisoned", 20).split(
        "\n"
    ) == [
        "ABL [holds=sample,",
        "epochs=24]",
        "digits, 10 %",
        "poisoned",
    ]


def test_pictures_embed_truetype_fonts(tmp_path):
    pdf, png = plots.save(plots.bars(RECORDS, SUITE), tmp_path / "plot")
    assert (
        b"/Type3" not in pdf.read_bytes()
        and b"/CIDFontType2" in pdf.read_bytes()
        and png.stat().st_size
    )


def test_every_drawing_shows_its_numbers(monkeypatch):
    """A field of the heat map a number, a point of the scatter plot a cell, a point of a line a
    rate; all options stand below.
    """
    texts = {text.get_text() for ax in plots.heatmap(RECORDS, SUITE).axes for text in ax.texts}
    assert {"90", "88", "100", "1", "95", "2"} <= texts
    for kind in ("heatmap", "scatter", "times"):
        figure = plots.DRAWINGS[kind](RECORDS, SUITE)
        figure.draw_without_rendering()
        (words,) = [text for text in figure.texts if text.get_text() == "MCCI: inference=avg"]
        assert (
            figure.bbox.x0 <= words.get_window_extent().x0
            and words.get_window_extent().y1 < figure.axes[0].get_window_extent().y0
        )
    points = {
        (x, y)
        for line in plots.scatter(RECORDS, SUITE).axes[0].lines
        if line.get_marker() != "None"
        for x, y in zip(*line.get_data(), strict=True)
    }
    assert points == {(90.0, 100.0), (91.0, 95.0), (88.0, 1.0), (87.0, 2.0), (89.0, 1.0)}
    with pytest.raises(InputError, match="one poisoning rate only"):
        plots.rates(RECORDS, SUITE)
    with pytest.raises(InputError, match="no records with points of a curve"):
        plots.curve(RECORDS, SUITE)
    points = {"t = 0": RECORDS[0]["metrics"], "t = 0.5": RECORDS[1]["metrics"]}
    along = [{**RECORDS[1], "probes": points, "curves": {"t": [0.5]}}]
    asr = plots.curve(along, SUITE).axes[1]
    assert [line.get_xydata().tolist() for line in asr.lines] == [
        [[0.0, 100.0], [0.5, 1.0]],
        [[0.5, 1.0]],
    ]
    more = [*RECORDS, {**RECORDS[1], "spec": RECORDS[1]["spec"] | {"rate": 0.2}}]
    lines = [line.get_xydata().tolist() for line in plots.rates(more, SUITE).axes[0].lines]
    assert [[10.0, 88.0], [20.0, 88.0]] in lines
    curved = [
        {
            **r,
            "curves": {
                "f_B loss": [2.0, 1.0],
                "f_B, clean loss": [5.0, 4.0],
                "f_C, round 1 loss": [3.0],
                "f_C, round 2 loss": [2.5],
            },
        }
        for r in RECORDS[:2]
    ]
    figure = plots.losses(curved, SUITE)
    stages = [
        line.get_xydata().tolist()
        for line in figure.axes[1].lines
        if len(set(line.get_xdata())) == len(line.get_xdata())
    ]
    assert len(figure.axes) == 2 and stages == [
        [[1, 5], [2, 4]],
        [[1, 2], [2, 1]],
        [[3, 3], [4, 2.5]],
    ], "one after the other, with the ends of stages between them"
    assert [text.get_text() for text in figure.axes[1].texts] == ["f_B", "f_C"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "clean images",
        "training loss",
    ]
    with pytest.raises(InputError, match="hold no losses"):
        plots.losses([{**RECORDS[0], "curves": {}}], SUITE)
    assert [bar.get_width() for bar in plots.times(RECORDS, SUITE).axes[0].patches] == [1.5] * 3
    for draw in plots.DRAWINGS.values():
        with pytest.raises(InputError, match="no records of paper yet"):
            draw([], SUITE)


def smallest(figure):
    """Points of the smallest letters of a figure."""
    figure.canvas.draw()
    seen = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    return min(text.get_fontsize() for text in seen)


@pytest.mark.parametrize("kind", ["bars", "heatmap", "scatter", "times"])
def test_plots_for_a_column(kind):
    """As wide as is asked for, with letters of 7 points at least."""
    many = [record("badnets", f"d{i}[k={i}]", 900, 9, 810) for i in range(9)]
    suite = replace(SUITE, defenses=tuple(r["cell"]["defense"] for r in many))
    for width in ("column", "text", "5"):
        page = plots.inches(width)
        figure = plots.DRAWINGS[kind](many, suite, page=page)
        assert figure.get_figwidth() == page and smallest(figure) >= 7
        titles = [ax.title for ax in figure.axes]
        legends = [text for legend in figure.legends for text in legend.get_texts()]
        places = [t.get_window_extent() for t in [*figure.texts, *legends, *titles]]
        assert all(p.x0 >= -1 and p.x1 <= figure.bbox.x1 + 1 for p in places)
        plots.plt.close(figure)
    for width in ("row", "1", "nan"):
        with pytest.raises(InputError, match="--width must be column, text or 2 to 14 inches"):
            plots.inches(width)


def test_front():
    """What has less CA has less ASR."""
    points = [(90, 100), (88, 1), (87, 2), (91, 95), (60, 0), (88, 3), (60, 0)]
    assert gather.front(points) == [(60, 0), (88, 1), (91, 95)]


def test_sensitivity():
    """A panel an option that changes alone; what is not given has its default; others are left
    out.
    """
    names = ("mcci[images=1]", "mcci[images=10,lr=1.0]", "mcci", "cbd[variant=release]", "cbd")
    found = [record("badnets", name, 900 - i, 9, 810) for i, name in enumerate(names)]
    suite = replace(SUITE, defenses=names)
    (shown,) = gather.sensitivity(found, suite, [get("ca")]).items()
    usual = float(registry.create("defenses", "mcci").images)
    points = [(1.0, {"ca": 90.0}), (usual, {"ca": 89.8})]
    assert shown == (("MCCI", "images", "digits"), {"BadNets": points})
    figure = plots.sensitivity(found, suite, [get("ca")], page=3.3)
    (line,) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[1.0, 90.0], [usual, 89.8]]
    with pytest.raises(InputError, match="no defense that differs in one numeric option alone"):
        plots.sensitivity(RECORDS, SUITE)


def test_a_defense_has_one_colour():
    """In whatever company; a variant has its colour, another mark and line."""
    alone = plots._looks(["cbd"])["cbd"]
    among = plots._looks(["none", "mcci", "cbd", "cbd[t1=1]", "i_bau"])
    assert among["cbd"] == alone and among["cbd[t1=1]"]["color"] == alone["color"]
    assert among["cbd[t1=1]"]["marker"] != alone["marker"]
    assert len({look["color"] for look in plots._looks(plots.ORDER).values()}) == len(plots.ORDER)


def test_against_reported(tmp_path, monkeypatch):
    """Ours, the published number, the difference; what is over five points away is named."""
    suite = replace(
        SUITE,
        reported={
            ("digits", "badnets", "cbd", 0.1): {"ca": 95.0, "asr": 2.0},
            ("digits", "blend", "cbd", 0.1): {"ca": 86.0, "asr": 9.0},
        },
    )
    lines = tables.render(RECORDS, suite, "markdown", against=True).splitlines()
    assert (
        lines[0]
        == "| attack | defense | CA | CA reported | CA diff. | ASR | ASR reported | ASR diff. | "
        "not reproduced |"
    )
    assert lines[2] == "| BadNets | CBD | 88.00 | 95.00 | -7.00 | 1.00 | 2.00 | -1.00 | CA |"
    assert lines[3] == "| Blend | CBD | 87.00 | 86.00 | +1.00 | 2.00 | 9.00 | -7.00 | ASR |"
    text = tables.render(RECORDS, suite, "latex", against=True)
    assert (
        r"BadNets & CBD & \textbf{88.00} & 95.00 & 1.00 & 2.00 \\" in text
        and r"\addlinespace Blend & CBD & 87.00 & 86.00 & \textbf{2.00} & 9.00 \\" in text
        and "Bold: more than 5 points away." in text
    )
    again = replace(
        suite,
        reported=suite.reported | {("digits", "badnets", "none", 0.1): {"ca": 95.0, "asr": 100.0}},
    )
    monkeypatch.setattr(tables, "LONG", 1)
    pages = tables.render(RECORDS, suite, "latex", against=True).split(r"\begin{table}")
    assert (
        len(pages) == 3
        and "Blend & CBD" in pages[2]
        and r"paper, continued." in pages[2]
        and r"\label{tab:paper-reported-2}" in pages[2]
    )
    assert (
        r"BadNets & No Defense & 90.00"
        in (text := tables.render(RECORDS, again, "latex", against=True))
        and "\n & CBD & \\textbf{88.00}" in text
    )
    assert (
        tables.render(RECORDS, suite, "csv", against=True)
        .splitlines()[1]
        .startswith("digits,badnets,0.10,cbd,88.00,95.00,-7.00")
    )
    assert [file.name for file in tables.write(RECORDS, suite, tmp_path)] == [
        f"{n}.{s}" for n in ("table", "reported") for s in ("tex", "md", "csv")
    ]
    assert (tmp_path / "reported.md").read_text().splitlines()[:4] == lines[:4] and len(
        tables.write(RECORDS, SUITE, tmp_path)
    ) == 3
    with pytest.raises(InputError, match="no published numbers"):
        tables.render(RECORDS, SUITE, "markdown", against=True)
