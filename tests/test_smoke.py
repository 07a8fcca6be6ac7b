"""What `./run_all.sh run --profile smoke` left behind: every stage done, every file there, nothing compared with the paper."""

import re
from pathlib import Path

import pytest

from mmduet2kit.files import read_csv, read_json

RUN = Path("runs/smoke")
pytestmark = pytest.mark.smoke
STAGES = sorted(path.stem for path in Path(__file__).parents[1].glob("notebooks/[0-9]*.ipynb"))


def test_every_stage_ran_and_is_in_the_manifest():
    manifest = read_json(RUN / "manifest.json")
    assert len(STAGES) == 10
    for stage in STAGES:
        last = manifest["stages"][stage][-1]
        assert last["status"] == "done" and last["minutes"] > 0 and last["peak_gb"] < 6, stage
        for suffix in (".ipynb", ".html"):
            assert (RUN / "executed" / f"{stage}{suffix}").stat().st_size > 1000
    assert manifest["versions"]["trl"] and manifest["seeds"] == [1]


def test_every_table_is_there_and_nothing_is_left_out():
    for number in range(1, 8):
        rows = read_csv(RUN / "results" / f"table{number}.csv")
        assert rows
        assert "NOT RUN" not in {row.get("status") for row in rows}, number
    assert len(read_csv(RUN / "results" / "per_video.csv")) > 50
    for row in read_csv(RUN / "results" / "train_rl_seed1.csv"):
        assert float(row["logprob_gap"]) < 1e-4  # rollout and training see the same thing
        assert 0 <= float(row["groups_without_variance"]) <= 1


def test_smoke_numbers_never_stand_beside_the_papers():
    assert {claim["verdict"] for claim in read_json(RUN / "claims.json")} == {"NOT RUN"}
    page = (RUN / "report.html").read_text()
    assert "these numbers mean nothing" in page
    assert not re.search(r"(?<![\w.-])53\.3(?!\d)", page)  # the paper's WEB PAUC
    assert not re.search(r"""(src|href)=["']?https?:|url\(["']?https?:|@import""", page)  # one file, no network


def test_the_reports_links_lead_to_files_of_the_run():
    links = set(re.findall(r'href="((?:results|executed|figures)/[^"]+)"', (RUN / "report.html").read_text()))
    lacking = {link for link in links if not (RUN / link).is_file()}
    assert len(links) > 30 and lacking <= {"results/silence.csv", "executed/10_report.html"}  # what smoke leaves out; what made the page


PLAYED = {"04": ["reward: score 4 at 3 s, score 2 at 6 s, score 0 at 8 s; PAUC 21.9.", "A rollout over two gold spans."],
          "05": ["The group of the SFT model.", "The group of the RL model, on the same prompt.", "Prompt 1, the rl model."],
          "06": ["what each model says of it", "watched by base, sft, rl.", "dotted: the onsets", "the probability of speaking is 0.", ".mp4. "]}  # fmt: skip


@pytest.mark.parametrize("number", PLAYED)
def test_what_can_be_played_with_stands_as_a_picture_without_a_kernel(number):
    (stage,) = (stage for stage in STAGES if stage.startswith(number))
    pictures = re.findall(r'<img[^>]*alt="([^"]*)"', (RUN / "executed" / f"{stage}.html").read_text())
    assert all(any(wanted in alt for alt in pictures) for wanted in PLAYED[number])
    assert "application/vnd.jupyter.widget" not in (RUN / "executed" / f"{stage}.ipynb").read_text()  # nothing that only a kernel shows


def test_models_are_ordinary_folders_and_no_stage_left_a_process():
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    folder = RUN / "models" / "rl-seed1"
    assert Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).num_parameters() > 1e5
    assert AutoProcessor.from_pretrained(folder).tokenizer.convert_tokens_to_ids("<|im_end|>") > 0
