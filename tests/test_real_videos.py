"""All ten notebooks on a dataset that `mmduet2 data build` made of video files, as the profiles paper and single_gpu run them: nobody
knows an onset there, one domain may be all there is, and what cannot be measured says NOT RUN."""

import re
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import yaml

from mmduet2kit import cli
from mmduet2kit import plan as plan_of_runs
from mmduet2kit.corpus.build import Dataset
from mmduet2kit.corpus.films import annotate, write_video
from mmduet2kit.corpus.pipeline import Plan
from mmduet2kit.corpus.world import draw, plan
from mmduet2kit.files import read_csv, read_json, write_jsonl
from mmduet2kit.profile import load_profile

from played import make_tiny

NAME = "real-videos"
RUN = Path("runs") / NAME
STAGES = sorted(path.stem for path in Path(__file__).parents[1].glob("notebooks/[0-9]*.ipynb"))
MINE = {
    "name": NAME, "extends": "smoke", "purpose": "a test", "dialogue": {"questions": [2, 3]},
    "sft": {"steps": 3, "batch": 4, "micro_batch": 4, "save_steps": 3}, "rl": {"steps": 3, "eval_steps": 1, "save_steps": 3},
    "ablation": {"rl_steps": 2, "sft_steps": 2, "arms": ["no_rep"], "no_reply_weights": []},
}  # fmt: skip


def films(folder: Path, kind: str, counts: dict[str, int]) -> Path:
    """Short films as ordinary files, with scenes as an annotator would note them, and named so that so many go to each split."""
    profile, records = load_profile("smoke"), []
    splits, names = Plan(profile, "template"), {split: 0 for split in counts}
    for number in count():
        name = f"film{number}.mp4"
        if names.get(split := splits.split(name), 10**9) < counts.get(split, 0):
            names[split] += 1
            film = plan(profile.world, "sft", kind, len(records))
            write_video(folder / name, draw(profile.world, film), profile.world.fps)
            records.append(annotate(film, "sft") | {"video": name, "name": name[:-4]})
        if names == counts:
            break
    write_jsonl(folder / "scenes" / "all.jsonl", records)
    return folder


