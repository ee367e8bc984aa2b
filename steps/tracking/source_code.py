"""What was changed since the commit that a run is tagged with: the commit alone does not say what ran."""

import functools
import subprocess
from pathlib import Path

from steps.tracking.secrets import without_secrets

DIFF, DIRTY_TAG = "code.diff", "moe.dirty"
MOST_CHARS = 1_000_000


@functools.cache
def uncommitted(root: Path) -> str:
    """The changes of a checkout against its commit, new files among them, secrets hidden; empty where there are none, or no git.

    Read once in a process: later edits are not what it runs.
    """
    changed = _git(root, "diff", "HEAD")
    new = _git(root, "ls-files", "--others", "--exclude-standard", "--", "*.py").splitlines()
    added = [_git(root, "diff", "--no-index", "--", "/dev/null", name) for name in new]
    return without_secrets("".join([changed, *added]))[:MOST_CHARS]


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=60, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode in (0, 1) else ""
