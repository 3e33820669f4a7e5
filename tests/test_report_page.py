"""The report as a page: its numbers recomputed from the folders, its safety, its cost, and how a browser shows it."""

import base64
import hashlib
import html
import itertools
import json
import math
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from test_report_runs import NORMS, RATES, write_grid, write_run

from cnn_train.cli.line import Line
from cnn_train.cli.options import read as read_options
from cnn_train.commands import report as command
from cnn_train.errors import ConfigError, EnvError
from cnn_train.report import answer, page, runs, settings

pytest.importorskip("vl_convert", reason="the extra report is not installed")
PIXEL = base64.b64decode(  # one grey pixel, PNG
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)


class Page(HTMLParser):
    """Tables by caption as rows of text, all text, and all attributes that may load something."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.loads, self.words, self.tags, self.row, self.cell, self.rows = (
            {},
            [],
            [],
            [],
            None,
            None,
            None,
        )
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [(tag, name, value) for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.loads += [(tag, name, value) for name, value in attrs if name.startswith("on") or name == "style"]
        if tag == "table":
            self.rows = []
        elif tag == "tr":
            self.row = []
        elif tag in ("td", "th", "caption"):
            self.cell = ""

    def handle_data(self, data):
        self.words.append(data)
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag == "caption":
            self.tables[self.cell] = self.rows
        elif tag in ("td", "th"):
            self.row.append(self.cell)
        elif tag == "tr":
            self.rows.append(self.row)
        if tag in ("td", "th", "caption"):
            self.cell = None


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """27 runs: one of norm=bn lr=0.01 diverged, one of norm=gn lr=0.01 was killed, one of norm=none lr=0.1 has NaN."""
    folder = write_grid(tmp_path_factory.mktemp("report") / "norm and rate")
    for number in (5, 13):
        (folder / f"{number:02}" / "metrics.json").unlink()
    (folder / "05" / "log.txt").write_text("x [1] cnn-train\nerror: diverged at step 2 (epoch 1): loss nan\n")
    curve = (folder / "13" / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "13" / "metrics.csv").write_text("".join(curve[:7]))
    metrics = json.loads((folder / "20" / "metrics.json").read_text())
    (folder / "20" / "metrics.json").write_text(json.dumps({**metrics, "test/acc": math.nan}))
    (folder / "sweep.json").write_text('{"jobs": [')
    (folder / "03" / "pictures").mkdir()
    (folder / "03" / "pictures" / "samples.png").write_bytes(PIXEL)
    return folder


@pytest.fixture(scope="module")
def written(grid):
    """The page's text and the seconds that it took."""
    start = time.process_time()
    assert command.run(command.Options(folder=str(grid))) == 0
    return (grid / "report.html").read_text(), time.process_time() - start


@pytest.fixture(scope="module")
def read(written):
    return Page(written[0])


def values(folder, metric, **wanted):
    """Independently read: the finite values of a metric over the runs with these words on their command line."""
    found = []
    for path in sorted(folder.glob("*/metrics.json")):
        typed = (path.parent / "command.txt").read_text().split()
        value = json.loads(path.read_text())[metric]
        if all(f"{name}={value}" in typed for name, value in wanted.items()) and math.isfinite(value):
            found.append(value)
    return found


def shown(numbers, lost=0):
    of = f" of {len(numbers) + lost}" if lost else ""
    spread = f" ± {np.std(numbers, ddof=1):.4f}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):.4f}{spread} ({len(numbers)}{of})"


def test_a_report_of_27_runs_is_quick_and_small(written):
    text, seconds = written
    assert seconds < 10 and len(text.encode()) < 3e6


