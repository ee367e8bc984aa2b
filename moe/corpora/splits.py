"""The corpus's own split names as ours, and the domain that some folder names carry after the split (`val_small_normal`)."""

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
    key = own.strip().lower()
    if key and key not in SPLIT_NAMES:
        raise ValueError(f"split {own!r} means none of train, dev and test (known: {', '.join(SPLIT_NAMES)})")
    return SPLIT_NAMES.get(key, "")


def split_and_domain(folder: str) -> tuple[str, str]:
    """Split and domain of a folder name: `val_small_normal` is (`dev`, `normal`), `audio` is (``, ``)."""
    first, *rest = folder.lower().replace("-", "_").split("_")
    split = SPLIT_NAMES.get(first, "")
    return (split, "_".join(part for part in rest if part not in SIZES)) if split else ("", "")


def split_of_folder(path: str) -> str:
    """The split that the innermost telling folder of a path names; empty where none does."""
    return next((split for part in reversed(path.split("/")) if (split := split_and_domain(part)[0])), "")
