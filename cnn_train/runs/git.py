"""The state of the working directory's git repository."""

import subprocess


def git_state() -> tuple[str | None, str]:
    """Commit and uncommitted changes of the working directory's repository; (None, "") where there is none."""

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, errors="replace")
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout if result.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return (commit.strip(), git("diff", "HEAD") or "") if commit else (None, "")
