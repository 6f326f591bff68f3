"""The page of a suite: it holds what the records hold, asks nothing of a network, and works in a
browser, by keyboard and on a phone.
"""

import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import here
from test_tables import RECORDS, SUITE, record

from backdoorbench_ext import plots, records, report
from backdoorbench_ext.errors import InputError

GRID = replace(
    SUITE,
    name="paper <1>",
    reported={
        ("digits", "badnets", "cbd", 0.1): {"ca": 87.0, "asr": 1.0},
        ("digits", "blend", "cbd", 0.1): {"ca": 50.0},
    },
)
ROWS = [
    made
    | {
        "curves": {"train loss": [2.0, 1.0, 0.5]},
        "surroundings": made["surroundings"] | {"versions": {"torch": "2"}, "bf16": False},
    }
    for made in RECORDS
]


@pytest.fixture
def page(tmp_path):
    return report.write(ROWS, GRID, tmp_path / "paper")


def test_the_page_holds_everything_and_asks_for_nothing(page):
    text = page.read_text()
    assert text == report.render(ROWS, GRID, page.parent), "the same records, the same page"
    assert (
        "<title>paper &lt;1&gt;</title>" in text
        and "5 of 6 cells" in text
        and "98 of 1,000" not in text
        and "880 of 1,000" in text
    )
    assert "t-SNE" not in text and "no defense sees" not in text, "nothing was looked into"
    details = json.loads(re.search(r'id="details">(.*?)</script>', text)[1])
    cells = details["cells"]
    assert len(cells) == 5 and 'data-value="88.0">88.00' in text
    assert all(details["parts"][cell["spec"]["rate"]] == 0.1 for cell in cells)
    opened = re.findall(r'data-opens="(\d+)"', text)
    assert sorted(map(int, opened)) == sorted([*range(5)] * 2), "in the grid and among the cells"
    assert (
        not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", text)
        and "url(" not in text
        and "@import" not in text
    )
    assert re.findall(r'download="([^"]+)"', text) == [
        f"paper &lt;1&gt;.{suffix}" for suffix in ("csv", "tex", "md")
    ]
    assert re.findall(r'class="word far">([A-Z ]*)<', text) == ["", "", "", "", "CA"], (
        "one number lies 37 points from the published one"
    )
    with pytest.raises(InputError, match="no records"):
        report.render([], GRID, page.parent)


def test_a_grid_of_rates_that_is_not_yet_drawable_has_its_page(tmp_path):
    """Two rates, and no attack with both: there is nothing to draw over the rate."""
    two = [
        {**record, "spec": record["spec"] | {"rate": rate}}
        for record, rate in ((ROWS[0], 0.1), (ROWS[3], 0.2))
    ]
    assert "Over the poisoning rate" not in report.render(
        two, replace(GRID, rates=(0.1, 0.2)), tmp_path
    )


def test_curves_fill_their_box():
    assert report.curve([2.0, 1.0, 0.0], 100, 10) == "0.0,0.0 50.0,5.0 100.0,10.0"
    assert report.curve([1.0, 1.0], 100, 10) == "0.0,10.0 100.0,10.0"


def test_command(tmp_path, capsys, monkeypatch):
    words = [
        "--dataset",
        "digits[train=200,test=50]",
        "--attacks",
        "badnets",
        "--defenses",
        "none",
        "--model",
        "bbx_test",
        "--epochs",
        "1",
    ]
    assert here("run", *words, "--out", tmp_path, "--jobs", "1") == 0
    (folder,) = tmp_path.glob("own*")
    assert here("report", folder) == 0 and "rate0.1-seed0" in (folder / "report.html").read_text()
    again = re.search(r"bbx (run .*) --data DIR", (folder / "report.html").read_text()).group(1)
    (record,) = folder.rglob("rate*.json")
    before = record.read_text()
    monkeypatch.chdir(tmp_path)
    assert here(*again.split()) == 0
    (made,) = Path("again").rglob("rate*.json")
    found = json.loads(made.read_text())
    assert made.name == record.name and found["hits"] == json.loads(before)["hits"], (
        "the command of the page makes the record again, and deletes nothing"
    )
    assert record.read_text() == before
    assert (
        here("report", "demo", "--out", tmp_path / "none") == 2
        and "no records of demo" in capsys.readouterr().err
    )


def test_the_grid_has_every_field():
    """Rows are defenses, columns attacks; a click opens the record of the first seed."""
    more = [*ROWS, record("badnets", "cbd", 860, 9, 801, seed=1)]
    found = report.heat(more, GRID)
    assert found["heads"] == ["BadNets", "Blend"]
    (_, bare), (name, cbd), (_, mcci) = found["rows"]
    assert name == "CBD" and cbd[0]["record"] == 1 and cbd[0]["values"] == [87.0, 1.0, 89.0]
    assert bare[1]["record"] == 3 and mcci[1] is None
    assert report.facts(ROWS[1])["CA"] == "880 of 1,000, 88.00 % (85.84 to 89.87)"


def test_pictures_follow_a_dark_page():
    """What is black takes the page's colour; there is no background."""
    text = plots.svg(plots.bars(ROWS, GRID)).decode()
    assert "prefers-color-scheme: dark" in text and "#000000" not in text
    assert "currentColor" in text and "fill: #ffffff" not in text


