"""The model registry by aliases and tags, never stages: who is champion, who was, and where a registered model's files are.

`champion` is the version that is served, `challenger` the newest one that did not take its place. The registered model's tag
`champions` lists every champion in turn, so that `rollback` knows whose place it was before.
"""

import time
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from steps.tracking import artifacts
from steps.tracking.store import connect

CHAMPION, CHALLENGER = "champion", "challenger"
CHAMPIONS_TAG = "champions"
MAX_CHAMPIONS = 200  # remembered; a tag is no book
SCHEME = "models:/"
MODEL_INSIDE = "artifacts/model"  # the recogniser's folder inside a registered model


def champion(name: str) -> ModelVersion | None:
    """The version that has the alias; None where no version has, or no such model is registered."""
    return _by_alias(name, CHAMPION)


def challenge(name: str, version: str) -> None:
    """Give a version the alias `challenger`."""
    connect().client.set_registered_model_alias(name, CHALLENGER, version)


def promote(name: str, version: str) -> None:
    """Make a version champion, remember it, and take the alias `challenger` from it."""
    client = connect().client
    before = champion(name)
    past = champions(name)
    if before is not None and (not past or past[-1] != str(before.version)):
        past.append(str(before.version))  # made champion by hand
    _remember(name, [*past, version])
    client.set_registered_model_alias(name, CHAMPION, version)
    holder = _by_alias(name, CHALLENGER)
    if holder is not None and str(holder.version) == version:
        client.delete_registered_model_alias(name, CHALLENGER)


def champions(name: str) -> list[str]:
    """Versions that were champion, the latest last."""
    held = connect().client.get_registered_model(name).tags.get(CHAMPIONS_TAG, "")
    return [version for version in held.split(",") if version]


def roll_back(name: str, reason: str) -> tuple[str, str]:
    """Give the alias `champion` back to the champion before: the versions it was taken from and given to.

    Raises:
        ValueError: there is no champion, or none before it that still exists.
    """
    client, now = connect().client, champion(name)
    if now is None:
        raise ValueError(f"{name} has no champion to roll back")
    past = champions(name)
    while past and (past[-1] == str(now.version) or not _exists(name, past[-1])):
        past.pop()
    if not past:
        raise ValueError(f"version {now.version} is the first champion of {name}: there is none to go back to")
    client.set_registered_model_alias(name, CHAMPION, past[-1])
    _remember(name, past)
    tag(name, str(now.version), {"rolled_back": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "rollback_reason": reason})
    return str(now.version), past[-1]


def tag(name: str, version: str, tags: dict[str, str]) -> None:
    """Set tags of a version."""
    for key, value in tags.items():
        connect().client.set_model_version_tag(name, version, key, value)


def recognizer_dir(reference: str) -> Path:
    """Folder of a recogniser: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, the id of a run with a `model`, or a folder.

    Raises:
        ValueError: a name, alias or version that the registry does not know.
        RuntimeError: a run that holds no model.
    """
    if reference.startswith(SCHEME):
        return _registered_dir(reference)
    if Path(reference).is_dir():
        return Path(reference)
    return artifacts.upstream(reference, artifacts.MODEL)


def _registered_dir(reference: str) -> Path:
    connect()
    try:
        repository = get_artifact_repository(reference)
        inner = getattr(repository, "repo", repository)
        if isinstance(inner, LocalArtifactRepository):
            return Path(inner.artifact_dir) / MODEL_INSIDE
        return artifacts.downloaded(inner.artifact_uri, MODEL_INSIDE)  # not by its name: an alias moves on
    except MlflowException as error:
        raise ValueError(
            f"model={reference}: not in the registry of {mlflow.get_tracking_uri()} ({error.message}){_instead(reference)}"
        ) from error


def _instead(reference: str) -> str:
    """Where a name has no champion, its challenger."""
    name, _, alias = reference.removeprefix(SCHEME).partition("@")
    if alias != CHAMPION or _by_alias(name, CHALLENGER) is None:
        return ""
    return f"; it has no champion yet, and {SCHEME}{name}@{CHALLENGER} is its newest version"


def model_run_of(reference: str) -> str | None:
    """The run that made the model of a registered version; None where nothing says so."""
    if not reference.startswith(SCHEME):
        return None
    name, _, alias = reference.removeprefix(SCHEME).partition("@")
    name, _, number = name.partition("/")
    found = _by_alias(name, alias) if alias else connect().client.get_model_version(name, number)
    return None if found is None else found.tags.get("model_run_id")


def _by_alias(name: str, alias: str) -> ModelVersion | None:
    try:
        return connect().client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _exists(name: str, version: str) -> bool:
    try:
        connect().client.get_model_version(name, version)
        return True
    except MlflowException:
        return False


def _remember(name: str, versions: list[str]) -> None:
    connect().client.set_registered_model_tag(name, CHAMPIONS_TAG, ",".join(versions[-MAX_CHAMPIONS:]))
