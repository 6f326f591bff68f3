"""Command lines at random: an exit code of ours, no traceback, no hang, a line of what is wrong."""

import os
import random
import resource
import sys
from collections import Counter

import pytest
from conftest import here

from backdoorbench_ext import cli

LINES = 500
# seconds of a processor
LONGEST = 20
OWN = ("run", "--dataset", "digits[train=100,test=20]", "--attacks", "badnets,blend")
SOUND = [
    ("list", "defenses", "--json"),
    ("show", "cbd"),
    (*OWN, "--defenses", "none,cbd[t1=1]", "--rates", "0.1,0.2", "--seeds", "0", "--dry-run"),
    ("run", "cbd_table1", "--only", "badnets none", "--scale", "0.1", "--dry-run"),
    ("status", "demo", "--json"),
    ("table", "demo", "--format", "latex", "--metrics", "ca,der"),
    ("plot", "heatmap", "demo", "--format", "svg", "--out", "runs"),
    ("report", "demo", "--scale", "0.5"),
    ("poison", "--attack", "badnets", "--dataset", "digits[train=40]", "--to", "made.npz"),
    ("defend", "record/made", "--defense", "none", "--seeds", "0"),
    ("tune", "cbd", "--dataset", "digits", "--grid", "t1=1,2", "--folds", "1", "--rate", "0.1"),
]
NASTY = [
    *("", " ", ",", "-", "--", "-1", "0", "1.5", "nan", "inf", "1e400", "1_0", "²", "9" * 5000),
    *("a" * 5000, "/".join(["a" * 200] * 30), ".", "..", "/", "/dev/null", "/dev/stdin"),
    *("/proc/self/mem", "nowhere.py", "\udcff", "☃", "a\nb", "a\x1b]0;x\x07", "%s", "{}", "[/b]"),
    *("[", "]", "'", '"', "cbd[", "cbd[]", "cbd[beta]", "cbd[=1]", "cbd[beta=1,beta=2]"),
    *("cbd[beta={[]:1}]", f"cbd[beta={'-' * 9000}1]", f"cbd[beta={'(' * 150}]", "cbd[t1=True]"),
    *(f"cbd[t1={'9' * 5000}]", "cbd[version=2]", "blend[pattern=/etc/passwd]", "blend[pattern=..]"),
    *("blurred[base=blurred[base=wanet]]", "record:", "record:/", "backdoorbench:x", "folder:"),
    *("folder:~nobody", "npz:/", "npz:a,b", "folder:'a", "digits[train=1e9]", "digits[test=nan]"),
    *("cuda:99", "cpu:-1", "meta", "resnet18.nothing", "torchvision:alexnet", "hf-hub:a/b"),
    *("demo", "none", "latex", "tsne", "--json", "--download", "--plugin", "--target", "--epochs"),
]


def mutated(rng):
    """A sound command line with one to four things changed."""
    words = list(rng.choice(SOUND))
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(1, len(words)) if len(words) > 1 else 0
        kind = rng.random()
        if kind < 0.6:
            words[place] = rng.choice(NASTY)
        elif kind < 0.75:
            words.append(rng.choice(NASTY))
        elif kind < 0.85 and place:
            del words[place]
        else:
            at = rng.randrange(len(words[place]) + 1)
            middle = rng.choice(("[", "]", ",", "=", "'", "\n", "-", "%"))
            words[place] = words[place][:at] + middle + words[place][at:]
    # nothing is to be trained
    return [*words, "--dry-run"] if words[0] == "run" and "--dry-run" not in words else words


def outcome(words, folder):
    """What became of a command line, in a process of its own: its exit code, and what it said."""
    said = folder / "said"
    child = os.fork()
    if not child:
        code = 70
        try:
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, LONGEST))
            for number in (1, 2):
                os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            cli.out.file, cli.err.file = sys.stdout, sys.stderr
            code = here(*words)
            sys.stdout.flush()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, said.read_text(errors="replace")


@pytest.mark.slow
def test_command_lines_at_random(tmp_path):
    rng = random.Random(0)
    codes = Counter()
    for _ in range(LINES):
        words = mutated(rng)
        code, said = outcome(words, tmp_path)
        codes[code] += 1
        assert code in (0, 1, 2) and "Traceback" not in said, (words, code, said[-2000:])
        told = [line for line in said.splitlines() if line.strip() and "cells," not in line]
        usage = said.lstrip().startswith("Usage:")
        assert code != 2 or usage or len(told) == 1, (words, said[-2000:])
    assert codes[2] > LINES / 2 and codes[0], codes
