"""The report: one HTML file that opens offline, with every chart as SVG and the numbers beside it."""

import base64
import hashlib
import io
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn_train.report import answer as words
from cnn_train.report import drawing, duels, effects, figures, keys, settings, tables
from cnn_train.report.drawing import Figure
from cnn_train.report.runs import Run, Study
from cnn_train.report.settings import Comparison, Setting, short, word

HERE = Path(__file__).parent
MAIN_EFFECTS = 8  # keys with a chart, in their order
PAIRS = 6  # heat maps, those that explain most
RIVALS = 8  # settings that the best one is compared with sample by sample
PICTURES = 4  # of one run
PICTURED = 2  # settings whose best run shows its pictures
PICTURE_BYTES = 150_000  # larger pictures are made smaller
ROWS = 200  # settings in the large table


@dataclass(frozen=True)
class Section:
    """A part of the page: an anchor, a heading, paragraphs and charts. One without the last two is not shown."""

    anchor: str
    title: str
    paragraphs: Sequence[str]
    charts: Sequence[tuple[Figure, str]]  # with their SVG


def render(study: Study, metric: str | None = None) -> str:
    """The page of a study; `metric` is the one to show. Raises ConfigError, and EnvError for a missing package."""
    drawing.vl_convert()  # a missing package is reported before the work
    comparison = settings.compare(study.runs, metric)
    shown = comparison.shown
    known = [setting for setting in comparison.settings if math.isfinite(setting.mean(comparison.objective))]
    found = against_each(known[: RIVALS + 1])
    sources = None if effects.is_sampled(comparison, study.sampler) else effects.effects(comparison, shown)
    count = itertools.count(1)

    def draw(*charts: Figure | None) -> list[tuple[Figure, str]]:
        return [(chart, drawing.svg(chart, f"chart{next(count)}")) for chart in charts if chart is not None]

    sections = [
        section
        for section in (
            Section("ranking", "Settings", [], draw(figures.ranking(comparison, shown))),
            Section("curves", "Training", [], draw(*_curves(comparison))),
            _effects(comparison, shown, sources, draw),
            _costs(comparison, shown, draw),
            _duels(found, known, draw),
        )
        if section.charts or section.paragraphs
    ]
    return _template().render(
        title=study.folders[0].resolve().name,
        made=time.strftime("%Y-%m-%d %H:%M"),
        comparison=comparison,
        done=sum(run.done for run in study.runs),
        total=len(study.runs),
        seeds=words.seeds(comparison),
        answer=words.answer(comparison, shown, next((duel for duel in found if duel.b is known[1]), None), sources),
        table=_table(comparison),
        sections=sections,
        pictures=pictures(known[:PICTURED], comparison),
        failures=failures(study, comparison),
        again=words.again(study),
        environment=environment(study.runs),
        notes=[*study.notes, *comparison.notes],
    )


def _template() -> Any:
    """The page's template, with the style and the script that its content security policy lets in."""
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise drawing.missing("jinja2") from error
    text = {name: (HERE / name).read_text(encoding="utf-8").strip() for name in ("page.css", "page.js")}
    hashes = {name: base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for name, part in text.items()}
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["svg"] = markupsafe.Markup
    environment.globals.update(
        style=markupsafe.Markup(text["page.css"]),
        script=markupsafe.Markup(text["page.js"]),
        style_hash=hashes["page.css"],
        script_hash=hashes["page.js"],
    )
    return environment.from_string((HERE / "page.html").read_text(encoding="utf-8"))


# -- sections ---------------------------------------------------------------------------------------------------------

Draw = Callable[..., list[tuple[Figure, str]]]


def _curves(comparison: Comparison) -> list[Figure | None]:
    """The metric to show, the one that ranks and the training loss, each over epochs where it was measured."""
    names = [comparison.shown.replace("test/", "val/"), comparison.objective, "train/loss"]
    return [figures.curves(comparison, name) for name in dict.fromkeys(names)]


def _effects(comparison: Comparison, metric: str, sources: effects.Effects | None, draw: Draw) -> Section:
    """What matters: the analysis of variance of a grid, or the importance in a sampled sweep."""
    every = figures.parallel(comparison, metric)
    mains = [keys.main_effect(comparison, key, metric) for key in comparison.keys[:MAIN_EFFECTS]]
    if sources is not None:
        pairs = [effect for effect in sources.effects if len(effect.keys) == 2]
        pairs = sorted(pairs, key=lambda effect: -effect.share)[:PAIRS]
        maps = [keys.interaction(comparison, effect.keys[0], effect.keys[1], metric) for effect in pairs]
        return Section(
            "effects",
            "What matters",
            _about(sources),
            draw(keys.shares(sources) if sources.effects else None, *mains, *maps, every),
        )
    if not comparison.keys or not any(mains):
        return Section("effects", "What matters", [], [])
    found = effects.importance(comparison, metric)
    if found is None:
        text = ["Importance needs Optuna: pip install 'cnn-train[optuna]'."]
    elif not found:
        text = ["There are too few settings (under 10) to say how important each key is."]
    else:
        text = ["The values were drawn, not laid out in a grid: importance is Optuna's PED-ANOVA, a rough guide."]
    return Section(
        "effects", "What matters", text, draw(keys.importances(found, metric) if found else None, *mains, every)
    )


