"""The corpus's own split names as ours, and the domain that some folder names carry after the split (`val_small_normal`)."""

import re

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "dev": "dev", "devel": "dev", "development": "dev", "val": "dev", "valid": "dev", "validation": "dev", "eval": "dev",
    "test": "test", "testing": "test",
}  # fmt: skip
SIZES = ("tiny", "small", "medium", "large", "full")  # part of a split's name that is no domain


def split_name(own: str) -> str:
    """`train`, `dev` or `test` for a corpus's own name of a split; empty for an empty name.

    Raises:
        ValueError: a name that means none of them.
    """
    split = split_and_domain(own.strip())[0]
    if own.strip() and not split:
        raise ValueError(f"split {own!r} means none of train, dev and test (known: {', '.join(SPLIT_NAMES)})")
    return split


def split_and_domain(folder: str) -> tuple[str, str]:
    """Split and domain of a folder name: `val_small_normal` is (`dev`, `normal`), `audio` is (``, ``)."""
    first, *rest = re.split(r"[-_.]", folder.lower())
    split = SPLIT_NAMES.get(first, "")
    return (split, "_".join(part for part in rest if part not in SIZES)) if split else ("", "")


def split_of_folder(path: str) -> str:
    """The split that the innermost telling folder of a path names; empty where none does."""
    return next((split for part in reversed(path.split("/")) if (split := split_and_domain(part)[0])), "")


def split_of_name(path: str) -> str:
    """The split that any word of a path names, innermost part first: `SAP-2025_Train_03.tar` is `train`; else empty."""
    words = [re.split(r"[^a-z]+", part) for part in reversed(path.lower().split("/"))]
    return next((SPLIT_NAMES[word] for part in words for word in part if word in SPLIT_NAMES), "")
