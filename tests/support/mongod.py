"""Real servers for tests: a private one on a Unix socket, and a replica set on loopback whose primary can be killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from goscope_django.mongodb import embedded
from goscope_django.mongodb.embedded import process as mongod_process


@contextmanager
def temporary_mongod(**options: Any) -> Iterator[embedded.Mongod]:
    """Yield a server over a new folder, a one-node replica set unless ``standalone=True``; remove both afterwards.

    ``options`` are those of :func:`goscope_django.mongodb.embedded.start`. It listens on a Unix socket only.
    """
    folder = Path(tempfile.mkdtemp(prefix="goscope-test-"))
    try:
        mongod = embedded.start(folder / "db", **options)
        try:
            yield mongod
        finally:
            # Killed, since nobody wants its data; an end in order takes a second or more.
            embedded.stop(folder / "db", timeout=0)
            mongod.release()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class ReplicaSet:
    """Some ``mongod`` on loopback ports that form one replica set. Elections take about a second."""

    name = "rs"
    catch_up = 1_000
    """Milliseconds for which a new primary looks for writes that it does not have yet, before it takes any."""

    def __init__(
        self, members: int, extra_args: Sequence[str] = (), *, standalone: bool = False, arbiter: bool = False
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="goscope-rs-"))
        self._extra_args = tuple(extra_args)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.ports = _free_ports(members)
        self.hosts = self._hosts()
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.hosts.values())
        self._standalone = standalone
        self._arbiter = arbiter
        self.uri = f"mongodb://{hosts}/" if standalone else f"mongodb://{hosts}/?replicaSet={self.name}"
        try:
            for port in self.ports:
                self._launch(port)
            if not standalone:
                self._initiate()
        except BaseException:
            self.stop()
            raise

    def client(self, **options: Any) -> MongoClient[dict[str, Any]]:
        """Return a client of the set; the caller closes it."""
        return MongoClient(self.uri, serverSelectionTimeoutMS=20_000, **options)

    @property
    def pids(self) -> dict[int, int]:
        """Process ids by port, of the members that run."""
        return {port: process.pid for port, process in self._processes.items() if process.poll() is None}

    def primary_port(self) -> int:
        """Return the port of the primary; waits for one."""
        with self.client() as client:
            client.admin.command("ping")
            address = client.primary
            while address is None:
                client.admin.command("ping")
                address = client.primary
            return self.member(address)

    def member(self, address: tuple[str, int | None]) -> int:
        """Return the port of the member that the set knows by this address."""
        (port,) = (port for port, shown in self.hosts.items() if shown == address[1])
        return port

    def primary_pid(self) -> int:
        """Return the process id of the primary; waits for one."""
        return self.pids[self.primary_port()]

    def kill_primary(self, number: int = signal.SIGKILL) -> int:
        """Send the primary a signal (SIGKILL; SIGSTOP makes it hang) and return its port; waits for no election."""
        port = self.primary_port()
        self.signal(port, number)
        return port

    def signal(self, port: int, number: int) -> None:
        """Send the member on ``port`` a signal; after SIGKILL it has ended."""
        process = self._processes[port]
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.wait(10)

    def stop_secondary(self) -> int:
        """Let a secondary with data hang (``resume`` lets it go on); its port."""
        (port,) = {*self.ports[: -1 if self._arbiter else None]} - {self.primary_port()}
        self._processes[port].send_signal(signal.SIGSTOP)
        return port

    def resume(self, port: int) -> None:
        """Let the member on ``port`` go on after SIGSTOP, or start it again if it ended."""
        if self._processes[port].poll() is None:
            self._processes[port].send_signal(signal.SIGCONT)
        else:
            self._launch(port)

    def step_down(self, seconds: int = 2) -> None:
        """Make the primary step down, ineligible for so many seconds, and wait for another one."""
        port = self.primary_port()
        with MongoClient[dict[str, Any]]("127.0.0.1", port, directConnection=True) as client:
            client.admin.command("replSetStepDown", seconds, secondaryCatchUpPeriodSecs=1, force=True)
        self.primary_port()

    def demand_passwords(self, *users: dict[str, Any]) -> None:
        """Make these users (arguments of ``createUser``), and start again with access control. For one member."""
        with self.client() as client:
            for user in users:
                client.admin.command(user)
        key = self._folder / "key"
        key.write_text("c2VjcmV0" * 4)
        key.chmod(0o600)
        self._extra_args = (*self._extra_args, "--auth", "--keyFile", str(key))
        (port,) = self.ports
        self._processes[port].terminate()
        self._processes[port].wait(30)
        self._launch(port)

    def stop(self) -> None:
        """Kill all members and remove their data."""
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.kill()
            process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _hosts(self) -> dict[int, int]:
        """The ports by which the set knows its members, by those on which they listen."""
        return {port: port for port in self.ports}

    def _environment(self, port: int) -> dict[str, str]:
        """What a member's environment has besides this process's."""
        return {"LC_ALL": "C"}

    def _launch(self, port: int) -> None:
        data = self._folder / str(port)
        data.mkdir(exist_ok=True)
        command = [
            str(mongod_process.find_mongod()),
            *("--quiet", "--dbpath", str(data), "--logpath", str(data / "mongod.log"), "--logappend"),
            *("--bind_ip", "127.0.0.1", "--port", str(port), "--unixSocketPrefix", str(data)),
            *(() if self._standalone else ("--replSet", self.name, "--oplogSize", "64")),
            *("--wiredTigerCacheSizeGB", "0.25"),
            *("--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=33554432)"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            *self._extra_args,
        ]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C ends the tests, which then stop it
            env={**os.environ, **self._environment(port)},
        )
        self._processes[port] = process
        deadline = time.monotonic() + 30
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(mongod_process.why_it_failed(data / "mongod.log", 0))
            time.sleep(0.05)

    def _initiate(self) -> None:
        config: dict[str, Any] = {
            "_id": self.name,
            "members": [{"_id": index, "host": f"127.0.0.1:{port}"} for index, port in enumerate(self.hosts.values())],
            "settings": {
                "electionTimeoutMillis": 1500,
                "heartbeatIntervalMillis": 250,
                "catchUpTimeoutMillis": self.catch_up,
            },
        }
        others = ["SECONDARY"] * (len(self.ports) - 1)
        if self._arbiter:
            config["members"][-1]["arbiterOnly"] = True
            others[-1] = "ARBITER"
        with MongoClient[dict[str, Any]]("127.0.0.1", self.ports[0], directConnection=True) as client:
            client.admin.command("replSetInitiate", config)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(PyMongoError), self.client() as client:
                states = sorted(m["stateStr"] for m in client.admin.command("replSetGetStatus")["members"])
                if states == sorted(["PRIMARY", *others]):
                    return
            time.sleep(0.1)
        raise RuntimeError("the replica set did not form within a minute")


@contextmanager
def replica_set(
    members: int = 3, *, extra_args: Sequence[str] = (), standalone: bool = False, arbiter: bool = False
) -> Iterator[ReplicaSet]:
    """Yield a replica set of so many ``mongod`` on loopback ports, with a primary; stop and remove it afterwards.

    With ``members=1`` it is the server on a TCP port that tests need which put a proxy or another driver in front;
    with ``standalone`` as well that is no replica set. With ``arbiter`` the last member has no data.
    """
    running = ReplicaSet(members, extra_args, standalone=standalone, arbiter=arbiter)
    try:
        yield running
    finally:
        running.stop()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [int(opened.getsockname()[1]) for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()


def parent_of(pid: int) -> int:
    """Return the id of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if parent_of(int(one.name)) == pid:
                found.append(int(one.name))
    return found


def process_exists(pid: int) -> bool:
    """Tell whether a process with this id runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
