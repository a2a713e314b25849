"""The back end of a Ray cluster: Ray tasks prepare the rows, Ray Train places and restarts the workers.

Each rank has a Ray actor, which starts the same worker process as the other back ends (`rank.py`). A worker that
crashes therefore does not affect Ray, and a run on Ray is bit-identical to a run without it.
"""

import logging
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.configs.plan import Plan
from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.readers.shard import Shard
from tunesmith.errors import InputError
from tunesmith.launcher.exit_status import Ending
from tunesmith.launcher.hardware import Hardware, count_cores, detect_hardware
from tunesmith.launcher.planning.world import max_restarts
from tunesmith.launcher.ray.faults import START_TRIES, no_room, not_inspected, not_started
from tunesmith.launcher.ray.job import passed_on
from tunesmith.launcher.ray.rank import detect_node_hardware, inspect_run_directory, run_rank
from tunesmith.launcher.ray.shards import is_prepared, prepare_on, prepared
from tunesmith.launcher.ray.train_run import follow
from tunesmith.launcher.ray.versions import versions
from tunesmith.rundir.atomic import write_text
from tunesmith.rundir.paths import RunDir

ROOM_S = 60.0
"""How long to wait for nodes that the cluster may still be starting."""
ANSWER_S = 10.0
GROW_S = 60.0
"""How often an elastic run below its maximum size checks for free resources."""
# By default Ray Train polls its workers every 2 s and waits 60 s for the resources of lost nodes.
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # A busy machine needs longer than 20 to 30 s to start Ray's own processes.
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class RayBackend:
    """address: host:port, `auto`, or the http address for jobs if this process is such a job; empty: a separate local
    cluster for this run, started when needed and shut down by `close`."""

    several_nodes = True
    restarts = True

    def __init__(self, address: str):
        self.address = address
        self._ray: Any = None
        self._machine: Hardware | None = None
        self._token: Path | None = None
        self._environment: dict[str, str | None] = {}

    def hardware(self, *, measure: bool = False) -> Hardware:
        """Hardware of the node with the most GPUs (then CPUs), with the number of cores that Ray may use. measure: see
        `detect_hardware`."""
        if not self.address:
            return detect_hardware(measure=measure)
        if self._machine is None or measure:
            self._machine = self._largest_node(measure)
        return self._machine

    def num_nodes(self) -> int:
        return 1 if not self.address else sum(node["Alive"] for node in self._connected().nodes())

    def prepare_shards(
        self, shards: Sequence[Shard], encoder: RowEncoder, cache: Path, workers: int, done: Callable[[Shard], None]
    ) -> list[Path]:
        """Prepare the shards that are not in the cache by tasks on the cluster."""
        missing = [shard for shard in shards if not is_prepared(shard, encoder, cache)]
        if missing:
            prepare_on(self._connected(), missing, encoder, cache.resolve())
        return prepared(shards, encoder, cache, done)

    def run(
        self,
        run: RunDir,
        plan: Plan,
        attempt: int,
        lock_fd: int,
        watch: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> Ending:
        self._connected()
        self._require_room(plan)
        self._require_shared(run)
        return follow(self._trainer(run, plan, attempt), run, attempt, watch, on_stop)

    def close(self) -> None:
        """Disconnect from the cluster; shut down a cluster started for this run."""
        if self._ray is not None:
            self._ray.shutdown()
            self._ray = None
        for name, before in self._environment.items():
            if before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before
        if self._token is not None:
            shutil.rmtree(self._token.parent, ignore_errors=True)

    def _largest_node(self, measure: bool) -> Hardware:
        ray = self._connected()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        best = max(nodes, key=lambda node: (node["Resources"].get("GPU", 0), node["Resources"].get("CPU", 0)))
        hardware = ray.get(self._on_node(ray.remote(num_cpus=0)(detect_node_hardware), best).remote(measure))
        cores = max(1, int(best["Resources"].get("CPU", 1)))
        return replace(hardware, cores=cores, cores_source="cores that Ray may use")

    def _connected(self) -> Any:
        """The initialized Ray module. Raises InputError if Ray is not installed or the cluster does not respond."""
        if self._ray is not None:
            return self._ray
        settings = {name: value for name, value in SETTINGS.items() if name not in os.environ}
        if not self.address:
            settings |= self._own_token()
        self._environment = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            import ray
        except ImportError:
            raise InputError(
                "--on ray needs a package that is not installed", remedy="pip install 'tunesmith[ray]'"
            ) from None
        self._require_answer()
        self._start(ray)
        self._ray = ray
        return ray

    def _start(self, ray: Any) -> None:
        """Connect to the cluster, or start one. On a busy machine Ray may give up on its own processes: once more."""
        own = {} if self.address else {"num_cpus": count_cores()[0], "include_dashboard": False}
        for tries_left in reversed(range(1 if self.address else START_TRIES)):
            try:
                ray.init(
                    address="auto" if self.address.startswith("http") else self.address or "local",
                    runtime_env={"env_vars": passed_on()},
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=True,
                    **own,
                )
                return
            except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError and others
                ray.shutdown()
                if not tries_left:
                    raise (self._no_answer(error) if self.address else not_started(error)) from error

    def _require_answer(self) -> None:
        """Raise InputError if nothing listens at host:port. Ray itself would retry for more than a minute."""
        host, _, port = self.address.rpartition(":")
        if host and port.isdigit() and not self.address.startswith("http"):
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
            except OSError as error:
                raise self._no_answer(error) from error

    def _no_answer(self, error: Exception) -> InputError:
        return InputError(
            f"the Ray cluster does not respond: {(str(error).strip() or type(error).__name__).splitlines()[0]}",
            where=f"--address {self.address}",
            remedy="check that it is running (`ray status`) and that RAY_AUTH_TOKEN_PATH points to its token; "
            "without --address a cluster is started here",
        )

    def _own_token(self) -> dict[str, str]:
        """Create a token for a cluster of this run only: every call must carry it; the file has mode 0600."""
        self._token = Path(tempfile.mkdtemp(prefix="tunesmith-ray-")) / "token"
        fd = os.open(self._token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(uuid.uuid4().hex + uuid.uuid4().hex)
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token)}

    def _resources(self, plan: Plan) -> dict[str, float]:
        """Resources of one worker. Without GPUs, several workers may share a core."""
        if plan.compute.device == "cuda":
            return {"GPU": 1, "CPU": 1}
        cores = self.hardware().cores
        per_node = -(-plan.compute.world_size // plan.compute.nodes)
        return {"CPU": cores // per_node if cores >= per_node else int(100 * cores / per_node) / 100}

    def _trainer(self, run: RunDir, plan: Plan, attempt: int) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.config import LoggingConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        compute = plan.compute
        elastic = compute.min_world_size < compute.world_size
        return DataParallelTrainer(
            run_rank,
            train_loop_config={"run_dir": str(run.root.resolve()), "attempt": attempt},
            scaling_config=ScalingConfig(
                num_workers=(compute.min_world_size, compute.world_size) if elastic else compute.world_size,
                use_gpu=compute.device == "cuda",
                resources_per_worker=self._resources(plan),
                elastic_resize_monitor_interval_s=GROW_S,
            ),
            run_config=RunConfig(
                name=f"attempt-{attempt:03d}",
                storage_path=str((run.logs / "ray").resolve()),
                failure_config=FailureConfig(max_failures=max_restarts(plan.recipe, compute.world_size)),
                logging_config=LoggingConfig("ERROR"),
            ),
        )

    def _require_room(self, plan: Plan) -> None:
        """Wait for the resources of the minimum number of workers. Raises RunFault with the available resources."""
        ray, each, needed = self._connected(), self._resources(plan), plan.compute.min_world_size
        deadline = time.monotonic() + ROOM_S
        while True:
            machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            room = sum(
                min(int(machine.get(kind, 0) / amount + 1e-9) for kind, amount in each.items()) for machine in machines
            )
            if room >= needed:
                return
            if time.monotonic() > deadline:
                break
            time.sleep(1)
        raise no_room(plan, room, machines, each, ROOM_S)

    def _require_shared(self, run: RunDir) -> None:
        """Raise InputError if a node cannot access the run directory or has other versions, naming the node."""
        ray, nonce = self._connected(), uuid.uuid4().hex
        path = run.root.resolve() / f".shared-{nonce}"
        write_text(path, nonce)
        task = ray.remote(num_cpus=0)(inspect_run_directory)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        try:
            results = ray.get([self._on_node(task, node).remote(str(path)) for node in nodes], timeout=ROOM_S)
        except Exception as error:
            raise not_inspected(error, ROOM_S, ", ".join(node["NodeManagerHostname"] for node in nodes)) from error
        finally:
            path.unlink(missing_ok=True)
        here = versions()
        for host, content, there in results:
            if content != nonce:
                raise InputError(
                    f"machine {host} cannot access the run directory",
                    where=str(run.root.resolve()),
                    remedy="choose a --run-dir on storage that every machine mounts at the same path",
                )
            if different := [
                f"{name} {there.get(name)}, here {here[name]}" for name in here if there.get(name) != here[name]
            ]:
                raise InputError(
                    f"machine {host} has other versions: {'; '.join(different)}",
                    where=f"{host} and {socket.gethostname()}",
                    remedy="install the same versions on every machine",
                )

    def _on_node(self, remote: Any, node: dict[str, Any]) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
