"""Real Ray clusters for tests: a head and nodes on loopback addresses, ended by their own process ids."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.runs import descendants, kill_all
from tune_ssl.base.network import probe

RAY = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
READY_SECONDS = 90


class LocalCluster:
    """`address` is that of the head, on 127.0.0.2; each further node has the next loopback address.

    `environment` is what a process needs to talk to it: the cluster asks for a token. With `jobs` it has
    a job server at `job_server`.
    """

    def __init__(self, folder: Path, cpus: int = 1, jobs: bool = False) -> None:
        self.folder, self.cpus = folder, cpus
        self.temporary = tempfile.TemporaryDirectory(prefix="ry", ignore_cleanup_errors=True)
        token = folder / "token"
        token.write_text("0123456789abcdef" * 2)
        token.chmod(0o600)
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_worker_niceness": "0",
        }
        self.environment.pop("RAY_ADDRESS", None)
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.port, *self.dashboard = free_ports(3 if jobs else 1)
        self.address = f"127.0.0.2:{self.port}"
        self.start_head()

    def start_head(self) -> None:
        """The head, also again after it was killed, at the same address."""
        at = [f"--port={self.port}", f"--num-cpus={self.cpus}", f"--temp-dir={self.temporary.name}"]
        served = f"--include-dashboard={str(bool(self.dashboard)).lower()}"
        if self.dashboard:
            port, agent = self.dashboard
            self.job_server = f"http://127.0.0.2:{port}"
            at += ["--dashboard-host=127.0.0.2", f"--dashboard-port={port}"]
            at += [f"--dashboard-agent-listen-port={agent}"]
        head = self._start(2, ["--head", served, *at])
        self.nodes[:1] = [head]
        self._wait(head, 0)

    def add_node(self, *prefix: str, cpus: int | None = None) -> int:
        """One more node; returns its index. `prefix` is a command that runs the one after it."""
        index = len(self.nodes)
        has = self.cpus if cpus is None else cpus
        joined = [f"--address={self.address}", f"--num-cpus={has}"]
        self.nodes.append(self._start(2 + index, joined, prefix))
        self._wait(self.nodes[index], index)
        return index

    def kill_node(self, index: int) -> None:
        """kill -9 of everything on a node, at one moment."""
        node = self.nodes[index]
        kill_all([node.pid, *descendants(node.pid)])
        node.wait()

    def close(self) -> None:
        for index, node in enumerate(self.nodes):
            if node.poll() is None:
                self.kill_node(index)
        self.temporary.cleanup()

    def _start(
        self, host: int, arguments: list[str], prefix: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        given = [f"--node-ip-address=127.0.0.{host}", *arguments]
        with (self.folder / f"node{host}.log").open("ab") as log:
            return subprocess.Popen(
                [*prefix, *RAY, *given], env=self.environment, stdout=log, stderr=log
            )

    def wait_until_gone(self, index: int) -> None:
        """Until the head has noticed that a node was killed."""
        end = time.monotonic() + READY_SECONDS
        while self._host(index) in self._alive():
            assert time.monotonic() < end, "the head has not noticed that a node is gone"
            time.sleep(0.3)

    def _host(self, index: int) -> str:
        return f"127.0.0.{2 + index}"

    def _alive(self) -> set[str]:
        """The addresses of the nodes that the head takes for alive; none while it does not answer."""
        if probe(self.address, 1) is not None:
            return set()
        connect = f"ray.init('{self.address}', log_to_driver=False, logging_level=50)"
        names = "[n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']]"
        done = subprocess.run(
            [sys.executable, "-c", f"import ray; {connect}; print(*{names})"],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        return set(done.stdout.split())

    def _wait(self, process: subprocess.Popen[bytes], index: int) -> None:
        """Until a node has joined."""
        end = time.monotonic() + READY_SECONDS
        while self._host(index) not in self._alive():
            logs = "".join(log.read_text() for log in self.folder.glob("node*.log"))
            assert process.poll() is None, logs
            assert time.monotonic() < end, f"the node did not come up: {logs}"
            time.sleep(0.3)


@contextlib.contextmanager
def local_cluster(
    folder: Path, nodes: int = 1, cpus: int = 1, jobs: bool = False
) -> Iterator[LocalCluster]:
    folder.mkdir(parents=True, exist_ok=True)
    cluster = LocalCluster(folder, cpus, jobs)
    try:
        for _ in range(nodes - 1):
            cluster.add_node()
        yield cluster
    finally:
        cluster.close()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.2 on which nothing listens."""
    sockets = [socket.create_server(("127.0.0.2", 0)) for _ in range(count)]
    ports = [int(opened.getsockname()[1]) for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports
