"""Launching: CPU ranks, `accelerate launch` on GPUs, several machines by Slurm or by a shell; run_all.sh as a Slurm job."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmduet2kit import cli, launch
from mmduet2kit.errors import UserError
from mmduet2kit.files import read_csv
from mmduet2kit.profile import load_profile
from mmduet2kit.progress import run_commands

TWO = "127.0.0.1,127.0.0.1"


def tool(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text("#!/bin/bash\n" + text)
    (folder / name).chmod(0o755)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A stand-in for Slurm's commands: two nodes, both of them this machine."""
    tools = tmp_path / "tools"
    tools.mkdir()
    tool(tools, "scontrol", f'case $1 in show) echo 127.0.0.1; echo 127.0.0.1 ;; requeue) echo "$2" >>{tmp_path}/requeued ;; esac\n')
    tool(tools, "srun", "while [[ $1 = --* ]]; do shift; done\nfor k in 0 1; do SLURM_NODEID=$k \"$@\" & all+=($!); done\n"
         'trap \'kill "${all[@]}"\' TERM\nfor one in "${all[@]}"; do wait $one || bad=$?; done; exit ${bad:-0}\n')  # fmt: skip
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"JOB_ID": "7", "JOB_NUM_NODES": "2", "JOB_NODELIST": "node[1-2]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("MASTER_PORT", str(launch.free_port()))
    return tmp_path


def words(command, **kwargs):
    return [" ".join(line) for line, _ in launch.processes(command, **kwargs)]


