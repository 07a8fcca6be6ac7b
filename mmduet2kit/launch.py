"""How a command of the kit becomes processes: one, several ranks on CPUs, `accelerate launch` on one GPU, many, or many machines.

On GPUs every training is an `accelerate launch`. In a Slurm allocation of several nodes, one task a node starts it; without
Slurm, MMDUET2_HOSTS=node1,node2 names the machines (this one first), and `$MMDUET2_SHELL NODE bash` (default: ssh) reads there what to
do, and with which environment: secrets show in no list of processes. When its input ends, the far side is asked to stop.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .errors import UserError, whole_number
from .manifest import cores

TRAININGS = ("base", "sft", "grpo")
CARRIED = ("PATH", "PYTHON", "LD_LIBRARY_PATH", "CUDA_", "NCCL_", "TORCH", "HF_", "OPENAI_", "MMDUET2_", "ACCELERATE_")  # names begin so
RELAYS = {"srun": signal.SIGUSR1, "ssh": 0}  # what asks the far side to stop: srun kills its tasks at a TERM, ssh would cut the line


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def places(world: int) -> list[dict[str, str]]:
    """What torch.distributed (and `progress.rank`) read of each CPU rank's place; nothing for one alone."""
    if world == 1:
        return [{}]
    alike = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": max(1, cores() // world)}
    return [{name: str(value) for name, value in {**alike, "RANK": r, "LOCAL_RANK": r}.items()} for r in range(world)]


def gpu_count() -> int:
    """GPUs of this machine; MMDUET2_GPUS says otherwise (0: keep to CPUs). No CUDA context begins in this process."""
    if (wanted := whole_number("MMDUET2_GPUS")) is not None:
        return wanted
    import torch

    return torch.cuda.device_count()


def hosts() -> list[str]:
    """The machines that share a training, this one first; empty for this one alone."""
    if int(os.environ.get("SLURM_JOB_NUM_NODES", 1)) > 1:
        listed = subprocess.run(["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], capture_output=True, text=True)
        if listed.returncode or not listed.stdout.split():
            raise UserError(f"scontrol cannot name this job's nodes ({listed.stderr.strip()}): start inside the allocation.")
        return listed.stdout.split()
    return [name for name in os.environ.get("MMDUET2_HOSTS", "").split(",") if name]


def processes(command: Sequence[str], world: int = 1, gpus: int = 0, grace: float = 30.0) -> list[tuple[list[str], dict[str, str], str]]:
    """[(command line, additions to its environment, its input, which stays open while it shall run)] for `mmduet2 <command>`.

    world: ranks on CPUs (see `places`); with `gpus` a machine, a training has one rank a GPU instead, on all machines.
    grace: s from a TERM until the launcher kills ranks that still save.
    """
    kit, alone = ["-m", "mmduet2kit", *command], "--threshold" in command  # its loss goes past DDP
    if not gpus or command[0] not in TRAININGS:
        return [([sys.executable, *kit], place, "") for place in places(1 if alone else world)]
    machines, gpus = ([""], 1) if alone else (hosts() or [""], gpus)
    count = gpus * len(machines)
    own = {"CUDA_VISIBLE_DEVICES": _visible([0])} if count == 1 else {}  # else the Trainer spreads one process over all in sight
    own |= {"OMP_NUM_THREADS": str(max(1, cores() // gpus)), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(grace) + 1),
            "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"}  # fmt: skip
    line = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(count), "--num_machines", str(len(machines)),
            "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip
    line += ["--multi_gpu"] if count > 1 else []  # torch's elastic launcher: it passes TERM on to every rank
    if len(machines) == 1:
        return [([*line, "--main_process_port", str(free_port()), *kit], own, "")]
    port = os.environ.get("MASTER_PORT", str(29500 + int(os.environ.get("SLURM_JOB_ID", 0)) % 1000))
    line += ["--main_process_ip", machines[0], "--main_process_port", port]
    if "SLURM_JOB_ID" in os.environ:  # Slurm tells each task its place, but a step does not inherit the job's CPUs a task
        cpus = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or str(cores())
        text = f'exec {shlex.join(line)} --machine_rank "$SLURM_NODEID" {shlex.join(kit)}'
        return [(["srun", f"--nodes={len(machines)}", f"--ntasks={len(machines)}", "--ntasks-per-node=1", "--kill-on-bad-exit=1",
                  f"--cpus-per-task={cpus}", "bash", "-c", text], own, "")]  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)} | own
    start = [*(f"export {name}={shlex.quote(value)}" for name, value in kept.items()), f"cd {shlex.quote(os.getcwd())} || exit"]
    out = [([*line, "--machine_rank", "0", *kit], own, "")]
    for number, host in enumerate(machines[1:], 1):
        there = shlex.join([*line, "--machine_rank", str(number), *kit])
        run = f"exec 3<&0; {there} </dev/null & p=$!; (read -ru3; kill $p) & wait $p; code=$?; kill $!; exit $code\n"
        out.append(([*shlex.split(os.environ.get("MMDUET2_SHELL", "ssh")), host, "bash"], {}, "\n".join([*start, run])))
    return out


class Cards:
    """The GPUs of this machine, handed out: a training takes all of them, anything else one."""

    def __init__(self, count: int):
        self.count, self.free, self.change = count, list(range(count)), threading.Condition()

    @contextmanager
    def take(self, command: str) -> Iterator[dict[str, str]]:
        """Wait for the cards that this command needs; what its environment must say of them."""
        many = self.count if command in TRAININGS else min(1, self.count)
        with self.change:
            self.change.wait_for(lambda: len(self.free) >= many)
            mine, self.free = self.free[:many], self.free[many:]
        try:
            yield {"CUDA_VISIBLE_DEVICES": _visible(mine)} if self.count and command not in TRAININGS else {}
        finally:
            with self.change:
                self.free = sorted(self.free + mine)
                self.change.notify_all()


def _visible(cards: list[int]) -> str:
    """Names of these cards, out of those that this process was given itself."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return ",".join(given[k] if k < len(given) and given[k] else str(k) for k in cards)
