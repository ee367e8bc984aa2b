"""The files of deploy/ agree with each other and the project; `make check` asks the tools that they are for whether they take them."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from mlflow import projects
from mlflow.projects import load_project

from steps import main
from steps.options.command_line import parse
from steps.options.project_files import ENTRY_POINTS, IN_IMAGE, PREFIX, PYTHON
from steps.tracking.store import project_root

ROOT = project_root()
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
FOLDER = re.findall(r"^WORKDIR (.*)$", DOCKERFILE, re.MULTILINE)[0]
SBATCH, RAY_SBATCH = DEPLOY / "slurm.sbatch", DEPLOY / "slurm_ray.sbatch"


def document(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def test_the_compose_file_asks_for_passwords_and_builds_a_stage_that_is_there() -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    names = {name for name in re.findall(r"\$\{(\w+)", text)}
    assert {name for name in names if f"${{{name}:?" in text} == {name for name in names if "PASSWORD" in name}
    services = document("compose.yaml")["services"]
    build = services["mlflow"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    assert f"AS {build['target']}\n" in DOCKERFILE
    assert services["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"].split("@")[1] == "postgres/mlflow"


def test_the_image_holds_the_project_and_nothing_else_of_a_checkout() -> None:
    first, *rest = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    taken = [line[1:] for line in rest if line.startswith("!")]
    assert first == "*" and all(list(ROOT.glob(name)) for name in taken)
    assert {"analysis", "moe", "steps", "base", "presets"} <= set(taken)
    assert f"FROM python:{PYTHON}-" in DOCKERFILE and FOLDER == IN_IMAGE.partition("=")[2]


def test_mlflow_starts_every_step_in_the_image_without_a_shell() -> None:
    project = load_project(str(DEPLOY))
    assert project.docker_env["image"] == project.name
    assert project.docker_env["volumes"] == [f"{project.name}-work:{FOLDER}/mlruns"]
    for name in ENTRY_POINTS:
        point = project.get_entry_point(name)
        command = point.compute_command(dict.fromkeys(point.parameters, "abc"), None)
        assert command.startswith(f"env --chdir={FOLDER} python -m steps.{name}") and not set(command) & set("$|&;<>")


def test_mlflow_reads_the_kubernetes_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    read = projects._parse_kubernetes_config(json.loads((DEPLOY / "kubernetes_backend.json").read_text(encoding="utf-8")))
    job = read["kube-job-template"]
    pod, volume = job["spec"]["template"]["spec"], document("kubernetes_volume.yaml")
    (container,) = pod["containers"]
    assert job["metadata"]["namespace"] == volume["metadata"]["namespace"]
    assert volume["metadata"]["name"] in [each.get("persistentVolumeClaim", {}).get("claimName") for each in pod["volumes"]]
    assert container["volumeMounts"][0]["mountPath"] == f"{FOLDER}/mlruns"
    assert f"USER {pod['securityContext']['runAsUser']}\n" in DOCKERFILE and job["spec"]["backoffLimit"] == 0


@pytest.mark.parametrize("name", ["Dockerfile", "slurm.sbatch", "slurm_ray.sbatch"])
def test_threads_wait_everywhere_as_in_mlproject(name: str) -> None:
    said = dict(re.findall(r"(\w+)=\$\{\{\w+:-(\w+)\}\}", PREFIX))
    (line,) = re.findall(r"^(?:ENV|export) .*OMP_WAIT_POLICY=.*$", (DEPLOY / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(said) == 2 and dict(re.findall(r"(\w+)=(\w+)", line)).items() >= said.items()


@pytest.mark.parametrize(("status", "n_requeued"), [(0, 0), (1, 0), (143, 1)])
def test_a_slurm_job_queues_again_only_where_its_step_was_stopped(tmp_path: Path, status: int, n_requeued: int) -> None:
    done, calls = submit(tmp_path, status, "--options_file", "presets/a100-40gb.yaml")
    step = "srun --ntasks=1 --cpus-per-task=8 python -m steps.main --options_file presets/a100-40gb.yaml"
    assert done.returncode == status, done.stderr
    assert calls == [step] + ["scontrol requeue 12"] * n_requeued


@pytest.mark.parametrize(("status", "n_requeued"), [(0, 0), (1, 0), (143, 1)])
def test_a_slurm_job_on_several_nodes_starts_ray_on_each_and_the_chain_on_the_first(
    tmp_path: Path, status: int, n_requeued: int
) -> None:
    done, calls = submit(tmp_path, status, "--num_processes", "2", script=RAY_SBATCH)
    nodes, others = [call for call in calls if call.startswith("srun")], [call for call in calls if not call.startswith("srun")]
    assert done.returncode == status, done.stderr
    assert len(nodes) == 2 and all("ray start --block --num-cpus=8 --num-gpus=1" in call for call in nodes)
    assert len([call for call in nodes if call.endswith("--head --port=6379")]) == 1
    assert [call for call in others if "import ray" not in call] == [
        "python -m steps.main --cluster auto --num_processes 2", *["scontrol requeue 12"] * n_requeued,
    ]  # fmt: skip


def test_kuberay_starts_a_step_on_nodes_with_room_for_its_processes() -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    claim, job = yaml.safe_load_all((DEPLOY / "rayjob.yaml").read_text(encoding="utf-8"))
    spec = job["spec"]["rayClusterSpec"]
    (workers,) = spec["workerGroupSpecs"]
    validate(claim, "1.37", strict=True)
    for group in (spec["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}, "1.37", strict=True)
        assert claim["metadata"]["name"] in [each.get("persistentVolumeClaim", {}).get("claimName") for each in pod["volumes"]]
        assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == f"{FOLDER}/mlruns"
    chdir, *words = job["spec"]["entrypoint"].removeprefix("env ").split()
    options = parse(main.StepOptions, words[3:])
    assert chdir == f"--chdir={FOLDER}" and words[:3] == ["python", "-m", "steps.main"]
    resources = workers["template"]["spec"]["containers"][0]["resources"]
    assert workers["replicas"] == options.num_processes and spec["rayVersion"] in (ROOT / "requirements-cluster.txt").read_text()
    assert resources["requests"]["cpu"] == str(options.cpus_per_process)
    assert resources["limits"]["nvidia.com/gpu"] == str(options.gpus_per_process)


def test_a_slurm_job_without_a_server_is_refused(tmp_path: Path) -> None:
    done, calls = submit(tmp_path, 0, uri="")
    assert done.returncode != 0 and calls == [] and "MLFLOW_TRACKING_URI: the address of the tracking server" in done.stderr


def submit(
    folder: Path, status: int, *arguments: str, uri: str = "http://server.lab:5000", script: Path = SBATCH
) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Run a script as Slurm does, with an `srun` and a `python` that write down what they were to start and end so."""
    calls = folder / "calls"
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    for name, ends in (
        ("srun", status),
        ("scontrol", 0),
        ("python", f'$(case "$*" in *"import ray"*) echo 0 ;; *) echo {status} ;; esac)'),
    ):
        program = folder / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {calls}\nexit {ends}\n')
        program.chmod(0o755)
    slurm = {
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_JOB_ID": "12",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }
    environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "MLFLOW_TRACKING_URI": uri} | slurm
    done = subprocess.run(["bash", str(script), *arguments], env=environment, capture_output=True, text=True)
    return done, calls.read_text().splitlines() if calls.exists() else []