def test_every_mean_of_the_tables_follows_from_the_folders(grid, read):
    head, *rows = read.tables["All settings: mean ± standard deviation (number of seeds), the best in bold"]
    assert head == ["norm", "optimizer.lr", "val/loss", "test/acc", "test/loss", "runs", "time", "time per step",
                    "peak memory", "parameters"]  # fmt: skip
    assert len(rows) == 9
    order = []
    for norm, rate, *cells in rows:
        where = {"norm": norm, "optimizer.lr": rate}
        lost = int((norm, rate) == ("none", "0.1"))
        losses = values(grid, "val/loss", **where)
        assert cells[:3] == [shown(losses), shown(values(grid, "test/acc", **where), lost),
                             shown(values(grid, "test/loss", **where))]  # fmt: skip
        assert cells[3] == ("2 of 3" if len(losses) == 2 else "3")
        order.append(np.mean(losses))
    assert order == sorted(order)
    ranking = read.tables["test/acc of each setting"]
    assert [row[1] for row in ranking[1:]] == [row[3] for row in rows]
    for key, levels in (("norm", NORMS), ("optimizer.lr", sorted(RATES))):
        found = read.tables[f"test/acc by {key}"][1:]
        lost = [int(str(level) in ("none", "0.1")) for level in levels]
        means = [shown(values(grid, "test/acc", **{key: level}), n) for level, n in zip(levels, lost, strict=True)]
        assert found == [[str(level), mean] for level, mean in zip(levels, means, strict=True)]
    cells = read.tables["test/acc by norm and optimizer.lr"][1:]
    expected = [[norm, str(rate), shown(values(grid, "test/acc", norm=norm, **{"optimizer.lr": rate}),
                                        0)] for norm, rate in itertools.product(NORMS, sorted(RATES))]  # fmt: skip
    assert [[*row[:2], row[2].replace("2 of 3", "2")] for row in cells] == expected
    time_table = {row[0]: row[1:] for row in read.tables["test/acc against time"][1:]}
    seconds = [json.loads((grid / name / "cost.json").read_text())["seconds"] for name in ("03", "04")]
    assert time_table["norm=bn lr=0.01"][0] == f"1 min {round(np.mean(seconds)) - 60:02} s"


def test_curves_are_means_over_the_runs_that_are_done(grid, read, written):
    label = "norm=gn lr=0.01, epoch 12: val/acc "
    rows = [line.split(",") for name in ("12", "14") for line in (grid / name / "metrics.csv").read_text().splitlines()]
    last = [float(row[4]) for row in rows if row[0] == "12"]
    assert len(last) == 2
    assert html.escape(label + shown(last)) in written[0]
    table = {row[0]: row[1:] for row in read.tables["val/acc over epochs"][1:]}
    assert table["norm=gn lr=0.01"] == ["12", shown(last)]
    killed = re.findall(r"norm=gn lr=0.01, seed 1 \(unfinished\), epoch (\d+)", written[0])
    assert set(map(int, killed)) == {1, 2, 3, 4, 5, 6}


def test_shares_and_intervals_on_the_page_follow_from_the_folders(tmp_path):
    """In a balanced grid, whose sums of squares are those of means."""
    folder = write_grid(tmp_path / "full", epochs=2)
    read = Page(page.render(runs.read([folder])))
    y = {
        (norm, rate): values(folder, "test/acc", norm=norm, **{"optimizer.lr": rate})
        for norm in NORMS
        for rate in RATES
    }
    table = np.array([[y[norm, rate] for rate in RATES] for norm in NORMS])
    grand, total = table.mean(), ((table - table.mean()) ** 2).sum()
    norm = 9 * ((table.mean(axis=(1, 2)) - grand) ** 2).sum()
    rate = 9 * ((table.mean(axis=(0, 2)) - grand) ** 2).sum()
    cells = 3 * ((table.mean(axis=2) - grand) ** 2).sum()
    squares = (norm, rate, cells - norm - rate, total - cells)
    found = read.tables["Share of the variance of test/acc"][1:]
    assert [row[0] for row in found] == ["norm", "optimizer.lr", "norm × optimizer.lr", "seeds"]
    assert [row[1] for row in found] == [f"{part / total:.1%}" for part in squares]
    assert [row[2] for row in found] == [f"{2 / 26:.1%}", f"{2 / 26:.1%}", f"{4 / 26:.1%}", "–"]
    losses = {at: np.mean(values(folder, "val/loss", norm=at[0], **{"optimizer.lr": at[1]})) for at in y}
    first, second = sorted(losses, key=losses.get)[:2]
    duel = read.tables[f"norm={first[0]} lr={first[1]} minus norm={second[0]} lr={second[1]}"]
    differences = np.array(y[first]) - np.array(y[second])  # test/acc is the share of right samples
    assert [row[1] for row in duel[1:]] == [f"{d:+.4f}" for d in (differences.mean(), *differences)]
    for row in duel[1:]:
        low, high = map(float, row[2].split(" to "))
        assert low < float(row[1]) < high and row[3] == "200"