def built(folder: Path, kind: str, counts: dict[str, int]) -> Path:
    """A profile's file that names a dataset built from such films, and a model."""
    films(folder / "films", kind, counts)
    command = ["data", "build", folder / "films", "--corpus", "procedural", "--annotator", "template", "--out", folder / "data", "--profile", "smoke"]
    assert cli.main([str(word) for word in (*command, "--workers", 1)]) == 0
    model = make_tiny(folder / "model", vocabulary=700)
    (folder / "mine.yaml").write_text(yaml.safe_dump(MINE | {"dataset": str(folder / "data"), "model": {"path": str(model)}}))
    return folder / "mine.yaml"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(its dataset, what the runner printed) of a run over films of EGO alone; the run's folder goes afterwards."""
    shutil.rmtree(RUN, ignore_errors=True)
    file = built(tmp_path_factory.mktemp("real"), "train_ego", {"sft": 8, "rl": 4, "dev": 1, "test": 2})
    done = subprocess.run([sys.executable, "-m", "mmduet2kit", "run", "--profile", str(file)], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    yield Dataset(file.parent / "data"), done.stdout
    shutil.rmtree(RUN)


def shown(stage: str) -> str:
    """All that the executed notebook shows, as text."""
    cells = read_json(RUN / "executed" / f"{stage}.ipynb")["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    return "\n".join("".join(output.get("text") or output["data"].get("text/html", "")) for output in outputs)


@pytest.mark.slow
def test_all_ten_notebooks_run_on_a_dataset_of_videos_of_one_domain(ran):
    dataset, _ = ran
    assert dataset.domains("test") == dataset.domains("dev") == ["EGO"] and not dataset.has("onsets/test.json")
    stages = read_json(RUN / "manifest.json")["stages"]
    assert [(name, tries[-1]["status"]) for name, tries in stages.items()] == [(name, "done") for name in STAGES]
    assert (RUN / "report.html").stat().st_size > 10_000 and len(read_json(RUN / "claims.json")) > 20


@pytest.mark.slow
def test_what_cannot_be_measured_says_not_run_and_why(ran):
    said = {stage[:2]: shown(stage) for stage in STAGES}
    assert "Best blind guess: NOT RUN" in said["01"] and "only decoded frames" in said["01"] and "Splits share no video: True" in said["01"]
    assert "Captions: NOT RUN, the dataset has no offline clips" in said["03"] and "NOT RUN: the dataset" not in said["03"] + said["05"]
    assert "The answers of this run: NOT RUN" in said["04"]
    for name, why in (("po", "onsets/test.json"), ("offline", "offline_test.jsonl"), ("speed", "test videos of WEB")):
        assert re.search(rf"{name}: NOT RUN, as \S+ has no {why}", said["06"]), name
    assert "Latency and lucky share: NOT RUN" in said["06"] and "gold span of the EGO test videos" in said["06"]
    assert re.search(r"WEB: NOT RUN, as \S+ has no test videos of WEB", said["07"])


@pytest.mark.slow
def test_tables_and_figures_hold_what_there_is(ran):
    tables = {number: read_csv(RUN / "results" / f"table{number}.csv") for number in range(1, 8)}
    assert [(row["type"], int(row["videos"]), row["source"]) for row in tables[1]] == [("Ego Centric", 12, str(ran[0].folder))]
    for number in (2, 6):
        status = {(row["model"], row["domain"]): row["status"] for row in tables[number]}
        assert all((found == "NOT RUN") == (domain != "EGO") for (_, domain), found in status.items()), number
    measured = [row for row in tables[2] if row["domain"] == "EGO"]
    assert len(measured) == 4 and all(0 <= float(row["pauc"]) <= 100 and row["latency_s"] == "" for row in measured)
    assert {row["status"] for number in (3, 4, 5) for row in tables[number]} == {"NOT RUN"}
    assert {row["domain"] for name in ("figure5", "threshold_sweep") for row in read_csv(RUN / "results" / f"{name}.csv")} == {"EGO"}
    scene = read_json(RUN / "results" / "figure3.json")
    assert scene["onset"] is None and scene["caption"] and len(scene["frames"]) <= 24
    told = {path.stem: path.read_text() for path in (RUN / "figures").glob("*.txt")}
    assert "Onset: NOT RUN" in told["fig3_scene"] and "EGO" in told["fig5_dynamics"] and "NOT RUN" in told["ours3_silence"]


def test_a_dataset_without_development_or_test_videos_is_told_before_training_and_measured_as_far_as_it_goes(tmp_path, monkeypatch, capsys):
    file = built(tmp_path, "train_web", {"sft": 3, "rl": 2, "dev": 0, "test": 0})
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "--profile", str(file)]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert "without records in dev.json (add some, or build from more videos): Figure 5 and the threshold baseline will be NOT RUN" in told
    assert cli.main(["evaluate", "--profile", str(file), "--model", "base", "--domains", "WEB,EGO", "--extras", "speed"]) == 0
    assert re.fullmatch(r"base: NOT RUN, as \S+ has no test questions .*\n", capsys.readouterr().out)
    assert not (RUN / "results" / "eval").exists()
    assert cli.main(["evaluate", "--profile", str(file), "--model", "base", "--domains", "WBE"]) == 2


def test_a_dataset_that_was_built_anew_is_a_reason_to_run(tmp_path):
    profile = load_profile("smoke").model_copy(update={"dataset": str(tmp_path)})
    stage, found = plan_of_runs.load_stages(Path("notebooks"))[0], []
    for key in ("first", "first", "second"):
        (tmp_path / "made_for.txt").write_text(key)
        found.append(plan_of_runs.components(stage, {}, profile, {}))
    assert found[0] == found[1] and {name for name in found[1] if found[1][name] != found[2][name]} == {"dataset"}


def test_a_dataset_without_rl_dialogues_stops_with_what_to_do(tmp_path, capsys):
    file = built(tmp_path, "train_web", {"sft": 2, "rl": 0, "dev": 1, "test": 0})
    capsys.readouterr()
    assert cli.main(["data", "--profile", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "holds no rl dialogues" in said and "build it from more videos" in said