def _about(sources: effects.Effects) -> list[str]:
    text = [f"Analysis of variance of {sources.metric} over {sources.n} runs, type II sums of squares."]
    if not sources.total:
        return [f"All {sources.n} runs have the same {sources.metric}."]
    if not sources.effects:
        return ["The keys always change together, so nothing tells which of them matters."]
    text.append("The column “by chance” is the share that a source would have on average if nothing mattered.")
    if not sources.balanced:
        text.append("Some combinations lack runs, so the shares may overlap and need not add up to 100%.")
    if sources.seeds is None:
        text.append("Each setting has one run: seeds and what needs three or more keys cannot be told apart.")
    return text


def _costs(comparison: Comparison, metric: str, draw: Draw) -> Section:
    names = [name for name in comparison.costs if name != "seconds_per_step" or "seconds" not in comparison.costs]
    charts = draw(*(figures.cost_and_quality(comparison, name, metric) for name in names))
    text = [] if charts or not comparison.costs else ["All settings cost the same."]
    if not comparison.costs and any(run.done for run in comparison.runs):
        text = ["The runs left no cost.json, and no sweep.json tells their time."]
    return Section("cost", "Cost", text, charts)


def against_each(ranked: Sequence[Setting]) -> list[duels.Duel]:
    """The best setting against each of the others that left predictions; the first duel shows its pairs of runs."""
    if len(ranked) < 2:
        return []
    known = duels.load(ranked)
    found: list[duels.Duel] = []
    for other in ranked[1:]:
        if (duel := duels.duel(ranked[0], other, known, each=not found)) is not None:
            found.append(duel)
    return found


def _duels(found: Sequence[duels.Duel], known: Sequence[Setting], draw: Draw) -> Section:
    title = "A against B"
    if len(known) < 2:
        return Section("duel", title, [], [])
    if not found:
        return Section("duel", title, ["The runs left no predictions.csv: they cannot be compared by sample."], [])
    text = [
        f"A is {found[0].a.name}. For each test sample A's result minus B's, averaged over the pairs of runs"
        f"{' with the same seed' if found[0].same_seeds else ''}; the interval comes from resampling test samples "
        f"{duels.RESAMPLES:,} times (paired bootstrap). It tells the chance of the test set, not of the seeds: those "
        "are the separate rows."
    ]
    return Section("duel", title, text, draw(figures.differences(found[0]), figures.rivals(found)))


def _table(comparison: Comparison) -> dict[str, Any]:
    """The settings as a table, as `cnn-train compare` prints them."""
    names = tables.columns(comparison)
    best = comparison.best_means([*names, *comparison.costs])
    head = [*map(short, comparison.keys), *names, "runs", *(tables.COST_TITLES[name] for name in comparison.costs)]
    shown = comparison.settings[:ROWS]
    rows = [(setting.name, tables.cells(comparison, setting, names, best)) for setting in shown]
    return {"head": head, "rows": rows, "left": max(len(comparison.settings) - ROWS, 0)}


# -- pictures, failures, environment ----------------------------------------------------------------------------------


def pictures(ranked: Sequence[Setting], comparison: Comparison) -> list[dict[str, Any]]:
    """The pictures of the best run of the best settings, as data URIs."""
    found = []
    for setting in ranked:
        run = best_run(setting, comparison)
        images = [(path.stem, uri) for path in run.pictures()[:PICTURES] if (uri := data_uri(path))]
        if images:
            found.append({"setting": setting.name, "seed": word(run.seed), "images": images})
    return found


def best_run(setting: Setting, comparison: Comparison) -> Run:
    """The run of a setting with the best value of the metric that ranks."""
    sign = -1 if comparison.higher else 1
    known = [run for run in setting.done if math.isfinite(run.metrics.get(comparison.objective, math.nan))]
    return min(known, key=lambda run: sign * run.metrics[comparison.objective])


def data_uri(path: Path) -> str | None:
    """A PNG file as a data URI, made smaller if it is large; None if it is no picture."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    if len(content) <= PICTURE_BYTES:
        return "data:image/png;base64," + base64.b64encode(content).decode()
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as file:
            image = file.convert("RGB")
            image.thumbnail((900, 900))
            smaller = io.BytesIO()
            image.save(smaller, "JPEG", quality=80)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(smaller.getvalue()).decode()


def failures(study: Study, comparison: Comparison) -> list[list[str]]:
    """Setting, seed, state, epoch, cause and folder of each run that is not done or not finite."""
    names = {run: setting.name for setting in comparison.settings for run in setting.runs}
    rows = []
    for run in study.runs:
        lost = words.not_finite(run)
        cause = run.cause if not run.done else f"not finite: {', '.join(lost)}" if lost else ""
        if cause:
            total = run.config.get("trainer.max_epochs")
            epoch = f"{run.epoch} of {total}" if total is not None else str(run.epoch)
            name = names.get(run, "–")
            rows.append([name, word(run.seed), run.state, epoch, cause, _relative(run.folder, study.folders)])
    return rows


def _relative(folder: Path, parents: Sequence[Path]) -> str:
    """A folder below the one that the report is about, otherwise its whole path."""
    parent = parents[0].resolve()
    return str(folder.relative_to(parent)) if folder.is_relative_to(parent) else str(folder)


def environment(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Commit, versions and machine of the runs; more than one value if they differ."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        record = run.environment
        packages = record.get("packages")
        for name, value in {**record, **(packages if isinstance(packages, dict) else {})}.items():
            if name not in ("packages", "started") and isinstance(value, str | int | float):
                found.setdefault(name.replace("_", " "), {}).setdefault(str(value))
    return [(name, ", ".join(values)) for name, values in found.items()]
