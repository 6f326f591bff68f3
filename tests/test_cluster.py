"""Grids on clusters, of Ray and of Slurm; the tests marked ``cluster`` start them here."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import slurm_here

from backdoorbench_ext.errors import InputError
from backdoorbench_ext.executors.ray import Ray, _start
from backdoorbench_ext.executors.slurm import Desk, Slurm, _chunks, _flags
from backdoorbench_ext.options import Options
from backdoorbench_ext.work import Work

# a cluster of three nodes with GPUs that are none; one may be taken away without warning when the
# first records are there
CLUSTER = """
import subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

out, lost, *command = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
run = subprocess.Popen([word.replace("ADDRESS", cluster.address) for word in command])
if lost == "lost":
    while run.poll() is None and len(list(Path(out).rglob("rate*.json"))) < 2:
        time.sleep(0.1)
    assert run.poll() is None, "it ended before a node was lost"
    cluster.remove_node(nodes[0], allow_graceful=False)
code = run.wait()
cluster.shutdown()
sys.exit(code)
"""


def grid(out, *more):
    words = "run --dataset digits[train=400,test=100] --attacks badnets,blend,none --epochs 3"
    words += f" --defenses none,ft,clp,cbd[t1=1] --model cnn5 --device cpu --out {out}"
    return [sys.executable, "-m", "backdoorbench_ext", *words.split(), *more]


def found(out):
    """Records by their place, without when and where they were made."""
    files = list(Path(out).rglob("rate*.json"))
    texts = {file.relative_to(out): json.loads(file.read_text()) for file in files}
    return {
        place: {key: record[key] for key in ("spec", "metrics", "hits", "probes", "suspects")}
        for place, record in texts.items()
    }


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """What one process makes of the grid."""
    out = tmp_path_factory.mktemp("serial")
    subprocess.run(grid(out, "--executor", "serial"), check=True)
    return found(out)


@pytest.mark.cluster
@pytest.mark.parametrize(("shared", "lost"), [("auto", "lost"), ("no", "kept")])
def test_records_are_those_of_one_process(shared, lost, serial, tmp_path):
    """A node that is lost in mid-run costs no record; without a shared folder they come back."""
    pytest.importorskip("ray")
    executor = f"ray[address=ADDRESS,gpus_per_task=0.5,shared={shared}]"
    command = [sys.executable, "-c", CLUSTER, str(tmp_path), lost]
    done = subprocess.run(
        [*command, *grid(tmp_path, "--executor", executor)],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = found(tmp_path)
    assert len(made) == 12 and made == serial
    assert not list(tmp_path.rglob(".ray-*"))
    assert list(tmp_path.rglob("examples.png")) and list(tmp_path.rglob("table.md"))


def jobs(env):
    """The jobs of Slurm's queue."""
    asked = subprocess.run(
        ["squeue", "-h", "-r", "-o", "%i"], env=env, capture_output=True, text=True, check=True
    )
    return asked.stdout.split()


def running(env):
    """Jobs that run, and the node of each."""
    words = ["squeue", "-h", "-t", "R", "-o", "%i %N"]
    asked = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    return dict(line.split() for line in asked.stdout.splitlines())


def scontrol(env, verb, job):
    """``hold`` a job that waits, or ``release`` it."""
    subprocess.run(["scontrol", verb, job], env=env, check=True)


def started(env, job):
    """Release a job that was held: the node on which it runs."""
    scontrol(env, "release", job)
    return awaited(lambda: running(env).get(job))


