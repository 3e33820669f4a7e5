"""Sweeps from their beginning, or from their folder, to their table."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from cnn_train import atomic
from cnn_train.config.load import load
from cnn_train.errors import ConfigError
from cnn_train.runs import folder as run_folder
from cnn_train.runs import secrets
from cnn_train.sweep import engines, system
from cnn_train.sweep import folder as folders
from cnn_train.sweep.axes import without
from cnn_train.sweep.book import SAMPLED, Book
from cnn_train.sweep.folder import Sweep
from cnn_train.sweep.local import Runner, say
from cnn_train.sweep.plan import Planner
from cnn_train.sweep.progress import counts, describe, duration, progress, table
from cnn_train.sweep.ranking import objective, report


def start(words: Sequence[str], config_dir: str | Path | None = None, worker: Sequence[str] | None = None) -> int:
    """Plan, run and report a sweep; 0 if every job is done or pruned, 1 if not, 128 + n after signal n.

    With `resume=auto` among the words, the newest sweep of the same line is continued if there is one. `worker` is a
    command that takes a run's folder, in place of ours.
    """
    auto = [word for word in words if word.partition("=")[0] == "resume"]
    if auto and auto != ["resume=auto"]:
        raise ConfigError(f"{auto[0]}: a sweep takes resume=auto; to continue one by its folder: cnn-train resume DIR")
    words = without(words, "resume")
    planner = Planner(words, config_dir)
    settings = planner.settings()
    parent = Path(settings.output_dir) / "sweeps"
    if auto and (found := folders.same_line(parent, words)) is not None:
        own = [word for word in words if word.partition("=")[0].lstrip("+") in folders.FREE]
        return resume(found, own, worker=worker, typed=planner)
    if settings.sweep.sampler in SAMPLED:
        planned = []
        planner.probe()
    else:
        planned = planner.all(settings.sweep.sampler)
    engines.check(settings, worker)
    folder = run_folder.create(parent)
    lock = system.Lock(folder)
    try:
        sweep = Sweep(folder, list(words), planner.config_dir)
        atomic.write_text(folder / "command.txt", secrets.mask(sweep.command) + "\n")
        book = Book(sweep, settings, planner)
        book.add(planned)
        return run(book, worker)
    finally:
        lock.release()


def resume(
    folder: Path,
    words: Sequence[str] = (),
    config_dir: str | Path | None = None,
    worker: Sequence[str] | None = None,
    typed: Planner | None = None,
    trust: Sequence[str] = (),
) -> int:
    """Continue the sweep in `folder`, and run what values in `words` add to it; the exit code is that of `start`.

    Done jobs stay, stopped and killed ones resume from their checkpoints, failed ones are tried again. `typed` is the
    planner of a line that was typed now, whose configs may name the user's own code; otherwise `trust` names it.
    """
    folders.read(folder)  # a folder that is no sweep is reported before it gets a lock
    lock = system.Lock(folder)
    try:
        sweep = folders.read(folder, owned=False)
        own = [word for word in words if word.partition("=")[0].startswith("sweep.")]
        added = [word for word in words if word not in own]
        settings = settings_of(sweep, own, trust)
        engines.check(settings, worker)
        book = Book(sweep, settings, typed, config_dir or sweep.config_dir, trust)
        if added:
            book.grow(added)
        for job in sweep.jobs:
            job.settle()
        for job in sweep.unfinished():
            book.check(job)
            if job.state in ("failed", "stopped"):
                job.state, job.tries = "waiting", 0
        say(f"continuing {folder}: {counts(sweep.jobs)}")
        return run(book, worker)
    finally:
        lock.release()


def settings_of(sweep: Sweep, words: Sequence[str], trust: Sequence[str] = ()) -> DictConfig:
    """The config of a job, with what the command line says of the sweep."""
    for job in sweep.jobs:
        if (job.folder / "config.yaml").is_file():
            return load(job.folder, words, trust=trust)
    return Planner([*sweep.words, *words], sweep.config_dir).settings()


def run(book: Book, worker: Sequence[str] | None) -> int:
    """Run what is waiting, then tell the result; the exit code."""
    sweep, settings = book.sweep, book.settings
    where = engines.places(settings, book.configs, book.left(), sweep.threads)
    if sweep.threads is None and "OMP_NUM_THREADS" in where[0]:
        sweep.threads = int(where[0]["OMP_NUM_THREADS"])
        sweep.save()
    code = 0
    if book.left():
        title = f"sweep of {book.size()} jobs, {len(where)} at once, in {sweep.folder}"
        show = progress(sweep.jobs, title, book.goal.metric, settings.trainer.progress)
        starter = engines.starter(sweep, settings, worker)
        try:
            code = Runner(sweep, where, show, book, starter, settings.sweep.on_failure).run()
        finally:
            starter.close()
            while book.prepare():
                pass
            sweep.save()
    report(sweep, settings)
    bad = sweep.unfinished()
    if bad:
        say(f"{counts(sweep.jobs)}\n{sweep.next_line}")
    return code or int(bool(bad))


def status(folder: Path) -> int:
    """Print the jobs of a sweep, which may run elsewhere; 0 if every one is done or pruned, else 1."""
    sweep = folders.read(folder)
    goal = objective(settings_of(sweep, []), sweep.jobs)
    rows = [["job", "overrides", "state", "time", ""]]
    for job in sweep.jobs:
        rows.append([str(job.number), job.name, job.state, duration(job.seconds), describe(job, goal.metric)])
    print(table(rows))
    print(counts(sweep.jobs))
    if sweep.unfinished():
        print("it runs now" if system.is_locked(folder) else sweep.next_line)
    return int(bool(sweep.unfinished()))
