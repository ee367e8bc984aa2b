"""What no log may hold: passwords and tokens among parameters are shown as `***`, in the run, the fingerprint and messages.

A secret is a value of a parameter whose name says so (password, token, secret, api_key), the user part of a URL, or a text in a form
that only tokens have. What `mlflow run` was given with -P it has logged itself before a step starts: give secrets by the environment.
"""

import re
from collections.abc import Mapping

HIDDEN = "***"
NAMES = re.compile(
    r"(^|_)(password|passwd|secret|api_?key|access_?key|credentials?|auth_token|access_token|hf_token|token)$", re.IGNORECASE
)
USER = re.compile(r"(?<=://)[^/@\s]+(?=@)")
TOKENS = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,}"
    r"|A[KS]IA[A-Z0-9]{16}|dapi[a-f0-9]{32}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
)


def without_secrets(text: str) -> str:
    """The text with the user part of URLs and all tokens hidden."""
    return TOKENS.sub(HIDDEN, USER.sub(HIDDEN, text))


def public(parameters: Mapping[str, str]) -> dict[str, str]:
    """Parameters as they may be logged."""
    return {
        name: HIDDEN if NAMES.search(name) and value not in ("", "none") else without_secrets(value)
        for name, value in parameters.items()
    }
