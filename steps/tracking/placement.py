"""The processes of a step on the nodes of a Ray cluster: room for all of them at once, one actor each, which starts the process and ends it.

Ray is an extra, in requirements-cluster.txt. The processes are those that torchrun would start: the same command, which finds the others
by the same variables. What they share beside messages are folders: the project, the folder the step was started in, and that of unfinished work.
"""

import contextlib
import importlib.util
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from moe.training.processes import AUTO, LOCAL, ProcessOptions
from steps.tracking import node_process
from steps.tracking.ends import End
from steps.tracking.local_ray import local_ray
from steps.tracking.node_process import NodeProcess, machine
from steps.tracking.secrets import without_secrets
from steps.tracking.store import project_root, tracking_address

REQUIREMENTS = "requirements-cluster.txt"
ANSWERS_S = 10.0
NODE_S = 600.0  # for a node in place of one that was lost
SAYS_S = 3
N_CALLS = 4  # of an actor at once: it is asked to stop while it follows
PASSED_ON = (
    "MLFLOW_", "MOE_", "OMP_", "GOMP_", "KMP_", "MKL_", "TORCH_", "NCCL_", "GLOO_", "HF_", "TOKENIZERS_", "AWS_", "GOOGLE_", "FSSPEC_", "PYTHONPATH",
)  # fmt: skip
NODE = "its node, or Ray's worker on it"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@contextlib.contextmanager
def connected(options: ProcessOptions) -> Iterator[None]:
    """Connect this process to the cluster, in which there is room for the processes, for as long as the block.

    Raises:
        ValueError: Ray is not installed, no cluster answers there, or it has fewer CPUs or GPUs than are asked for.
    """
    _refuse_without_ray(options)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # this project is offline by default
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with contextlib.ExitStack() as stack:
        try:
            _connect(stack.enter_context(_started(options)) if options.cluster == LOCAL else _answering(options.cluster))
        except (ConnectionError, RuntimeError, SystemExit) as error:
            said = "Ray did not let it in" if isinstance(error, SystemExit) else " ".join(str(error).split())
            raise ValueError(f"cluster={options.cluster}: {said}") from error
        import ray

        stack.callback(ray.shutdown)
        if found := _lacking(options):
            raise ValueError("; ".join(found))
        yield


def faults(options: ProcessOptions) -> list[str]:
    """Why the processes cannot be placed, before any work; nothing is started."""
    if not options.is_placed:
        return []
    try:
        _refuse_without_ray(options)
        if options.cluster == LOCAL:
            return _too_many(options, [_this_machine()])
        with connected(options):
            return []
    except ValueError as error:
        return [str(error)]


def run_together(step: str, words: Sequence[str], options: ProcessOptions, work_folder: Path, shutdown_s: float) -> list[End]:
    """Start Python with `words` in several processes of the cluster and wait for all of them; returns the ends of those that failed.

    Raises:
        RuntimeError: there is no room, or a node does not see this machine's folders.
    """
    import ray

    with _reserved(step, options) as actors:
        try:
            places = ray.get([actor.place.remote() for actor in actors])
            _refuse_unshared(actors, places, options.cluster, work_folder)
            given = _environment(options, *places[0])
            ray.get([
                actor.start.remote(words, given | {"RANK": str(number)}, os.getcwd()) for number, actor in enumerate(actors)
            ])  # fmt: skip
        except ray.exceptions.RayActorError:
            return [End(0, -signal.SIGKILL, time.monotonic(), went_with=NODE)]
        return _Followed(actors, shutdown_s).ends()


class _Followed:
    """Actors whose processes run: what they print is printed here, and the first that fails ends all others."""

    def __init__(self, actors: Sequence[Any], shutdown_s: float) -> None:
        self._actors, self._shutdown_s = actors, shutdown_s
        self._asked = {actor.follow.remote(): number for number, actor in enumerate(actors)}
        self._ended: list[End] = []
        self._stopped = False

    def ends(self) -> list[End]:
        """Those that failed, once all have ended."""
        try:
            while self._asked:
                self._hear()
                if any(end.exit_code for end in self._ended):
                    self._stop()
        except BaseException:
            self._stop()
            until = time.monotonic() + self._shutdown_s + ANSWERS_S
            while self._asked and time.monotonic() < until:
                self._hear()
            raise
        return [end for end in self._ended if end.exit_code]

    def _hear(self) -> None:
        import ray

        for answer in ray.wait(list(self._asked), timeout=1.0)[0]:
            number = self._asked.pop(answer)
            try:
                said, end = ray.get(answer)
            except ray.exceptions.RayActorError:
                self._ended.append(End(number, -signal.SIGKILL, time.monotonic(), went_with=NODE))
                continue
            sys.stdout.write(said)
            sys.stdout.flush()
            if end is None:
                self._asked[self._actors[number].follow.remote()] = number
            else:
                self._ended.append(End(number, end[0], time.monotonic(), end[1]))

    def _stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            for number in self._asked.values():
                self._actors[number].stop.remote(self._shutdown_s)


def _environment(options: ProcessOptions, address: str, port: int, _: str) -> dict[str, str]:
    """What each process is given beside its number: how it finds the others, and what this process was told from outside."""
    group = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "WORLD_SIZE": str(options.num_processes), "LOCAL_RANK": "0"}
    unseen = {} if options.gpus_per_process else {"CUDA_VISIBLE_DEVICES": ""}
    return {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)} | group | unseen