def test_the_answer_names_the_best_and_what_is_not_settled(grid, read):
    text = " ".join(" ".join(read.words).split())
    losses = {(n, r): np.mean(values(grid, "val/loss", norm=n, **{"optimizer.lr": r})) for n in NORMS for r in RATES}
    first, second = sorted(losses, key=losses.get)[:2]
    accs = [values(grid, "test/acc", norm=n, **{"optimizer.lr": r}) for n, r in (first, second)]
    spoken = [f"{np.mean(found):.4f} ± {np.std(found, ddof=1):.4f} over {len(found)} seeds" for found in accs]
    assert f"norm={first[0]} lr={first[1]} is best: test/acc {spoken[0]}, chosen by val/loss." in text
    gap = np.mean(accs[0]) - np.mean(accs[1])
    assert f"The runner-up, norm={second[0]} lr={second[1]}, has {spoken[1]}: a difference of {gap:+.4f}." in text
    assert "Not done are 2 of 27 runs (1 failed, 1 unfinished); they are in no mean." in text
    assert "Metrics of 1 done run are not finite" in text
    assert "sweep.json is damaged; the sweep was rebuilt from its run folders." in text


def test_failures_are_listed_with_their_cause(read):
    rows = {row[-1]: row[:-1] for row in read.tables["Runs that are not done or not finite"][1:]}
    assert rows["05"] == [
        "norm=bn lr=0.01",
        "2",
        "failed",
        "12 of 3",
        "diverged at step 2 (epoch 1): loss nan",
    ]
    assert rows["13"][2:4] == ["unfinished", "6 of 3"]
    assert rows["20"][2] == "done" and rows["20"][4] == "not finite: test/acc"
    assert len(rows) == 3


def test_the_page_forbids_and_loads_nothing_from_outside(written, read):
    text = written[0]
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        assert f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy
    assert read.tags.count("script") == 1
    assert all(value.startswith(("data:", "#")) for _, _, value in read.loads), read.loads
    assert f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}" in text


def test_every_chart_is_xml_with_words_marks_and_a_table(written, read):
    charts = re.findall(r"<svg .*?</svg>", written[0], re.DOTALL)
    assert len(charts) >= 12
    ids = re.findall(r'\bid="([^"]+)"', written[0])
    assert len(ids) == len(set(ids))
    for chart in charts:
        root = ElementTree.fromstring(chart)
        space = {"s": "http://www.w3.org/2000/svg"}
        assert root.get("role") == "img"
        names = root.get("aria-labelledby").split()
        title, words = root.find("s:title", space), root.find("s:desc", space)
        assert [title.get("id"), words.get("id")] == names and words.text
        assert len(read.tables[title.text]) > 1
        marks = [
            e
            for e in root.iter()
            if e.get("role") == "graphics-symbol" and e.get("aria-roledescription") not in ("axis", "legend")
        ]
        assert marks, title.text


