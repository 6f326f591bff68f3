"""A grid on a Ray cluster; the tests marked ``cluster`` start one on this machine."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from backdoorbench_ext.errors import InputError
from backdoorbench_ext.executors.ray import Ray, _start
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
