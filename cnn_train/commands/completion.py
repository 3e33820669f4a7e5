"""TAB completion for bash, zsh and fish: commands, flags, groups, choices, settings. Reads YAML only, no Hydra."""

import os
import shlex
from collections.abc import Iterable

from cnn_train.config.choices import GROUPS, Choices, flat_keys, read_yaml
from cnn_train.errors import ConfigError, UserError

# Candidates are whole words. bash splits words at "=", so what stands before it is cut off there.
BASH = """\
_cnn_train() {
    local word="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n'
    word="${word##* }"
    COMPREPLY=($(COMP_LINE="${COMP_LINE:0:COMP_POINT}" cnn-train -sc query=bash 2>/dev/null))
    if [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*=}"}"}")
    fi
}
complete -o nospace -o default -F _cnn_train cnn-train
"""


ZSH = """\
_cnn_train() {
    local -a found
    found=("${(@f)$(COMP_LINE="${LBUFFER}" cnn-train -sc query=zsh 2>/dev/null)}")
    compadd -Q -S '' -- $found
}
compdef _cnn_train cnn-train
"""


FISH = """\
function __cnn_train
    set -lx COMP_LINE (commandline -cp)
    cnn-train -sc query=fish 2>/dev/null
end
complete -c cnn-train -f -a '(__cnn_train)'
"""


SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


REMOVAL = {
    "bash": "complete -r cnn-train; unset -f _cnn_train\n",
    "zsh": "compdef -d cnn-train; unfunction _cnn_train\n",
    "fish": "complete -e -c cnn-train; functions -e __cnn_train\n",
}


def run(request: str, verbs: Iterable[str], flags: Iterable[str]) -> int:
    """Answer `install=SHELL`, `uninstall=SHELL` or, with the line in COMP_LINE, `query=SHELL`."""
    action, _, shell = request.partition("=")
    if action not in ("install", "uninstall", "query") or shell not in SCRIPTS:
        error = ConfigError(
            f"--shell-completion takes install=, uninstall= or query= with bash, zsh or fish, got {request!r}"
        )
        error.add_note('try: eval "$(cnn-train -sc install=bash)"')
        raise error
    if action == "install":
        print(SCRIPTS[shell], end="")
    elif action == "uninstall":
        print(REMOVAL[shell], end="")
    else:
        for candidate in candidates(os.environ.get("COMP_LINE", ""), verbs, flags):
            print(candidate)
    return 0


def candidates(line: str, verbs: Iterable[str], flags: Iterable[str]) -> list[str]:
    """Whole words that the last word of a command line may become."""
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote
        words = line.split()
    word = words.pop() if words and not line.endswith((" ", "\t")) else ""
    before = words[1:]
    config_dir = next((words[i + 1] for i, w in enumerate(words[:-1]) if w in ("--config-dir", "-cd")), None)
    try:
        choices = Choices.find(config_dir)
        found = _complete(word, before, choices, list(verbs), list(flags))
    except UserError:  # a folder or file that cannot be read is no time for a message
        return []
    return sorted({candidate for candidate in found if candidate.startswith(word)})


def _complete(word: str, before: list[str], choices: Choices, verbs: list[str], flags: list[str]) -> list[str]:
    if word.startswith("-"):
        return [flag for flag in flags if flag.startswith("--")] if word.startswith("--") else flags
    if "=" in word:
        key, _, value = word.partition("=")
        group = key.lstrip("+~")
        if group not in GROUPS:
            return []
        head = value.rpartition(",")[0]
        start = f"{key}={head}," if head else f"{key}="
        return [start + option for option in choices.options(group)]
    bare = [other for other in before if "=" not in other and not other.startswith(("-", "+", "~"))]
    if bare[:1] == ["list"]:
        return list(choices.groups())
    settings = _settings(word, before, choices)
    prefix = word[: len(word) - len(word.lstrip("+~"))]
    found = [f"{prefix}{group}=" for group in choices.groups()] + [prefix + key for key in settings]
    return found if bare or prefix else verbs + found


def _settings(word: str, before: list[str], choices: Choices) -> list[str]:
    """Keys at the top; and, once a group and a dot are typed, those of its choice."""
    group = word.lstrip("+~").partition(".")[0]
    if "." in word and group in GROUPS:
        chosen = dict(other.lstrip("+").split("=", 1) for other in before if "=" in other)
        option = choices.resolve({key: value for key, value in chosen.items() if key in GROUPS})[group]
        return [f"{key}=" for key in choices.keys(group, option)]
    top = {key: value for key, value in read_yaml(choices.dirs[0] / "train.yaml").items() if key != "defaults"}
    return [f"{key}=" for key in flat_keys(top, "")]
