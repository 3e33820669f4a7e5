"""The dense CRF against pydensecrf2, and against its own exact form. Run: python -m benchmarks.crf [--exact]

Three pictures (two photographs, and uniform noise, where no two pixels are alike), the kernels of the papers, 21
classes, 10 iterations. Runs alternate; shown are medians of wall and of CPU seconds, the making of the lattice or of
the groups included.
pydensecrf2 needs a compiler and is no requirement of ours: without it only our own times are shown, or name another
interpreter that has it (and numpy) by --rival-python.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from cnn_train.postprocess.crf import DenseCRF

KERNELS = {
    "DeepLab v2": DenseCRF(bi_w=4, bi_xy=67, bi_rgb=3, pos_w=3, pos_xy=1),
    "DeepLab v1": DenseCRF(bi_w=4, bi_xy=121, bi_rgb=5, pos_w=3, pos_xy=3),
    "pydensecrf": DenseCRF(bi_w=10, bi_xy=80, bi_rgb=13, pos_w=3, pos_xy=3),
}

RIVAL = """
import sys, time, numpy as np, pydensecrf.densecrf as dcrf
image, energy = np.load(sys.argv[1]), np.load(sys.argv[2])
bi_w, bi_xy, bi_rgb, pos_w, pos_xy = map(float, sys.argv[3:8])
wall, cpu = time.perf_counter(), time.process_time()
crf = dcrf.DenseCRF2D(image.shape[1], image.shape[0], len(energy))
crf.setUnaryEnergy(energy.reshape(len(energy), -1))
crf.addPairwiseGaussian(sxy=pos_xy, compat=pos_w)
crf.addPairwiseBilateral(sxy=bi_xy, srgb=bi_rgb, rgbim=image, compat=bi_w)
marginals = np.array(crf.inference(int(sys.argv[8]))).reshape(energy.shape)
print(time.perf_counter() - wall, time.process_time() - cpu)
np.save(sys.argv[9], marginals)
"""


def picture(name: str, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: a photograph of scikit-learn's, or noise."""
    if name == "noise":
        return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.array(Image.fromarray(load_sample_image(f"{name}.jpg")).resize((width, height), Image.Resampling.BICUBIC))


def coarse_probabilities(image: np.ndarray, classes: int, stride: int = 8, seed: int = 0) -> torch.Tensor:
    """(1, K, H, W) as of a network of output stride 8: eight kinds of colour and place, blurred, with noise."""
    height, width, _ = image.shape
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    features = np.dstack([image / 40, 4 * y / height, 4 * x / width]).reshape(-1, 5)
    centres = features[random.choice(len(features), 8, replace=False)]
    label = ((features[:, None] - centres) ** 2).sum(2).argmin(1).reshape(height, width)
    scores = torch.nn.functional.one_hot(torch.from_numpy(label), classes).permute(2, 0, 1)[None].float()
    scores = torch.nn.functional.adaptive_avg_pool2d(scores, (height // stride + 1, width // stride + 1))
    scores = 4 * scores + 0.7 * torch.from_numpy(random.normal(size=scores.shape)).float()
    return torch.nn.functional.interpolate(scores, (height, width), mode="bilinear").softmax(1)


def timed_rival(python: str, folder: Path, crf: DenseCRF) -> tuple[float, float] | None:
    """Wall and CPU seconds of pydensecrf2 on what lies in the folder, or None if it is not there."""
    kernel = [str(v) for v in (crf.bi_w, crf.bi_xy, crf.bi_rgb, crf.pos_w, crf.pos_xy, crf.iterations)]
    files = [str(folder / name) for name in ("image.npy", "energy.npy")]
    command = [python, "-c", RIVAL, *files, *kernel, str(folder / "rival.npy")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


def agreement(marginals: torch.Tensor, exact: torch.Tensor) -> str:
    same = (marginals.argmax(1) == exact.argmax(1)).float().mean()
    return f"mean difference {(marginals - exact).abs().mean():.5f}, same argmax {100 * same:.2f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"))
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", nargs="+", default=["china", "flower", "noise"])
    parser.add_argument("--rival-python", default=sys.executable)
    parser.add_argument("--exact", action="store_true", help="also compare with the exact form (minutes at full size)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.pictures:
        image = picture(name, *args.size)
        prior = coarse_probabilities(image, args.classes)
        batch = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        for kernel, crf in KERNELS.items():
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                np.save(folder / "image.npy", image)
                np.save(folder / "energy.npy", -prior[0].log().numpy())
                ours, rivals = [], []
                for _ in range(args.repeats):
                    wall, cpu = time.perf_counter(), time.process_time()
                    marginals = crf(batch, prior)
                    ours.append((time.perf_counter() - wall, time.process_time() - cpu))
                    if rival := timed_rival(args.rival_python, folder, crf):
                        rivals.append(rival)
                our_wall, our_cpu = (median(column) for column in zip(*ours, strict=True))
                line = f"{name:7}{kernel:11} ours {our_wall:6.2f} s (CPU {our_cpu:6.2f})"
                if rivals:
                    wall, cpu = (median(column) for column in zip(*rivals, strict=True))
                    line += f"  pydensecrf2 {wall:6.2f} s (CPU {cpu:6.2f})  {wall / our_wall:5.2f} x"
                print(line, flush=True)
                if args.exact:
                    exact = replace(crf, exact=True)(batch, prior)
                    print(f"  ours to exact: {agreement(marginals, exact)}")
                    if rivals:
                        rival_marginals = torch.from_numpy(np.load(folder / "rival.npy"))[None]
                        print(f"  pydensecrf2 to exact: {agreement(rival_marginals, exact)}", flush=True)


if __name__ == "__main__":
    main()
