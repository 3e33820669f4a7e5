"""The site: it builds strictly, asks for nothing from a network, and a browser shows its pages without an error."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="the site needs pip install 'cnn-train[docs]'")
    folder = tmp_path_factory.mktemp("site")
    build(folder, ROOT / "mkdocs.yml")
    return folder


def build(folder: Path, config: Path) -> str:
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == (0 if config.parent == ROOT else 1), run.stderr[-2000:]
    return run.stdout + run.stderr


@pytest.mark.slow
def test_every_page_is_there_and_asks_for_nothing_elsewhere(site):
    pages = {path.name for path in site.glob("*.html")}
    assert {"index.html", "claims.html", "zoo.html", "explanations.html", "groups.html", "api.html"} <= pages
    assert {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} <= pages
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=[\"']?https?://", text), path
    assert "gn_ws" in (site / "groups.html").read_text() and len(list((site / "explain").iterdir())) >= 15
    assert sum(path.stat().st_size for path in (ROOT / "docs").rglob("*") if path.is_file()) < 12e6


@pytest.mark.slow
def test_a_broken_link_ends_the_build(tmp_path):
    pytest.importorskip("mkdocs")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    text = (ROOT / "mkdocs.yml").read_text().replace("benchmarks/site.py", str(ROOT / "benchmarks" / "site.py"))
    (tmp_path / "mkdocs.yml").write_text(text)
    with (tmp_path / "docs" / "training.md").open("a") as file:
        file.write("\n[nowhere](nowhere.md)\n")
    assert "nowhere.md" in build(tmp_path / "site", tmp_path / "mkdocs.yml")


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_pages(site, width, tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium")
    for page in ("index", "groups", "claims", "explanations"):
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--window-size={width},900",
            "--enable-logging=stderr",
        ]
        address = f"file://{site}/{page}.html"
        shot = tmp_path / f"{page}.png"
        run = subprocess.run(
            [browser, *options, f"--screenshot={shot}", address], capture_output=True, text=True, timeout=120
        )
        assert shot.stat().st_size > 5000
        assert not re.search(r"CONSOLE.*(?:Uncaught|ERR_|net::)", run.stderr), run.stderr[-1000:]