def test_names_are_shown_and_never_run(tmp_path):
    evil = ("<script>alert(1)</script>\"'&", "</svg><img src=http://x.example/y onerror=alert(1)>", "{{ 7 * 7 }}")
    for i, (value, seed) in enumerate(itertools.product(evil, (0, 1))):
        metrics = {"val/loss": 0.5 + i / 10, "test/<b>bold": 0.5, "test/acc": 0.9 - i / 100}
        curve = [{"epoch": e, "val/acc": 0.5 + e / 10 + i / 100} for e in (1, 2, 3)]
        write_run(tmp_path / str(i), {"seed": seed}, metrics, curve, environment={"git_commit": evil[0]})
        text = (
            (tmp_path / str(i) / "config.yaml")
            .read_text()
            .replace("choices: {}", f"choices: {{norm: {json.dumps(value)}}}")
        )
        (tmp_path / str(i) / "config.yaml").write_text(text)
        (tmp_path / str(i) / "command.txt").write_text(f"cnn-train norm={value}")
    write_run(tmp_path / "9", {"seed": 9}, log=f"error: {evil[1]}\n")
    text = page.render(runs.read([tmp_path]))
    read = Page(text)
    assert read.tags.count("script") == 1 and "b" not in read.tags and "img" not in read.tags
    assert all(value.startswith(("data:", "#")) for _, _, value in read.loads)
    seen = "".join(read.words)
    assert all(value in seen for value in evil) and "test/<b>bold" in seen
    for chart in re.findall(r"<svg .*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(chart)


def test_runs_without_results_and_single_runs_are_shown_as_what_they_are(tmp_path):
    write_run(tmp_path / "none" / "a")
    assert "No run has results yet." in page.render(runs.read([tmp_path / "none"]))
    write_run(tmp_path / "one" / "a", {}, {"val/loss": 0.5, "test/acc": 0.9})
    text = page.render(runs.read([tmp_path / "one"]))
    assert "the only setting: test/acc 0.9000 in its only run." in text and "1 setting<" in text
    for i, norm in enumerate(("bn", "gn")):
        write_run(tmp_path / "two" / norm, {"norm": norm}, {"val/loss": 0.5 + i, "test/acc": 0.9})
    text = page.render(runs.read([tmp_path / "two"]))
    assert "With one run of a setting nothing tells what another seed would give" in text and "not settled" in text
    (tmp_path / "bad" / "a").mkdir(parents=True)
    (tmp_path / "bad" / "a" / "config.yaml").write_text("a: [")
    assert "config.yaml is damaged" in page.render(runs.read([tmp_path / "bad"]))


def test_many_values_of_a_key_are_told_by_the_best(tmp_path):
    for i in range(9):
        write_run(tmp_path / str(i), {"norm": f"n{i}"}, {"val/loss": 0.5 + i, "test/acc": 0.9 - i / 100})
    text = page.render(runs.read([tmp_path]))
    assert "9 values of norm; the best is n0: 0.9000 (1)." in text
    assert "9 values of norm; the best is n0: 0.5000 (1)." in page.render(runs.read([tmp_path]), "val/loss")


def answered(folder, values):
    """The answer about runs with these (val/loss, test/acc) of each seed of each setting."""
    for name, found in values.items():
        for seed, (loss, acc) in enumerate(found):
            write_run(folder / f"{name}{seed}", {"norm": name, "seed": seed}, {"val/loss": loss, "test/acc": acc})
    comparison = settings.compare(runs.read([folder]).runs)
    return answer.answer(comparison, "test/acc", None, None)


def test_only_a_lead_is_settled(tmp_path):
    far = answered(tmp_path / "far", {"bn": [(0.1, 0.95), (0.1, 0.96)], "gn": [(0.2, 0.8), (0.2, 0.81)]})
    assert far.verdict == "settled" and far.interval[0] > 0
    behind = answered(tmp_path / "behind", {"bn": [(0.1, 0.8), (0.1, 0.81)], "gn": [(0.2, 0.95), (0.2, 0.96)]})
    assert behind.verdict == "not settled" and behind.interval[1] < 0
    assert "norm=gn has the best test/acc, 0.9550 ± 0.0071 over 2 seeds, but not the best val/loss." in behind.more
    equal = answered(tmp_path / "equal", {"bn": [(0.1, 0.9), (0.1, 0.9)], "gn": [(0.2, 0.8), (0.2, 0.8)]})
    assert equal.interval == (pytest.approx(0.1), pytest.approx(0.1)) and equal.verdict == "settled"


def test_keys_that_change_together_are_not_told_apart(tmp_path):
    for i, (norm, rate) in enumerate((("bn", 0.1), ("gn", 0.2), ("bn", 0.1), ("gn", 0.2))):
        settings_of = {"norm": norm, "optimizer.lr": rate, "seed": i // 2}
        write_run(tmp_path / str(i), settings_of, {"val/loss": 0.5 + i / 10, "test/acc": 0.9})
    assert page.render(runs.read([tmp_path]), "val/loss").count("The keys always change together") == 2
    assert "All 4 runs have the same test/acc." in page.render(runs.read([tmp_path]))


def test_the_lines_that_repeat_a_sweep_expand_to_its_runs(tmp_path, grid):
    assert answer.again(runs.read([grid])) == ["cnn-train -m seed=0,1,2 norm=bn,gn,none optimizer.lr=0.1,0.01,0.001"]
    for i, norm in enumerate(("bn", "gn", "bn")):
        write_run(tmp_path / str(i), {"norm": norm, "seed": i}, {"val/loss": 0.5})
    assert len(answer.again(runs.read([tmp_path]))) == 3  # no product
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": [], "command": "cnn-train -m norm=glob(*)"}))
    assert answer.again(runs.read([tmp_path])) == ["cnn-train -m norm=glob(*)"]


def test_large_pictures_are_made_smaller_and_others_left_out(tmp_path):
    image = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1200, 3), dtype=np.uint8)
    image.fromarray(noise).save(tmp_path / "large.png")
    (tmp_path / "not.png").write_bytes(b"GIF89a")
    (tmp_path / "cut.png").write_bytes((tmp_path / "large.png").read_bytes()[:300_000])
    uri = page.data_uri(tmp_path / "large.png")
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < 700_000
    assert page.data_uri(tmp_path / "not.png") is None and page.data_uri(tmp_path / "cut.png") is None
    assert page.data_uri(tmp_path / "missing.png") is None


