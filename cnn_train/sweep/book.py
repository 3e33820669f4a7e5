"""A running sweep's plan: what is left to do, what a sampler draws next, and what is not worth going on with."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from cnn_train import atomic
from cnn_train.config.load import load
from cnn_train.config.targets import grants
from cnn_train.errors import ConfigError
from cnn_train.runs import secrets
from cnn_train.runs.git import git_state
from cnn_train.sweep.axes import without
from cnn_train.sweep.folder import Sweep
from cnn_train.sweep.job import Job, by_point
from cnn_train.sweep.local import say
from cnn_train.sweep.plan import Planned, Planner, combined, digest, prepare
from cnn_train.sweep.ranking import Objective, objective

if TYPE_CHECKING:
    from cnn_train.sweep.sampling import Pruner, Sampler

SAMPLED = ("random", "tpe")
DRAWS = 50  # tries of a sampler to find a combination that is new


class Book:
    """Makes the folders of a sweep's jobs, and answers the engine's questions. Optuna is imported where it is used."""

    def __init__(
        self,
        sweep: Sweep,
        settings: DictConfig,
        planner: Planner | None = None,
        config_dir: str | Path | None = None,
        trust: Sequence[str] = (),
    ):
        self.sweep = sweep
        self.settings = settings
        self.planner = planner
        self.config_dir = config_dir
        self.trust = [name for name in trust if name]
        self.is_typed = planner is not None  # by this command line, not by a file
        self._granted: dict[int, list[str]] = {}
        self.configs: list[DictConfig] = []
        self.goal = objective(settings)
        self.exhausted = False
        self.to_prepare: dict[int, Planned] = {}  # by the job's number
        self._git: tuple[str | None, str] | None = None
        self._sampler: Sampler | None = None
        self._pruner = self.pruner()

    # What the engine asks -----------------------------------------------------------------------------------------

    def more(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs of the next combination that the sampler draws, prepared; [] if there is none."""
        if self.to_draw() == 0:
            return []
        sampler, planner = self.sampler(), self.planned_by()
        for number in range(DRAWS):
            lines = sampler.lines(params := sampler.ask(jobs, number))
            try:
                drawn = [planner.job(*line) for line in lines]
            except ConfigError as error:
                say(f"left out: {error} ({' '.join(lines[0][0])})")
                continue
            if new := [planner.take(job, config) for job, config in drawn if job.digest not in planner.seen]:
                for job, _ in new:
                    job.params = params
                return self.add(new)
        self.exhausted = True
        say(f"the sampler finds no combination that is new: {len(by_point(jobs))} instead of {self.trials()}")
        return []

    def granted(self, job: Job) -> list[str]:
        return [*self._granted.get(job.number, []), *(f"trust={name}" for name in self.trust)]

    def to_prune(self, jobs: Sequence[Job]) -> list[tuple[Job, str]]:
        return [] if self._pruner is None else self._pruner.to_prune(jobs)

    # How much there is to do --------------------------------------------------------------------------------------

    def trials(self) -> int:
        return int(self.settings.sweep.trials or 0) if self.settings.sweep.sampler in SAMPLED else 0

    def to_draw(self) -> int:
        return 0 if self.exhausted else max(self.trials() - len(by_point(self.sweep.jobs)), 0)

    def left(self) -> int:
        """Jobs that are to run, those included that are still to be drawn."""
        return len(self.sweep.unfinished()) + self.to_draw() * self.repeats()

    def size(self) -> int:
        return len(self.sweep.jobs) + self.to_draw() * self.repeats()

    def repeats(self) -> int:
        if self.trials() == 0:
            return 1
        return len(self.planned_by().axes.repeats())

    # The plan -----------------------------------------------------------------------------------------------------

    def named_goal(self) -> Objective:
        if self.goal.metric is None:
            raise ConfigError("sweep.metric must be named here: this task's usual metric is not known")
        return self.goal

    def pruner(self) -> "Pruner | None":
        if self.settings.sweep.prune is None:
            return None
        from cnn_train.sweep.sampling import Pruner

        return Pruner(self.settings.sweep.prune, self.named_goal(), self.settings.trainer.max_epochs)

    def sampler(self) -> "Sampler":
        if self._sampler is None:
            from cnn_train.sweep.sampling import Sampler

            kind, seed = self.settings.sweep.sampler, self.settings.sweep.seed
            self._sampler = Sampler(kind, self.planned_by().axes, self.named_goal(), seed)
        return self._sampler

    def planned_by(self) -> Planner:
        """The planner of the sweep's line, made when it is first needed."""
        if self.planner is None:
            self.planner = Planner(self.sweep.words, self.config_dir)
        self.planner.remember(self.sweep.jobs)
        return self.planner

    def add(self, planned: Sequence[Planned]) -> list[Job]:
        """Write the plan down; the new jobs, whose folders `prepare` makes when they start or there is time."""
        new = [job for job, _ in planned]
        names = [job.folder.name for job in self.sweep.jobs]
        width = len(names[0]) if names else len(str(max(len(new), self.trials()) - 1))
        for job in new:
            job.folder = self.sweep.folder / f"{job.number:0{width}}"
        self.sweep.jobs += new
        self.sweep.save()
        self.git()
        self.to_prepare |= {job.number: (job, config) for job, config in planned}
        self.configs += [config for _, config in planned]
        if self.is_typed:
            self._granted |= {job.number: grants(config) for job, config in planned}
        return new

    def prepare(self, job: Job | None = None) -> bool:
        """Make the folder of a job, or of any that has none; whether there was one to make."""
        number = next(iter(self.to_prepare), -1) if job is None else job.number
        planned = self.to_prepare.pop(number, None)
        if planned is not None:
            prepare([planned], self.git())
        return planned is not None

    def git(self) -> tuple[str | None, str]:
        """The commit; the uncommitted changes are in the sweep's own folder, once."""
        if self._git is None:
            commit, diff = git_state()
            path = self.sweep.folder / "git.diff"
            if diff and not path.exists():
                atomic.write_text(path, secrets.mask(diff))
            self._git = commit, ""
        return self._git

    def grow(self, words: Sequence[str]) -> None:
        """Add values to the axes, and the combinations that they make."""
        if not self.sweep.words:
            raise ConfigError(f"{self.sweep.folder}: its command line is lost, so no values can be added to it")
        if self.trials():
            raise ConfigError(f"{' '.join(words)}: a sampler draws the combinations; sweep.trials=N draws more")
        planner = self.planned_by()
        planner.axes = combined(self.sweep.words, words, planner)
        words = [axis.as_word() for axis in planner.axes.axes.values()]
        self.sweep.words = [*without(self.sweep.words, *planner.axes.axes), *words]
        self.add(planner.all(self.settings.sweep.sampler))

    def check(self, job: Job) -> None:
        """Check the frozen config of a job that is to run; make it anew if a kill has left none.

        The folder may come from anywhere, so its configs may name only what a saved run's may, unless the line that
        was typed now makes the same. Raises ConfigError.
        """
        typed = self.planner
        try:
            self.configs.append(load(job.folder, trust=self.trust))
        except ConfigError:
            if (job.folder / "config.yaml").exists() and (typed is None or not typed.typed(job)):
                raise
            config = self.planned_by().job(job.changes, job.overrides)[1]
            if job.digest and digest(config) != job.digest:
                raise ConfigError(
                    f"{job.folder} has no readable config.yaml, and its overrides make another one now; restore the "
                    "file, or begin a new sweep"
                ) from None
            prepare([(job, config)], self.git())
            self.configs.append(config)
        if typed is not None and self.is_typed and typed.typed(job):
            self._granted[job.number] = grants(self.configs[-1])