def test_a_cpu_has_ranks_and_a_gpu_accelerate(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    one, two = launch.processes(["sft", "--seed", "1"], world=2)
    assert one[0] == two[0] == [sys.executable, "-m", "mmduet2kit", "sft", "--seed", "1"]
    assert (one[1]["RANK"], two[1]["RANK"], one[1]["MASTER_PORT"]) == ("0", "1", two[1]["MASTER_PORT"])
    (line,) = words(["sft"], world=2, gpus=8)
    assert "accelerate.commands.launch --num_processes 8 --num_machines 1" in line and "--multi_gpu" in line
    assert "--multi_gpu" not in words(["grpo"], gpus=1)[0]
    assert "--num_processes 1 " in words(["sft", "--threshold"], gpus=8)[0]  # its loss goes past DDP
    assert words(["evaluate"], gpus=8) == [f"{sys.executable} -m mmduet2kit evaluate"]


def test_one_task_a_node_starts_accelerate(slurm):
    (line,) = words(["grpo"], gpus=8)
    assert line.startswith("srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1")
    assert "--num_processes 16 --num_machines 2" in line and '--machine_rank "$SLURM_NODEID"' in line
    assert "--main_process_ip 127.0.0.1" in line


def test_without_slurm_the_same_command_goes_to_each_host(monkeypatch):
    monkeypatch.setenv("MMDUET2_HOSTS", "here,there")
    first, second = launch.processes(["sft"], gpus=8)
    assert "--machine_rank 0" in " ".join(first[0]) and first[0][0] == sys.executable
    assert second[0][:3] == ["ssh", "-tt", "there"] and f"cd {os.getcwd()} && exec env" in second[0][3]
    assert "--machine_rank 1" in second[0][3] and "--main_process_ip here" in second[0][3]


def test_a_number_of_gpus_that_is_none_is_one_sentence(monkeypatch):
    monkeypatch.setenv("MMDUET2_GPUS", "two")
    with pytest.raises(UserError, match="MMDUET2_GPUS"):
        launch.gpu_count()


def test_a_training_takes_all_cards_and_an_evaluation_one(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    cards = launch.Cards(2)
    with cards.take("evaluate") as one, cards.take("evaluate") as two:
        assert (one, two) == ({"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "6"}) and not cards.free
    with cards.take("grpo") as all_of_them:
        assert all_of_them == {} and not cards.free
    with launch.Cards(0).take("evaluate") as none:
        assert none == {}


PROFILE = """
name: launched
extends: smoke
world: {counts: {base: {clip: 8}, sft: {train_web: 4, train_ego: 1}, rl: {train_web: 3, train_ego: 1}, dev: {WEB: 1, EGO: 1},
                 test: {WEB: 1, EGO: 1, TV: 1, VAD: 1, PO: 1}}}
base: {steps: 4, batch: 4, micro_batch: 2, save_steps: 2}
"""


@pytest.mark.distributed
@pytest.mark.parametrize("way", ["slurm", "shell"])
def test_two_machines_of_one_gpu_train_as_one_process_does(way, slurm, tmp_path, monkeypatch):
    """The launch code of GPU nodes, on CPUs: accelerate on two "machines" gives the losses of one process."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(PROFILE)
    profile, log = load_profile("mine.yaml"), Path("runs/launched/results/train_base_seed1.csv")
    assert cli.main(["data", "--profile", "mine.yaml"]) == 0
    for name in ("SLURM_JOB_ID", "SLURM_JOB_NUM_NODES"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("MMDUET2_GPUS", "0")
    run_commands("mine.yaml", [["base --seed 1"]], parallel=1)
    alone = [float(row["loss"]) for row in read_csv(log)]
    shutil.rmtree(profile.run_dir / "models")
    monkeypatch.setenv("MMDUET2_GPUS", "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if way == "slurm":
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    else:
        tool(tmp_path / "tools", "there", 'shift\nexec bash -c "$*"\n')
        monkeypatch.setenv("MMDUET2_HOSTS", TWO)
        monkeypatch.setenv("MMDUET2_SHELL", "there")
    run_commands("mine.yaml", [["base --seed 1"]])
    assert [float(row["loss"]) for row in read_csv(log)] == pytest.approx(alone, abs=1e-4) and len(alone) == 4
    assert (profile.model_dir("base", 1) / "model.safetensors").is_file()


def job(folder: Path, spool: Path, *arguments):
    """What sbatch does: a copy of the script in a spool folder, started elsewhere, told where it was submitted."""
    spool.mkdir(exist_ok=True)
    shutil.copy(folder / "run_all.sh", spool / "slurm_script")
    environment = os.environ | {"SLURM_SUBMIT_DIR": str(folder), "PYTHON": str(folder / "python"), "CONDA_PREFIX": ""}
    return subprocess.Popen(["bash", str(spool / "slurm_script"), *arguments], cwd="/", env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def test_run_all_is_a_slurm_job_that_goes_back_into_the_queue(slurm, tmp_path, wait_until):
    """The script runs from a spool copy; TERM ahead of the limit reaches the run, then the job is queued again and goes on."""
    folder = tmp_path / "kit"
    folder.mkdir()
    for name in ("run_all.sh", "pyproject.toml"):
        shutil.copy(name, folder)
    tool(folder, "python", f"""
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit; fi
if [ "$1 $2" = "-m pip" ]; then exit; fi
if [ "$1 $2" = "-m mmduet2kit" ]; then
  echo "$PWD: $*" >>{tmp_path}/asked
  if [ -e {tmp_path}/saved ]; then exit 0; fi
  trap 'echo saved >{tmp_path}/saved; kill $!; exit 143' TERM; sleep 60 & wait $!; exit 9
fi
exec {sys.executable} "$@"
""")  # fmt: skip
    text = (folder / "run_all.sh").read_text().splitlines()
    assert text[1].startswith("#SBATCH") and all(word in text[1] for word in ("--signal=B:TERM@", "--requeue", "--ntasks-per-node=1"))
    first = job(folder, tmp_path / "spool", "--profile", "paper")
    wait_until((tmp_path / "asked").exists, 60)
    time.sleep(0.3)  # the stand-in sets its trap
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=30)[0]
    assert first.returncode == 143, said
    assert (tmp_path / "saved").exists() and (tmp_path / "requeued").read_text() == "7\n"
    again = job(folder, tmp_path / "spool", "--profile", "paper")
    said = again.communicate(timeout=60)[0]
    assert again.returncode == 0, said
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [f"{folder.resolve()}: -m mmduet2kit run --profile paper"] * 2
    assert (tmp_path / "requeued").read_text() == "7\n"
