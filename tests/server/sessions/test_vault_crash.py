"""kill -9 at every point of every change: what was acknowledged is there bit for bit, and nothing else."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes_vault import Disk, Model, files_below, on_disk, random_change

from server.sessions.vault import Vault

ROOMY = 1 << 30

# For each line on stdin a child changes a vault, over and over, until it is killed: by itself before the call of the
# system with the number "at", or from outside. A line on stdout acknowledges what has returned. Children are forked
# from a process that has imported everything, since importing takes longer than they live.
WORKER = """
import os, random, signal, sys
from pathlib import Path
from fakes_vault import Disk, Model, on_disk, random_change
from server.sessions.vault import Vault
import torch

torch.set_num_threads(1)

def say(*words):  # A whole line at once, since two processes write to one pipe.
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

def live(directory, seed, at):
    die = lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == at else None
    choose, model = random.Random(seed), Model()
    with on_disk(Disk(on_call=die)):
        vault = Vault(directory, 1 << 30)
        while True:
            random_change(model, choose)(vault)
            say("done")

from server.sessions.manifest import _adapter
_adapter()  # Made once, not by every child.
say("ready")
for line in sys.stdin:
    directory, seed, at = line.split()
    child = os.fork()
    if child == 0:
        live(Path(directory), int(seed), int(at))
    say("born", child)
    _, status = os.waitpid(child, 0)
    say("dead", os.WTERMSIG(status))
"""


@pytest.fixture(scope="module")
def worker() -> Iterator["subprocess.Popen[str]"]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", WORKER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def live_and_die(worker: "subprocess.Popen[str]", directory: Path, seed: int, at: int, seconds: float | None) -> int:
    """How many changes were acknowledged before the child died."""
    worker.stdin.write(f"{directory} {seed} {at}\n")
    worker.stdin.flush()
    num_done = 0
    while True:
        what, *rest = worker.stdout.readline().split()
        if what == "born" and seconds is not None:
            time.sleep(seconds)
            os.kill(int(rest[0]), signal.SIGKILL)
        elif what == "done":
            num_done += 1
        elif what == "dead":
            assert int(rest[0]) == signal.SIGKILL
            return num_done


def assert_survived(directory: Path, seed: int, num_done: int) -> None:
    """After a crash the vault is that after the acknowledged changes, or with the one under way as well."""
    choose, model = random.Random(seed), Model()
    for _ in range(num_done):
        random_change(model, choose)
    after = model.copy()
    random_change(after, choose)
    with on_disk(Disk()):
        vault = Vault(directory, ROOMY)
        vault.check()
        assert vault.damaged == ()
        differences = model.differences(vault)
        if differences and after.differences(vault) == []:
            model, differences = after, []
        assert differences == []
        for name in sorted(model.sessions):
            model.delete(name)(vault)
        assert files_below(directory) == []


def test_killed_before_a_call_of_the_system_a_vault_is_whole(worker: "subprocess.Popen[str]", tmp_path: Path) -> None:
    for at in random.Random(0).sample(range(200), 20):
        directory = tmp_path / "sessions"
        assert_survived(directory, at % 7, live_and_die(worker, directory, at % 7, at, None))
        shutil.rmtree(directory)


@pytest.mark.slow
def test_killed_before_any_call_of_the_system_a_vault_is_whole(worker: "subprocess.Popen[str]", tmp_path: Path) -> None:
    for seed in range(3):
        for at in range(300):
            directory = tmp_path / "sessions"
            assert_survived(directory, seed, live_and_die(worker, directory, seed, at, None))
            shutil.rmtree(directory)


def test_killed_at_random_moments_a_vault_is_whole(worker: "subprocess.Popen[str]", tmp_path: Path) -> None:
    moments = random.Random(0)
    num_done = 0
    for seed in range(6):
        directory = tmp_path / f"sessions{seed}"
        done = live_and_die(worker, directory, seed, -1, moments.uniform(0.0, 0.3))
        assert_survived(directory, seed, done)
        num_done += done
    assert num_done > 6
