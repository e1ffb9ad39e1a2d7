"""A real SLURM cluster of one node, this machine, that lives as long as a test needs it."""

import os
import shutil
import socket
import subprocess
import time

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")


class CannotStart(Exception):
    """Why there is no cluster here."""


class Cluster:
    """Starts munge, the controller and the node's daemon in a folder; `close` ends them. Raises CannotStart."""

    def __init__(self, folder):
        missing = [name for name in COMMANDS if not shutil.which(name)]
        if missing:
            raise CannotStart(f"no {', '.join(missing)}: apt-get install slurmctld slurmd munge")
        if os.geteuid():
            raise CannotStart("slurmd starts jobs as their users, so it must run as root")
        self._folder, self._daemons = folder, []
        for name in ("state", "spool", "munge"):
            (folder / name).mkdir()
        (folder / "munge").chmod(0o700)
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        host, ports = socket.gethostname(), [_free_port(), _free_port()]
        (folder / "slurm.conf").write_text(_CONF.format(folder=folder, host=host, ports=ports, cpus=os.cpu_count()))
        devices = ("/dev/null", "/dev/zero")  # files that are there stand for GPUs: the run uses the CPU
        (folder / "gres.conf").write_text("".join(f"Name=gpu File={path}\n" for path in devices))
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        self.environment["SLURM_CONF"] = str(folder / "slurm.conf")
        files = {
            "key": "munge.key",
            "socket": "munge/socket",
            "log": "munge/log",
            "pid": "munge/pid",
            "seed": "munge/seed",
        }
        options = [
            f"--{'key-file' if n == 'key' else 'socket' if n == 'socket' else f'{n}-file'}={folder / f}"
            for n, f in files.items()
        ]
        try:
            # --force: it warns of folders that others can write, such as /tmp.
            self._start("munged", "--foreground", "--force", *options)
            self._wait("munge", lambda: (folder / "munge/socket").exists())
            self._start("slurmctld", "-D", "-f", str(folder / "slurm.conf"))
            self._start("slurmd", "-D", "-f", str(folder / "slurm.conf"))
            self._wait("slurm", lambda: "idle" in self.run("sinfo", "--noheader", "--format=%t", check=False))
        except BaseException:
            self.close()
            raise

    def run(self, *command, check=True, **options):
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, **options)
        assert not check or not done.returncode, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def state(self, job):
        """Return (state of a job, how often it was restarted)."""
        text = self.run("scontrol", "show", "job", str(job))
        find = lambda name: text.split(f"{name}=")[1].split()[0]
        return find("JobState"), int(find("Restarts"))

    def close(self):
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def _start(self, name, *arguments):
        with open(self._folder / f"{name}.out", "w") as log:
            command = [shutil.which(name), *arguments]
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT))

    def _wait(self, what, ready):
        until = time.monotonic() + 30
        while not ready():
            dead = [d.args[0] for d in self._daemons if d.poll() is not None]
            if dead or time.monotonic() > until:
                logs = {path.name: path.read_text()[-300:] for path in self._folder.glob("*.out")}
                raise CannotStart(f"{what} does not start here: {dead or 'no answer in 30 s'}; {logs}")
            time.sleep(0.2)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


_CONF = """\
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
MpiDefault=none
KillWait=60
GresTypes=gpu
NodeName={host} CPUs={cpus} Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
