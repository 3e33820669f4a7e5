"""`pip install .` with no repository around: the wheel holds the configs, and trains from any directory."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_wheel_trains_from_elsewhere(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    shipped = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"cnn_train/{name}" for name in shipped} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "conf/", "benchmarks/"))]
    assert "[console_scripts]\ncnn-train = cnn_train.__main__:main" in "".join(
        (site / name).read_text() for name in names if name.endswith("entry_points.txt")
    )

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import cnn_train, sys; print(cnn_train.__file__); from cnn_train.__main__ import main; sys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-c", code, "trainer.fast_dev_run=true", "model=resnet20"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert str(site) in run.stdout
    assert len(list((elsewhere / "outputs" / "resnet20").iterdir())) == 1
