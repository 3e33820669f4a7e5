"""What the wheel holds; that it trains from any directory is shown by tests/test_extending.py."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_the_package_and_its_configs(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    shipped = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"cnn_train/{name}" for name in shipped} <= set(names)
    assert {"cnn_train/explain/page.css", "cnn_train/report/page.html", "cnn_train/py.typed"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "conf/", "benchmarks/"))]
    assert "[console_scripts]\ncnn-train = cnn_train.__main__:main" in "".join(
        (site / name).read_text() for name in names if name.endswith("entry_points.txt")
    )
