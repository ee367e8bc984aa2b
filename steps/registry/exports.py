"""A trained model outside its run: in a folder, or in a repository of a Hugging Face hub; only where a user names one."""

import os
import shutil
from pathlib import Path

from moe.files import write_whole_dir
from steps.options.step_options import HUB_TOKEN, ExportOptions
from steps.tracking.step_run import StepRun

HUB_TAG = "moe.hub"


def export(step: StepRun, folder: Path, options: ExportOptions) -> None:
    """Copy a model's folder to where the options say; the address of an upload is a tag of the run."""
    copy_out(folder, options.export_dir)
    if options.push_to_hub and options.hub_model_id:
        step.set_tags({HUB_TAG: push(folder, options.hub_model_id, options.hub_private, step.run_id)})


def copy_out(folder: Path, export_dir: str | None) -> None:
    """Copy a folder to another, whole or not at all; None copies nothing."""
    if export_dir:
        with write_whole_dir(Path(export_dir)) as aside:
            shutil.copytree(folder, aside, dirs_exist_ok=True)


def push(folder: Path, repository: str, private: bool, run_id: str) -> str:
    """Upload a folder; the repository is made where there is none. Returns the address of the commit."""
    from huggingface_hub import HfApi

    hub = HfApi(token=os.environ[HUB_TOKEN])
    hub.create_repo(repository, private=private, exist_ok=True)
    done = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Run {run_id}")
    return str(done.commit_url)