def awaited(what, seconds=120):
    """What becomes true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return found


@pytest.mark.cluster
def test_slurm_loses_no_record(serial, tmp_path):
    """The command is stopped and called again, a job is cancelled, one preempted, one out of time,
    and a node goes: the same records, and nothing is queued twice.
    """
    pytest.importorskip("submitit")
    if lacks := slurm_here.missing():
        pytest.skip(f"Slurm is not installed: {', '.join(lacks)}")
    out = tmp_path / "out"
    # both GPUs, so one job a node
    executor = 'slurm[sbatch="partition=p,time=10,gres=gpu:2"]'
    command = grid(out, "--executor", executor)
    with slurm_here.slurm(tmp_path / "slurm") as env:
        first = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        awaited(lambda: running(env))
        # a job is held for each thing that happens, so that none ends before, however fast
        busy = running(env)
        held = [job for job in jobs(env) if job not in busy][-4:]
        for job in held:
            scontrol(env, "hold", job)
        array = held[0].partition("_")[0]
        # not SIGINT, which is ignored by all that a shell starts in the background
        first.terminate()
        # not after its end: the jobs might be done by then
        again = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        awaited(lambda: list(out.rglob("rate*.json")))
        # the command has found its jobs, and sent none
        assert {name.partition("_")[0] for name in jobs(env)} == {array}
        for words in (["--signal=TERM"], [], ["--signal=USR2"]):
            job = held.pop()
            started(env, job)
            subprocess.run(["scancel", *words, job], env=env, check=True)
        node = started(env, held.pop())
        assert again.poll() is None, "it ended before the node was lost"
        slurm_here.lose(node, env)
        told = again.communicate(timeout=300)[1]
        assert again.returncode == 0, told[-3000:]
        told = first.communicate(timeout=120)[1]
        assert first.returncode == 128 + signal.SIGTERM and f"scancel {array} ends them" in told
    made = found(out)
    assert len(made) == 12 and made == serial
    left = out / "own-epochs3-cnn5" / ".state" / "slurm"
    assert not list(left.glob("*.said"))


@pytest.mark.cluster
def test_what_slurm_refuses_is_one_line(tmp_path):
    pytest.importorskip("submitit")
    if lacks := slurm_here.missing():
        pytest.skip(f"Slurm is not installed: {', '.join(lacks)}")
    with slurm_here.slurm(tmp_path / "slurm") as env:
        command = grid(tmp_path / "out", "--executor", "slurm[sbatch='partition=none-such']")
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "bbx: slurm: sbatch: error: invalid partition specified: none-such" in done.stderr


def test_jobs_of_some_cells():
    groups = {"a": ["cell"] * 3, "b": ["cell"], "c": ["cell"] * 2, "d": ["cell"]}
    assert [list(chunk) for chunk in _chunks(groups, 1)] == [["a"], ["b"], ["c"], ["d"]]
    assert [list(chunk) for chunk in _chunks(groups, 3)] == [["a"], ["b", "c"], ["d"]]
    assert [list(chunk) for chunk in _chunks(groups, 9)] == [["a", "b", "c", "d"]]


def test_what_sbatch_is_asked_for():
    asked = "partition=p, time=4:00:00,--gres=gpu:1,exclusive"
    wanted = {"partition": "p", "time": "4:00:00", "gres": "gpu:1", "exclusive": True}
    assert _flags(asked) == wanted


def squeue(folder, monkeypatch, text):
    """A squeue that says this, alone on the path."""
    file = folder / "bin" / "squeue"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}:/usr/bin:/bin")


def test_jobs_that_are_known(tmp_path, monkeypatch):
    """Those that squeue names; all while it does not answer; an array of which none is left is
    forgotten.
    """
    desk = Desk(tmp_path, Slurm())
    for array, keys in (("7", {"7_0": ["a", "b"], "7_1": ["c"]}), ("8", {"8": ["d"]})):
        (tmp_path / f"{array}.json").write_text(json.dumps(keys))
    (tmp_path / "9.json").write_text("{")
    squeue(tmp_path, monkeypatch, "exit 1")
    assert desk.jobs() == {"a": "7_0", "b": "7_0", "c": "7_1", "d": "8"}
    squeue(tmp_path, monkeypatch, "echo 7_1; echo 12")
    assert desk.jobs() == {"c": "7_1"}
    assert not (tmp_path / "8.json").exists() and (tmp_path / "7.json").exists()
    assert "d" in desk.since and "a" in desk.since


def test_no_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="there is no squeue here"):
        Desk(tmp_path, Slurm()).jobs()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gpus_per_task": 0.3}, "must be 1/k or a whole number, not 0.3"),
        ({"gpus_per_task": 4}, "no node has 4 GPUs and 1 cores; the largest have 2 and 8"),
        ({"cpus_per_task": 9}, "no node has 1 GPUs and 9 cores"),
    ],
)
def test_what_would_wait_for_ever_is_refused(options, says, tmp_path):
    executor = Ray(**options)
    with pytest.raises(InputError, match=says):
        executor._needs(nodes(), Work(tmp_path, Options()))


def test_what_a_task_asks_for(tmp_path):
    for options, device, gpus in (
        ({}, "auto", 1.0),
        ({}, "cpu", 0.0),
        ({"gpus_per_task": 0.25}, "cpu", 0.25),
        ({"gpus_per_task": 2}, "auto", 2),
    ):
        needs = Ray(**options)._needs(nodes(), Work(tmp_path, Options(device=device)))
        assert needs == {"num_gpus": gpus, "num_cpus": 1}


def test_a_cluster_that_is_not_there():
    with pytest.raises(InputError, match="ray: no cluster at localhost:1") as error:
        _start(None, "localhost:1")
    assert "\n" not in str(error.value)


def nodes():
    """Two nodes, one of them gone."""
    there = {"Alive": True, "Resources": {"GPU": 2.0, "CPU": 8.0}}
    gone = {"Alive": False, "Resources": {"GPU": 8.0, "CPU": 64.0}}
    return SimpleNamespace(nodes=lambda: [there, gone])