@pytest.mark.parametrize(
    ("words", "overrides", "message"),
    [
        ([], [], "report needs folder=DIR: a sweep, or a folder of runs"),
        (["{grid}"], ["metric=test/ac"], "no run has the metric 'test/ac'. Did you mean test/acc?"),
        (["{grid}"], ["output={grid}"], "output={grid} is a folder; name a file, as output={grid}/report.html"),
        (["{grid}"], ["output={grid}/no/r.html"], "output={grid}/no/r.html: no folder {grid}/no; make it first"),
        (
            ["{grid}"],
            ["out=x"],
            "report has no option 'out'. Did you mean output?",
        ),
    ],
)
def test_bad_input_is_one_line(grid, words, overrides, message):
    words, overrides = ([word.format(grid=grid) for word in part] for part in (words, overrides))
    line = Line("report", words=words, overrides=overrides)
    with pytest.raises(ConfigError) as error:
        command.run(read_options(command.Options, line))
    assert str(error.value) == message.format(grid=grid)


def test_a_missing_package_is_told_with_the_line_that_installs_it(grid, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(EnvError, match="the report needs the package vl-convert-python") as error:
        page.render(runs.read([grid]))
    assert error.value.exit_code == 4 and error.value.__notes__ == ["try: pip install 'cnn-train[report]'"]


# -- in a browser -----------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=4000")  # fmt: skip
PROBE = """
const errors = [];
addEventListener("error", (event) => errors.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => errors.push(event.violatedDirective + " " + event.blockedURI));
addEventListener("load", () => setTimeout(() => {
  const input = document.querySelector("#filter input");
  const table = [...document.querySelectorAll("#ranking div.card tr[data-name]")];
  const rows = () => table.filter((row) => row.offsetParent).length;
  const before = rows();
  if (input) { input.value = "norm=bn"; input.dispatchEvent(new Event("input")); }
  const charts = [...document.querySelectorAll(".chart svg")].map((svg) => {
    const box = svg.getBoundingClientRect();
    const inside = [...svg.querySelectorAll("[role=graphics-symbol], text")].filter((m) => m.getBBox().width);
    return [box.width, box.height, inside.length, box.right];
  });
  const mark = document.querySelector(".chart [aria-roledescription=point][aria-label]");
  mark?.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: 50, clientY: 50}));
  parent.postMessage({
    width: innerWidth, scroll: document.documentElement.scrollWidth, errors, charts, before, after: rows(),
    dim: document.querySelectorAll(".dim").length, tip: document.getElementById("tip")?.textContent,
    requests: performance.getEntriesByType("resource").map((e) => e.name).filter((name) => !name.startsWith("data:")),
  }, "*");
}, 300));
"""


def look(folder, text, widths):
    """Open the page in frames of these widths, with a script of ours before all others; what it saw at each width."""
    allowed = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{allowed}' ", 1).replace(
        "<style>", f"<script>{PROBE}</script><style>", 1
    )
    (folder / "page.html").write_text(text)
    frames = "".join(f'<iframe src="page.html" style="width:{w}px;height:1500px;border:0"></iframe>' for w in widths)
    (folder / "frames.html").write_text(
        f"<body>{frames}<pre></pre><script>addEventListener('message', (event) => "
        "document.querySelector('pre').textContent += JSON.stringify(event.data) + '\\n')</script>"
    )
    address = (folder / "frames.html").as_uri()
    profile = f"--user-data-dir={folder / 'profile'}"
    seen = subprocess.run(
        [CHROMIUM, *FLAGS, profile, "--dump-dom", address], capture_output=True, text=True, timeout=120
    )
    found = re.search(r"<pre>(.*?)</pre>", seen.stdout, re.DOTALL)
    assert found and found[1].strip(), seen.stderr[-2000:]
    return {record["width"]: record for record in map(json.loads, html.unescape(found[1]).strip().splitlines())}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_shows_it_on_a_phone_and_on_a_desk(written, tmp_path):
    seen = look(tmp_path, written[0], (390, 1280))
    assert set(seen) == {390, 1280}
    for width, record in seen.items():
        assert record["requests"] == [] and record["errors"] == []
        assert record["scroll"] <= width
        assert len(record["charts"]) >= 12
        for w, h, marks, right in record["charts"]:
            assert w > 200 and h > 80 and marks > 3 and right <= width
        assert (record["before"], record["after"]) == (9, 3) and record["dim"] > 0
        assert record["tip"].startswith("norm=")
