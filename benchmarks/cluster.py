"""A real SLURM of two nodes on one machine, for the time of a ``with``: its daemons, and everything that they write,
live in a temporary folder and end with it. No systemd, no other user, nothing of an installed cluster is touched.

Needs Debian's ``slurm-wlm`` and ``munge`` (22.05 is what it was written with). Both nodes are this machine, under two
names and ports; each offers ``CPUS`` whatever the machine has.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from record import ROOT

PACKAGES = ("slurm-wlm", "munge")
CPUS = 2
_PATH = os.pathsep.join([*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/sbin"])
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
_WAIT = 30.0

_CONFIG = """\
ClusterName=study
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed.txt
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=0,bf_interval=2
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=86400
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} State=UNKNOWN\n"
_PARTITION = "PartitionName=study Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES\n"


def missing() -> list[str]:
    """Programs of SLURM and munge that this machine lacks."""
    return [program for program in _PROGRAMS if shutil.which(program, path=_PATH) is None]


def install() -> None:
    """Install both packages, as root, without starting what they bring."""
    command = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *PACKAGES]
    subprocess.run(command, check=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})


class Cluster:
    """The running cluster; ``environment`` is what its commands and jobs need."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self._host = socket.gethostname().partition(".")[0]
        self._nodes = (self._host, f"{self._host}-2")  # the first name resolves: tasks on several nodes meet there
        self._user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))},
            "PATH": _PATH,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "MASTER_ADDR": "127.0.0.1",  # where tasks meet: no resolver knows the second node's name
        }

    def __enter__(self) -> Cluster:
        try:
            self._configure()
            self._start("munged", "--foreground", "--force", *self._munge_files())
            self._until(lambda: (self.folder / "munge.socket").exists(), "munged")
            self._start("slurmctld", "-D")
            for node in self._nodes:
                self._start("slurmd", "-D", "-N", node)
            self._until(self._is_idle, "nodes that are idle")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _configure(self) -> None:
        ports = _free_ports(1 + len(self._nodes))
        known = {"folder": self.folder, "host": self._host, "user": self._user, "ports": ports}
        nodes = [
            _NODE.format(name=name, host=self._host, port=port, cpus=CPUS)
            for name, port in zip(self._nodes, ports[1:], strict=True)
        ]
        (self.folder / "slurm.conf").write_text(_CONFIG.format(**known) + "".join(nodes) + _PARTITION)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        for name in ("state", *(f"spool-{node}" for node in self._nodes)):
            (self.folder / name).mkdir()

    def _munge_files(self) -> list[str]:
        names = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        return [f"--{option}={self.folder}/munge.{ending}" for option, ending in names.items()]

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.console").open("ab") as console:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    start_new_session=True,
                )
            )

    def _until(self, happened: object, what: str) -> None:
        assert callable(happened)
        end = time.monotonic() + _WAIT
        while not happened():
            dead = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            if dead or time.monotonic() > end:
                said = "".join(path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.console"))
                raise SystemExit(f"cluster: expected {what} within {_WAIT:.0f} s; daemons said:\n{said}")
            time.sleep(0.2)

    def _is_idle(self) -> bool:
        states = self.run("sinfo", "--noheader", "--Node", "--format=%T", check=False).split()
        return states == ["idle"] * len(self._nodes)

    def stop(self) -> None:
        """Cancel what runs, end the daemons, last come first, and remove their folder."""
        try:
            if len(self._daemons) > 1 and all(daemon.poll() is None for daemon in self._daemons):
                self.run("scancel", "--user", self._user, check=False)
                end = time.monotonic() + _WAIT
                while self.run("squeue", "--noheader", check=False) and time.monotonic() < end:
                    time.sleep(0.5)
        finally:
            for daemon in reversed(self._daemons):
                daemon.terminate()
                try:
                    daemon.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(daemon.pid, signal.SIGKILL)
                    daemon.wait()
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str, check: bool = True) -> str:
        """A command of SLURM, from the repository; returns what it says."""
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        if check and done.returncode:
            raise SystemExit(f"cluster: {' '.join(command[:2])} failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def submit(self, script: str, *arguments: str, options: tuple[str, ...] = ()) -> int:
        """``sbatch``; returns the job's number. What the job says goes to `output`."""
        told = ("--parsable", f"--output={self.folder}/job-%j.out", *options)
        return int(self.run("sbatch", *told, script, *arguments))

    def output(self, job: int) -> str:
        """What a job has said until now."""
        path = self.folder / f"job-{job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def about(self, job: int) -> dict[str, str]:
        """The fields of ``scontrol show job``, which tells of an array all at once."""
        lines = self.run("scontrol", "--oneliner", "show", "job", str(job)).splitlines()
        (line,) = (line for line in lines if line.startswith(f"JobId={job} "))
        return dict(re.findall(r"(\w[\w:/]*)=(\S*)", line))

    def jobs(self, name: str) -> list[int]:
        """Numbers of all jobs of this name, past ones too."""
        told = self.run("scontrol", "--oneliner", "show", "jobs")
        return sorted(int(job) for job in re.findall(rf"JobId=(\d+) .*?JobName={re.escape(name)} ", told))

    def wait(self, job: int, seconds: float) -> str:
        """Wait for a job's end; returns its last state."""
        end = time.monotonic() + seconds
        while (state := self.about(job)["JobState"]) in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
            if time.monotonic() > end:
                return f"{state} after {seconds:.0f} s"
            time.sleep(0.5)
        return state

    def events(self, *jobs: int) -> str:
        """Lines of the controller's log about these jobs."""
        wanted = re.compile(rf"JobId=(?:{'|'.join(map(str, jobs))})(?!\d)")
        lines = (self.folder / "slurmctld.log").read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if wanted.search(line))

    def scrubbed(self, text: str) -> str:
        """The same without this machine's name, user and paths."""
        text = text.replace(str(self.folder), "SLURM").replace(f"{ROOT}/", "").replace(str(ROOT), ".")
        text = re.sub(r"(?<![\w.<>:])/[\w.+-]+(?:/[\w.+-]+)+/?", "PATH", text)
        text = re.sub(r"(UserId|GroupId)=\S+", r"\1=USER", text)
        for name, instead in ((self._host, "HOST"), (self._user, "USER")):
            text = re.sub(rf"\b{re.escape(name)}\b", instead, text)
        return text


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
