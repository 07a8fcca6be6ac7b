"""Launching: CPU ranks, `accelerate launch` on GPUs, several machines by Slurm or by a shell; run_all.sh as a Slurm job."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import constraints
import psutil
import pytest

from mmduet2kit import cli, launch, runner
from mmduet2kit.errors import UserError
from mmduet2kit.files import read_csv, read_json
from mmduet2kit.profile import load_profile
from mmduet2kit.progress import CAUSE, run_commands

TWO = "127.0.0.1,127.0.0.1"
SRUN = """
import os, signal, subprocess, sys, time
import psutil
line = sys.argv[1:]
while line[0].startswith("--"):
    line.pop(0)
away = {name: value for name, value in os.environ.items() if name != "MMDUET2_STAGE"}  # other machines' processes are seen by nobody here
tasks = [subprocess.Popen(line, env=away | {"SLURM_NODEID": str(k)}) for k in (0, 1)]
def kill(*_):  # srun_job.c: "forcing job termination", and KILL reaches all processes of a step
    for task in tasks:
        for one in [*psutil.Process(task.pid).children(recursive=True), task] if task.poll() is None else ():
            one.kill()
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
    signal.signal(number, kill)
for number in (signal.SIGUSR1, signal.SIGUSR2):  # passed on, to the tasks alone
    signal.signal(number, lambda number, _: [task.send_signal(number) for task in tasks if task.poll() is None])
codes = [None]
while None in codes:
    codes = [task.poll() for task in tasks]
    if any(codes):  # --kill-on-bad-exit
        kill()
    time.sleep(0.1)
