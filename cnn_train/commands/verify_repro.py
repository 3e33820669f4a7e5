"""`cnn-train verify-repro DIR`: is this run's training the same bits each time, and after a checkpoint?"""

from cnn_train.cli.line import Line
from cnn_train.errors import ConfigError
from cnn_train.experiment.replay import differences


def run(line: Line) -> int:
    """The command: exit code 0 if all replays agree, 1 if not."""
    options = dict(word.split("=", 1) for word in line.overrides if word.startswith(("run=", "steps=")))
    folder = options.get("run") or (line.words[0] if line.words else None)
    if folder is None:
        error = ConfigError("verify-repro needs a run folder")
        error.add_note("try: cnn-train verify-repro outputs/MODEL/DATE_TIME_N")
        raise error
    steps = options.get("steps", "10")
    if not steps.isdigit() or int(steps) < 2:
        raise ConfigError(f"steps must be a whole number >= 2, got {steps!r}")
    from cnn_train.config.load import load

    cfg = load(folder, [word for word in line.overrides if not word.startswith(("run=", "steps="))])
    found = differences(cfg, int(steps))
    for text in found:
        print(text)
    if not found:
        print(f"the same bits: {steps} steps twice, and from a checkpoint after {int(steps) // 2} of them")
    elif cfg.repro != "strict":
        print("repro=strict uses deterministic algorithms only")
    return 1 if found else 0