def test_an_index_of_all_suites(tmp_path, capsys):
    """Folders without results are passed over; who leads stands beside the link."""
    both = replace(GRID, name="more")
    for suite in (GRID, both):
        suite.save(tmp_path / suite.name)
        for cell in suite.cells():
            for row in ROWS:
                if (row["cell"]["attack"], row["cell"]["defense"]) == (cell.attack, cell.defense):
                    records.write(tmp_path / suite.name / cell.path, row | {"spec": cell.spec})
    (tmp_path / "empty").mkdir()
    assert here("report", "--index", tmp_path) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    links = re.findall(r'href="([^"d][^"]*)"', text)
    assert links == ["more/report.html", "paper%20%3C1%3E/report.html"]
    assert all((tmp_path / unquote(link)).exists() for link in links)
    assert text.count("5 of 6") == 2 and "CBD" in text
    for words in ((), ("demo", "--index", tmp_path)):
        assert here("report", *words) == 2
        assert "give either a suite, or --index" in capsys.readouterr().err
    assert here("report", "--index", tmp_path / "empty") == 2
    assert "no folder in it holds results" in capsys.readouterr().err


@contextmanager
def browser_tab(width=375):
    """A page of Chromium, what it says and what it asks for."""
    browsers = pytest.importorskip("playwright.sync_api", reason="no playwright here")
    with browsers.sync_playwright() as tool:
        browser = tool.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-background-networking"],
        )
        yield browser.new_page(viewport={"width": width, "height": 800})
        browser.close()


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here")
def test_what_is_shown_has_an_address(page):
    """Filters, order, the grid's number and the opened cell are in the address, and come back."""
    with browser_tab() as tab:
        tab.goto(page.as_uri())
        field = tab.locator("#grid td button").nth(2)
        assert field.inner_text() == "1.0" and "CBD, BadNets" in field.get_attribute("aria-label")
        tab.select_option("#metric", "ca")
        assert field.inner_text() == "88.0"
        tab.fill("#text", "cbd")
        tab.locator("#board thead button", has_text="ASR ↓").first.click()
        field.click()
        assert tab.locator("dialog[open] h2").inner_text() == "CBD against badnets"
        address = tab.url
        assert "text=cbd" in address and "metric=ca" in address and "sort=3a" in address
        tab.keyboard.press("Escape")
        tab.wait_for_function("!location.hash.includes('cell=')")
        assert "text=cbd" in tab.url
        tab.goto("about:blank")
        tab.goto(address)
        assert tab.locator("dialog[open] h2").inner_text() == "CBD against badnets"
        assert tab.input_value("#text") == "cbd" and field.inner_text() == "88.0"
        assert tab.inner_text("#count") == "2 of 5"
        tab.goto(page.as_uri() + "#metric=none&cell=none&sort=99a&text=")
        assert tab.locator("dialog[open]").count() == 0 and field.inner_text() == "1.0"
        # a link to a part of the page
        tab.goto("about:blank")
        tab.goto(page.as_uri() + "#grid")
        assert field.inner_text() == "1.0" and tab.inner_text("#count") == "5 of 5"


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_in_the_way_of_anybody(page, scheme):
    """axe-core finds nothing serious, on the page and in an opened cell."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe here")
    with browser_tab(1400) as tab:
        tab.emulate_media(color_scheme=scheme)
        tab.goto(page.as_uri())
        for step in ("page", "cell"):
            if step == "cell":
                tab.locator("#grid td button").first.click()
            found = axe.Axe().run(tab).response["violations"]
            assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here")
def test_in_a_browser(page):
    with browser_tab() as tab:
        said = []
        asked = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())

        def column(n):
            return tab.eval_on_selector_all(
                "#board tbody tr:not([hidden])",
                f"rows => rows.map(row => row.cells[{n}].textContent.trim())",
            )

        assert tab.evaluate("document.documentElement.scrollWidth") == 375, (
            "only tables scroll sideways"
        )
        assert column(2) == ["90.00", "88.00", "89.00", "91.00", "87.00"]
        head = tab.locator("#board thead button", has_text="CA ↑").first
        head.focus()
        tab.keyboard.press("Enter")
        assert (
            column(2) == ["87.00", "88.00", "89.00", "90.00", "91.00"]
            and head.locator("..").get_attribute("aria-sort") == "ascending"
        )
        tab.keyboard.press("Enter")
        assert (
            column(2)[0] == "91.00"
            and head.locator("..").get_attribute("aria-sort") == "descending"
        )
        tab.locator("#board thead button", has_text="CA reported").click()
        assert column(5) == ["50.00", "87.00", "--", "--", "--"], "what is missing comes last"
        tab.fill("#text", "cbd bad")
        assert column(2) == ["88.00"] and tab.inner_text("#count") == "1 of 5"
        tab.fill("#text", "")
        tab.select_option("select[data-column=attack]", "blend")
        assert sorted(column(2)) == ["87.00", "91.00"]
        tab.check("#far")
        assert column(2) == ["87.00"]
        tab.locator("#board tbody tr:not([hidden]) button").focus()
        tab.keyboard.press("Enter")
        assert (
            tab.locator("dialog[open]").inner_text().startswith("Close")
            and tab.locator("dialog[open] polyline").count() == 1
        )
        tab.keyboard.press("Escape")
        assert tab.locator("dialog[open]").count() == 0
        with tab.expect_download() as kept:
            tab.get_by_text(".csv").click()
        assert (
            kept.value.suggested_filename.endswith(".csv")
            and "88.0000" in kept.value.path().read_text()
        )
        assert said == [] and [url for url in asked if not url.startswith(("file:", "data:"))] == []
