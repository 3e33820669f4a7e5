"""Look at a data set before training: every file, label and mask, and duplicates.

One screen, and one HTML page with pictures, some as the network gets them. The exit code is 3 if
something is wrong, 0 if there are only remarks. What is found is kept, and the runs that follow do
not compute it again.
"""

from dataclasses import dataclass
from pathlib import Path

from cnn_train.cli.options import Composes, option
from cnn_train.cli.show import shown
from cnn_train.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Options(Composes):
    fix: Path | None = option(
        "a new folder for a cleaned copy of the data", default=None, of="path", value="DIR", flag="--fix"
    )
    page: Path | None = option("the HTML page, by default in outputs/check", default=None, of="path", value="FILE")
    distance: float = option("up to which two images are nearly the same", default=0.07, least=0)
    examples = (
        ("cnn-train check data=folder data.root=photos", "images by class"),
        ("cnn-train check data=segmentation_folder data.root=fields data.classes=2 fix=clean", "with masks"),
    )


def run(options: Options) -> int:
    from omegaconf import OmegaConf

    from cnn_train.config.build import build
    from cnn_train.config.choices import Choices
    from cnn_train.config.compose import compose

    cfg = compose(options.settings, options.config_dir)
    if shown(cfg, options, Choices.find(options.config_dir)):
        return 0
    from cnn_train.data.cleaning import clean
    from cnn_train.data.decode import MAX_PIXELS
    from cnn_train.data.disk import num_workers
    from cnn_train.inspection.data_findings import checked, default_page
    from cnn_train.inspection.data_page import screen, write

    settings = OmegaConf.to_container(cfg.data, resolve=True)
    assert isinstance(settings, dict)
    target, workers = str(settings["_target_"]), num_workers(settings.get("workers"))
    kept = {"cache": "none"} if "cache" in settings else {}  # pictures of a few need not decode all
    report, listing = checked(
        cfg.choices.data,
        target,
        {str(name): value for name, value in settings.items()},
        lambda files: build(cfg.data, **kept, **({"on_error": "skip_all", "verify": True} if files else {})),
        workers,
        options.distance,
    )
    page = options.page or default_page(report.name)
    write(report, page)
    print(screen(report, page))
    if options.fix is not None:
        if listing is None and report.is_wrong:
            raise DataError(f"fix={options.fix}: no file is copied before what is wrong above is mended")
        if listing is None:
            raise ConfigError(f"fix={options.fix} is for data in files of your own, not for data={cfg.choices.data}")
        done = clean(listing, report.bad, options.fix, settings.get("max_pixels", MAX_PIXELS), workers)
        print(f"fixed     {options.fix}: {len(done)} change(s), listed in {options.fix / 'cleaned.txt'}")
    return DataError.exit_code if report.is_wrong else 0