def _connect(address: str) -> None:
    """Connect to Ray, and leave this process's own answer to SIGTERM as it was: Ray puts one of its own there."""
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _started(options: ProcessOptions) -> contextlib.AbstractContextManager[str]:
    own = _this_machine()
    if found := _too_many(options, [own]):
        raise ValueError("; ".join(found))
    return local_ray(int(own["CPU"]), int(own["GPU"]))


def _refuse_without_ray(options: ProcessOptions) -> None:
    if not importlib.util.find_spec("ray"):
        raise ValueError(f"cluster={options.cluster} needs ray: pip install -r {REQUIREMENTS}")


def _answering(cluster: str) -> str:
    """What Ray is given as an address, where something answers: Ray itself tries for minutes, and then ends the process."""
    given = os.environ.get("RAY_ADDRESS") or cluster if cluster == AUTO else cluster
    address = given if given != AUTO else _found_here()
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=ANSWERS_S):
            pass
    except (OSError, ValueError) as error:
        raise ConnectionError(f"nothing answers at {address} ({error})") from error
    if not _speaks(parts.netloc):
        raise ConnectionError(f"what answers at {address} is no Ray")
    return given  # what Ray finds by itself it also asks for its token


def _found_here() -> str:
    from ray._private import services

    try:
        return services.canonicalize_bootstrap_address(AUTO) or ""
    except ConnectionError as error:
        raise ConnectionError("no Ray runs on this machine: start it (ray start), or set RAY_ADDRESS") from error


def _speaks(target: str) -> bool:
    """Whether gRPC, Ray's protocol, is understood at an address; not asked where the cluster encrypts."""
    import grpc

    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return True
    with grpc.insecure_channel(target) as channel:
        try:
            grpc.channel_ready_future(channel).result(ANSWERS_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def _this_machine() -> dict[str, float]:
    import joblib
    import torch

    return {"CPU": joblib.cpu_count(), "GPU": torch.cuda.device_count()}


def _lacking(options: ProcessOptions) -> list[str]:
    """What the cluster's live nodes have too little of, used by others or not."""
    import ray

    return _too_many(options, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def _too_many(options: ProcessOptions, nodes: Sequence[Mapping[str, float]]) -> list[str]:
    """More processes than nodes with these resources have room for."""
    if options.gpus_per_process and not any(node.get("GPU") for node in nodes):
        return [f"gpus_per_process={options.gpus_per_process}: cluster={options.cluster} has no GPU"]
    asked = {"CPU": options.cpus_per_process, "GPU": options.gpus_per_process}
    room = sum(min(int(node.get(name, 0) // n) for name, n in asked.items() if n) for node in nodes)
    if options.num_processes <= room:
        return []
    each = " and ".join(f"{n} {name}{'s' * (n > 1)}" for name, n in asked.items() if n)
    return [f"num_processes={options.num_processes}: cluster={options.cluster} has room for {room} of {each}"]


@contextlib.contextmanager
def _reserved(step: str, options: ProcessOptions) -> Iterator[list[Any]]:
    """An actor for each process, all placed at once; nothing of them is left after the block."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.cloudpickle.register_pickle_by_value(node_process)
    bundle = {"CPU": options.cpus_per_process} | ({"GPU": options.gpus_per_process} if options.gpus_per_process else {})
    group = placement_group([bundle] * options.num_processes, strategy="PACK")
    needs = {"num_cpus": options.cpus_per_process, "num_gpus": options.gpus_per_process, "max_concurrency": N_CALLS}
    kind, actors = ray.remote(NodeProcess), list[Any]()
    try:
        _wait_for_room(step, group, options)
        for number in range(options.num_processes):
            where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
            actors.append(kind.options(scheduling_strategy=where, **needs).remote())
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)
        remove_placement_group(group)


def _wait_for_room(step: str, group: Any, options: ProcessOptions) -> None:
    """Wait while others use the nodes; for a node in place of one that was lost no longer than `NODE_S`."""
    if group.wait(SAYS_S):
        return
    print(f"{step}: waiting for room in cluster={options.cluster}", flush=True)
    until = time.monotonic() + NODE_S
    while not group.wait(SAYS_S):  # a signal is heard between two waits
        lacking = _lacking(options)
        if not lacking:
            until = time.monotonic() + NODE_S
        elif time.monotonic() > until:
            raise RuntimeError(f"{'; '.join(lacking)}, and for {NODE_S / 60:.0f} min no other node came")


def _shared_paths(work_folder: Path) -> list[Path]:
    """What every node has to see as this machine does; of the work folder a file that was not there before."""
    mark = work_folder / f"shared_{secrets.token_hex(8)}"
    mark.touch()
    return [mark, project_root() / "steps", Path.cwd()]


def _refuse_unshared(actors: Sequence[Any], places: Sequence[tuple[str, int, str]], cluster: str, work_folder: Path) -> None:
    """Refuse nodes that do not see this machine's folders, or cannot reach its store."""
    import ray

    mark, *folders = _shared_paths(work_folder)
    try:
        missing = ray.get([actor.missing.remote([str(path) for path in (mark, *folders)]) for actor in actors])
    finally:
        mark.unlink()
    for (node, _, _), found in zip(places, missing, strict=True):
        if found:
            names = ", ".join(str(work_folder) if path == str(mark) else path for path in found)
            raise RuntimeError(
                f"cluster={cluster}: node {node} does not see this machine's {names}; all nodes need it, at the same path"
            )
    others, store = [node for node, _, its_machine in places if its_machine != machine()], tracking_address()
    if others and (store.sqlite_path is not None or urlsplit(store.uri).hostname in LOOPBACK):
        raise RuntimeError(
            f"cluster={cluster}: node {others[0]} cannot use the store {without_secrets(store.uri)}: set MLFLOW_TRACKING_URI to a server it reaches"
        )