sys.exit(max(code % 256 for code in codes))
"""
SSH = """
import os, subprocess, sys, threading
far = subprocess.Popen(["bash", "-c", " ".join(sys.argv[2:])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       env={"HOME": os.environ.get("HOME", "/")}, bufsize=0, start_new_session=True)  # another machine's environment
def there():
    while data := os.read(0, 4096):
        far.stdin.write(data)
    far.stdin.close()
threading.Thread(target=there, daemon=True).start()
while data := far.stdout.read(4096):
    os.write(1, data)
os._exit(far.wait() % 256)
"""


def tool(folder: Path, name: str, text: str, by: str = "/bin/bash") -> None:
    (folder / name).write_text(f"#!{by}\n" + text)
    (folder / name).chmod(0o755)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands and for ssh: two nodes, both of them this machine."""
    tools = tmp_path / "tools"
    tools.mkdir()
    tool(tools, "scontrol", f'case $1 in show) echo 127.0.0.1; echo 127.0.0.1 ;; requeue) echo "$2" >>{tmp_path}/requeued ;; esac\n')
    tool(tools, "srun", SRUN, sys.executable)
    tool(tools, "ssh", SSH, sys.executable)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"JOB_ID": "7", "JOB_NUM_NODES": "2", "JOB_NODELIST": "node[1-2]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("MASTER_PORT", str(launch.free_port()))
    return tmp_path


def words(command, **kwargs):
    return [" ".join(line) for line, *_ in launch.processes(command, **kwargs)]


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


def test_a_launched_training_gets_its_share_of_cores_its_grace_and_no_card_too_many(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(launch, "cores", lambda: 96)
    ((_, many, _),), ((_, one, _),) = (launch.processes(["sft"], gpus=n, grace=240.0) for n in (8, 1))
    assert (many["OMP_NUM_THREADS"], one["OMP_NUM_THREADS"]) == ("12", "96") and int(many["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) > 240
    assert one["CUDA_VISIBLE_DEVICES"] == "4" and "CUDA_VISIBLE_DEVICES" not in many


def test_one_task_a_node_starts_accelerate(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "96")
    assert "--cpus-per-task=96 " in words(["grpo"], gpus=8)[0]
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "48")
    (line,) = words(["grpo"], gpus=8)
    assert "--cpus-per-task=48 " in line
    assert line.startswith("srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1")
    assert "--num_processes 16 --num_machines 2" in line and '--machine_rank "$SLURM_NODEID"' in line
    assert "--main_process_ip 127.0.0.1" in line


def test_without_slurm_the_same_command_goes_to_each_host(monkeypatch):
    monkeypatch.setenv("MMDUET2_HOSTS", "here,there")
    wanted = {"OPENAI_API_KEY": "a 'secret'", "OPENAI_BASE_URL": "http://judge/v1", "MMDUET2_JUDGE_MODEL": "judge", "HF_TOKEN": "hf_1",
              "NCCL_SOCKET_IFNAME": "ib0", "LD_LIBRARY_PATH": "/lib", "CUDA_VISIBLE_DEVICES": "1,2"}  # fmt: skip
    for name, value in (wanted | {"MY_OWN": "x"}).items():
        monkeypatch.setenv(name, value)
    first, second = launch.processes(["sft"], gpus=8)
    assert "--machine_rank 0" in " ".join(first[0]) and first[0][0] == sys.executable and not first[2]
    assert second[0] == ["ssh", "there", "bash"]  # what stands there can be read by everybody
    assert f"cd {os.getcwd()} || exit" in second[2] and "--machine_rank 1" in second[2] and "--main_process_ip here" in second[2]
    exports = "".join(line for line in second[2].splitlines(True) if line.startswith("export"))
    shown = subprocess.run(["env", "-i", "/bin/bash", "-c", exports + "env"], capture_output=True, text=True).stdout
    told = dict(line.split("=", 1) for line in shown.splitlines())
    assert wanted.items() <= told.items() and "MY_OWN" not in told and {"OMP_NUM_THREADS", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"} <= told.keys()


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
@pytest.mark.parametrize("way, stages", [("slurm", ["base"]), ("shell", ["sft", "grpo"])])
def test_two_machines_of_one_gpu_train_as_one_process_does(way, stages, slurm, tmp_path, monkeypatch):
    """The launch code of GPU nodes, on CPUs: accelerate on two "machines" gives the losses of one process at an equal global batch."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(PROFILE)
    profile = load_profile("mine.yaml")
    assert cli.main(["data", "--profile", "mine.yaml"]) == 0
    for name in ("SLURM_JOB_ID", "SLURM_JOB_NUM_NODES"):
        monkeypatch.delenv(name)

    def losses(stage: str) -> list[float]:
        made = {"grpo": "rl"}.get(stage, stage)
        shutil.rmtree(profile.model_dir(made, 1), ignore_errors=True)
        run_commands("mine.yaml", [[f"{stage} --seed 1"]], parallel=1)
        assert (profile.model_dir(made, 1) / "model.safetensors").is_file()
        return [float(row["loss"]) for row in read_csv(Path(f"runs/launched/results/train_{made}_seed1.csv"))]

    monkeypatch.setenv("MMDUET2_GPUS", "0")
    if way == "shell":
        losses("base")
    alone = {stage: losses(stage) for stage in stages}
    monkeypatch.setenv("MMDUET2_GPUS", "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if way == "slurm":
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    else:
        monkeypatch.setenv("MMDUET2_HOSTS", TWO)
    for stage in reversed(stages):  # GRPO starts from the SFT model of one process, both times
        assert len(alone[stage]) > 1 and losses(stage) == pytest.approx(alone[stage], abs=1e-4), stage


def training() -> list[psutil.Process]:
    """The ranks of `mmduet2 base` that listen to signals, which they do just before the first step."""
    found = []
    for process in psutil.process_iter():
        try:
            if "accelerate.commands.launch" not in (line := process.cmdline()) and "base" in line and "long.yaml" in line:
                caught = next(row for row in Path(f"/proc/{process.pid}/status").read_text().splitlines() if row.startswith("SigCgt"))
                found += [process] if int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1 else []
        except (psutil.Error, OSError):
            pass
    return found


@pytest.fixture
def long_training(slurm, tmp_path, monkeypatch):
    """A folder with a training that takes long and saves nothing by itself."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.yaml").write_text(PROFILE.replace("launched", "long").replace("steps: 4,", "steps: 5000,").replace("save_steps: 2", "save_steps: 5000")
                                        + "launch: {grace_s: 60}\n")  # fmt: skip
    assert cli.main(["data", "--profile", "long.yaml"]) == 0
    for name, value in {"MMDUET2_GPUS": "1", "ACCELERATE_USE_CPU": "true", runner.TAG: "long:03"}.items():
        monkeypatch.setenv(name, value)
    yield load_profile("long.yaml")
    runner.end_all("long:", 1)
    for process in training():
        process.kill()


def saved(profile) -> list[int]:
    """Steps of the whole checkpoints."""
    return [read_json(file)["global_step"] for file in profile.model_dir("base", 1).parent.glob("base-seed1.partial/*/trainer_state.json")]


@pytest.mark.distributed
@pytest.mark.parametrize("grace, number", [(60, signal.SIGTERM), (60, signal.SIGHUP), (0.5, signal.SIGTERM)])
def test_a_signal_to_the_launcher_gives_the_ranks_the_grace_of_the_profile(grace, number, long_training, monkeypatch, wait_until):
    """One rank is held up for longer than torch's launcher would wait by its own default, which is made small here."""
    monkeypatch.delenv("SLURM_JOB_NUM_NODES")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")
    ((line, own, _),) = launch.processes(["base", "--seed", "1", "--profile", "long.yaml"], gpus=2, grace=grace)
    with open("said.log", "wb") as said:
        launcher = subprocess.Popen(line, env=os.environ | own | {"OMP_NUM_THREADS": "1"}, stdout=said, stderr=said)
    wait_until(lambda: len(training()) == 2, 120)
    time.sleep(1)  # some steps
    held = training()[1]
    held.suspend()
    launcher.send_signal(number)
    time.sleep(5)
    with suppress(psutil.NoSuchProcess):
        held.resume()
    assert launcher.wait(60) != 0
    assert not training()
    assert len(saved(long_training)) == (grace > 5), Path("said.log").read_text()[-3000:]


@pytest.mark.distributed
@pytest.mark.parametrize("way", ["slurm", "shell"])
def test_the_runners_end_lets_two_machines_save(way, long_training, monkeypatch, wait_until):
    """With stand-ins that do what srun and ssh do when they are sent TERM. Processes of other machines the runner cannot see."""
    if way == "shell":
        monkeypatch.delenv("SLURM_JOB_NUM_NODES")
        monkeypatch.delenv("SLURM_JOB_ID")
        monkeypatch.setenv("MMDUET2_HOSTS", TWO)
    code = "from mmduet2kit.progress import run_commands; run_commands('long.yaml', [['base --seed 1']])"
    kernel = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(training()) == 2, 120)
    time.sleep(1)
    began = time.monotonic()
    runner.end_all("long:", 60)
    assert time.monotonic() - began < 50 and kernel.wait(5) == -signal.SIGTERM
    wait_until(lambda: not training(), 10)
    said = Path("runs/long/logs/base-seed-1.log").read_text()
    assert len(saved(long_training)) == 1, said[-3000:]


@pytest.mark.distributed
def test_a_failed_training_of_many_ranks_is_told_by_its_own_sentence(slurm, tmp_path, monkeypatch):
    """torch's launcher ends with 30 lines of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_NUM_NODES")
    (tmp_path / "mine.yaml").write_text(PROFILE)
    for name, value in {"MMDUET2_GPUS": "2", "ACCELERATE_USE_CPU": "true"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=r"ended with 1: mmduet2 base: .*run the stage that makes it.* \(all .* runs/launched/logs/base-seed-1.log\)"):
        run_commands("mine.yaml", [["base --seed 1"]])
    assert "ChildFailedError" in Path("runs/launched/logs/base-seed-1.log").read_text()


@pytest.mark.parametrize("said, why", [
    ("a warning\nmmduet2 sft: no data: make it.\nTraceback (most recent call last):\n  File x\nFailed: banner\n", "mmduet2 sft: no data: make it."),
    ("[rank1]: Traceback (most recent call last):\n[rank0]: Traceback (most recent call last):\n[rank1]:   File \"a\"\n[rank0]:   File \"b\"\n"
     "[rank1]: ValueError: mine\n[rank0]: RuntimeError: closed by peer\nE1122 failed\n", "ValueError: mine"),
    ("Traceback (most recent call last):\n  File \"a\"\n    x\n    ^\ntorch.OutOfMemoryError: CUDA out of memory.\n\nDuring handling\n", "torch.OutOfMemoryError: CUDA out of memory."),
])  # fmt: skip
def test_the_line_that_says_why(said, why):
    found = CAUSE.search(said)
    assert (found[1] or found[3]) == why


def test_output_of_commands_is_kept_and_a_bad_one_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(PROFILE)
    with pytest.raises(RuntimeError) as error:
        run_commands("mine.yaml", [["evaluate --nonsense a/b"]])
    assert "ended with 2: mmduet2 evaluate: error: unrecognized arguments" in str(error.value) and len(str(error.value).splitlines()) == 1
    assert "usage:" in Path("runs/launched/logs/evaluate-nonsense-a-b.log").read_text()


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
    constraints.copied(folder)
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
