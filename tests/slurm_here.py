"""A Slurm of two nodes on this machine, below a folder of its own; nothing in /etc is touched."""

import getpass
import os
import platform
import secrets
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "squeue")
NODES = {"n1": 17001, "n2": 17002}
# seconds: a node that says nothing is down; a job that is queued again may start
SILENT = 10
CONF = """
ClusterName=bbx
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=17000
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdTimeout={silent}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
ReturnToService=2
KillWait=5
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
GresTypes=gpu
{nodes}
PartitionName=p Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""
NODE = (
    "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000 "
    "Gres=gpu:2 State=UNKNOWN"
)


def missing():
    """The programs that are not installed."""
    return [name for name in NEEDED if not shutil.which(name)]


@contextmanager
def slurm(folder):
    """Start it: the environment in which its commands find it."""
    host = platform.node().partition(".")[0]
    nodes = "\n".join(NODE.format(node=n, host=host, port=p) for n, p in NODES.items())
    for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    (folder / "munge").chmod(0o755)
    conf = CONF.format(host=host, user=getpass.getuser(), folder=folder, silent=SILENT, nodes=nodes)
    (folder / "slurm.conf").write_text(conf)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    gpus = [f"NodeName={n} Name=gpu File=/dev/{dev}\n" for n in NODES for dev in ("null", "zero")]
    (folder / "gres.conf").write_text("".join(gpus))
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = ["munged", "--force", "--foreground", f"--key-file={key}"]
    munge += [f"--socket={folder}/munge/socket", f"--pid-file={folder}/munge/pid"]
    munge += [f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed"]
    daemons = [munge, ["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in NODES)]
    started = []
    try:
        for command in daemons:
            with (folder / f"{command[0]}.out").open("ab") as log:
                started.append(
                    subprocess.Popen(
                        command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
                    )
                )
            time.sleep(1)
        await_nodes(env)
        yield env
    finally:
        for daemon in reversed(started):
            daemon.terminate()
        for daemon in started:
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()
        for node in NODES:
            kill_jobs(node)


def await_nodes(env, seconds=60):
    """Wait until both nodes are idle."""
    end = time.monotonic() + seconds
    told = ""
    while time.monotonic() < end:
        asked = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%T"], env=env, capture_output=True, text=True, check=False
        )
        told = asked.stdout.split()
        if told == ["idle"] * len(NODES):
            return
        time.sleep(0.5)
    raise TimeoutError(f"the nodes are {told}")


def processes(node):
    """The numbers of the processes that jobs have on a node."""
    mark = f"SLURMD_NODENAME={node}".encode()
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (place / "environ").read_bytes().split(b"\0"):
                yield int(place.name)


def kill_jobs(node):
    """End what jobs run on a node, and what watches over them, without a word."""
    for number in list(processes(node)):
        with suppress(OSError):
            parent = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
            name = Path(f"/proc/{parent}/comm").read_text()
            if name.startswith("slurmstepd"):
                os.kill(parent, signal.SIGKILL)
        with suppress(OSError):
            os.kill(number, signal.SIGKILL)


def lose(node, env):
    """Take a node away, with what runs on it."""
    folder = Path(env["SLURM_CONF"]).parent
    os.kill(int((folder / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
    kill_jobs(node)
