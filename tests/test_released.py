"""The authors' release as a dataset: pictures from HDF5 and image files, RL segments, offline samples; what is missing is in the ledger.

The miniature is written here in the schema of the released loader; the files themselves could not be seen.
"""

import json

import numpy as np
import pytest
from PIL import Image

from mmduet2kit import cli, released
from mmduet2kit.corpus.build import Dataset, read_index
from mmduet2kit.corpus.films import write_video
from mmduet2kit.corpus.readers import READERS
from mmduet2kit.corpus.video import fit_size, frames, resized
from mmduet2kit.dialogue import DEFAULT_SYSTEM, NO_REPLY, Dialogue, Turn
from mmduet2kit.files import STAMP, read_json, write_json, write_jsonl
from mmduet2kit.profile import load_profile
from mmduet2kit.train.sft import sft_dialogues

h5py = pytest.importorskip("h5py")
parquet = pytest.importorskip("pyarrow.parquet")

NAME = "half_multi_half_single_question-2_sec_per_frame"
RL = "live_whisperx-egoexo4d-egoexolearn0913-half_multi_half_single_question-2_sec_per_frame-20s_seg_as_example-0714-max_90_frames"


def dialogue(pictures, name="q1"):
    """Four pictures, two a turn: silent, then a reply."""
    said = [("system", "Watch."), ("user", "<image><image>What happens?"), ("assistant", NO_REPLY), ("user", "<image><image>"),
            ("assistant", "I must reply now.\nA dog runs in.")]  # fmt: skip
    return {"messages": [{"role": role, "content": text} for role, text in said], "images": [{"path": p} for p in pictures],
            "metadata": {"question_id": name, "video_id": f"video of {name}"}}  # fmt: skip


def segment(name="q9", moments=(8.0, 12.0)):
    """Two turns of history, one of them in the prompt to be answered, two rolled out."""
    prompt = [("system", "Watch."), ("user", "<image><image>What happens?"), ("assistant", "A cat."), ("user", "<image><image>")]
    truth = {"question_id": name, "answer": [{"content": "A dog.", "question": "What happens?", "reply_timespan": [5.0, 11.0]}],
             "model_pred_timestamps": list(moments), "prev_assistant_replies": ["A cat."]}  # fmt: skip
    return {"prompt": [{"role": role, "content": text} for role, text in prompt], "reward_model": {"style": "rule", "ground_truth": truth}}


def user_turns():
    def turn(*numbers, text=""):
        shown = [{"type": "image", "image": f"./data/datasets/ego/egoexolearn/v-0s_180s/{n:06d}.jpg"} for n in numbers]
        return {"content": shown + [{"type": "text", "text": text}] * bool(text)}

    return [turn(1, 3, text="What happens?"), turn(5, 7), turn(9, 11), turn(13)]


@pytest.fixture
def release(tmp_path):
    folder, rng = tmp_path / "release", np.random.default_rng(0)
    (folder / "sft").mkdir(parents=True)
    (folder / "rl").mkdir()
    pictures = np.repeat(np.repeat(rng.integers(0, 255, (8, 3, 4, 3), dtype=np.uint8), 30, axis=1), 40, axis=2)
    with h5py.File(folder / "dogs.hdf5", "w") as book:
        book["images"] = pictures
    with h5py.File(folder / "other.hdf5", "w") as book:
        book["frames"] = pictures
    ego = folder / "ego" / "egoexolearn" / "v-0s_180s"
    ego.mkdir(parents=True)
    for k in range(1, 14):
        Image.fromarray(pictures[k % 8]).save(ego / f"{k:06d}.jpg")
    books = [dialogue([f"./data/datasets/dogs.hdf5:::{k}" for k in (0, 2, 4, 6)]), dialogue([f"dogs.hdf5:::{k}" for k in (0, 2, 4, 60)], "q2"),
             dialogue([f"other.hdf5:::{k}" for k in range(4)], "q3"), dialogue([f"gone.hdf5:::{k}" for k in range(4)], "q4")]  # fmt: skip
    write_jsonl(folder / "sft" / f"live_whisperx-{NAME}-max_180s-sft-h5_images.jsonl", books)
    shown = [f"./data/datasets/ego/egoexolearn/v-0s_180s/{k:06d}.jpg" for k in (1, 3, 5, 7)]
    with open(write_jsonl(folder / "sft" / f"egoexolearn-{NAME}-sft.jsonl", [dialogue(shown, "q5")]), "a") as more:
        more.write("{broken\n")
    write_video(folder / "llava" / "clip.mp4", (np.full((90, 160, 3), 20 * k, np.uint8) for k in range(10)), 1)
    ask = [{"role": "user", "content": "<video>\nDescribe it."}, {"role": "assistant", "content": "It grows brighter."}]
    films = [{"video": "./data/datasets/llava/clip.mp4", "video_start": 2.0, "video_end": 6.0}, {"video": json.dumps(shown[:3])}, {"video": "llava/gone.mp4"}]
    write_jsonl(folder / "sft" / "llava_video_25k.jsonl", [{"messages": ask, "videos": [film]} for film in films] + [{"messages": ask[:1], "videos": films[:1]}])
    from pyarrow import Table

    parquet.write_table(Table.from_pylist([segment(), segment("q10"), segment("q11", (7.0, 11.0))]), folder / "rl" / f"{RL}-train.parquet")
    (folder / "rl" / f"{RL}-user_turns.json").write_text(json.dumps({"q9": user_turns(), "q11": user_turns()}))
    return folder, pictures


def build(folder, out):
    return cli.main(["data", "build", str(folder), "--corpus", "mmduet2-data", "--out", str(out), "--profile", "tiny", "--workers", "1"])


def test_dialogues_segments_and_offline_samples_with_their_pictures(release, tmp_path, capsys):
    (folder, pictures), out, tokens = release, tmp_path / "out", load_profile("tiny").video.visual_tokens
    assert build(folder, out) == 0
    dataset = Dataset(out)
    dataset.check(2.0)
    ego, web = dataset.sft(2.0)
    assert [d.domain for d in (ego, web)] == ["train_ego", "train_web"] and [t.reply for t in web.turns] == [NO_REPLY, "A dog runs in."]
    size = fit_size(160, 90, tokens)
    assert np.array_equal(dataset.frames(web), [resized(pictures[k], size) for k in (0, 2, 4, 6)])  # by index, not by order
    assert dataset.frames(ego).shape[0] == 4 and np.abs(dataset.frames(ego, [1]).astype(float) - resized(pictures[3], size)).mean() < 8
    (one,) = dataset.rl(2.0)
    assert (one.first, one.last, one.rollout_times(), one.history_replies()) == (1, 3, [8.0, 12.0], ["A cat."])
    assert one.gold[0].text == "A dog." and dataset.frames(one.dialogue).shape[0] == 7
    film, listed = dataset.offline("sft")
    assert film.turns[0].frames == (0, 1, 2, 3) and film.turns[0].text == "Describe it." and film.system == DEFAULT_SYSTEM
    assert np.array_equal(dataset.frames(film), [image for time, image in frames(folder / "llava" / "clip.mp4", 1.0, max_tokens=tokens) if 2 <= time < 6])
    assert len(listed.turns[0].frames) == 3
    rules = {row["rule"]: row for row in read_json(out / "ledger.json")}
    lost = {one["item"]: one["reason"] for one in rules["pictures are there"]["examples"]}
    assert set(lost) == {"q2", "q3", "q4", "llava_video_25k-3"} and "gone.hdf5 is not there" in lost["q4"] and "images" in lost["q3"]
    assert "does not exist" in lost["llava_video_25k-3"]
    reasons = [one["reason"] for one in rules["record can be read"]["examples"]]
    assert any("no user turns" in r for r in reasons) and any("do not fit pictures 2 s apart" in r for r in reasons) and any("no answer" in r for r in reasons)
    assert len(reasons) == 4 and "left out by 'pictures are there': 4 of 9" in capsys.readouterr().out
    assert read_json(out / "about.json")["sources"][0]["corpus"] == "mmduet2-data"


def test_what_is_made_is_not_made_again_and_gives_the_same_bytes(release, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert build(release[0], out) == 0
    before = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    saved, save = [], np.save
    monkeypatch.setattr(np, "save", lambda *given: (saved.append(given), save(*given)))
    read_index.cache_clear()
    assert build(release[0], out) == 0
    assert {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} == before and not saved
    capsys.readouterr()


def test_joined_with_a_benchmark_whose_frames_are_denser(release, tmp_path, capsys):
    """Each video's pictures keep their own interval; who made what is told only if it is known of all parts."""
    out, bench, both = tmp_path / "out", tmp_path / "bench", tmp_path / "both"
    assert build(release[0], out) == 0
    (bench / "frames").mkdir(parents=True)
    np.save(bench / "frames" / "v.npy", np.arange(4 * 28 * 28 * 3, dtype=np.uint8).reshape(4, 28, 28, 3))
    record = {"video": "v.mp4", "question_id": "Q", "domain": "WEB", "duration": 4.0, "conversation": [], "answer": []}
    for name, content in {"frames.json": {"interval": 1.0, "videos": {"v.mp4": "v.npy"}}, "ledger.json": [], "test.json": [record]}.items():
        write_json(bench / name, content)
    (bench / STAMP).write_text("bench")
    assert cli.main(["data", "join", str(both), str(out), str(bench)]) == 0
    alone, joined = Dataset(out), Dataset(both)
    joined.check(2.0)
    for a, b in ((alone.sft(2.0), joined.sft(2.0)), (alone.offline("sft"), joined.offline("sft"))):
        assert len(a) == len(b) and all(np.array_equal(alone.frames(x), joined.frames(y)) for x, y in zip(a, b))
    watched = Dialogue("", joined.benchmark("test")[0]["video"], 1.0, (Turn((0, 3)),))
    assert np.array_equal(joined.frames(watched), np.load(bench / "frames" / "v.npy")[[0, 3]]) and not joined.has("about.json")
    write_json(out / "test.json", [record])  # 2 s apart: no run could play it at 1 s
    assert cli.main(["data", "join", str(tmp_path / "no"), str(out), str(bench)]) == 2 and "2 s" in capsys.readouterr().err


def test_without_h5py_it_is_one_sentence(release, tmp_path, monkeypatch, capsys):
    find = released.find_spec
    monkeypatch.setattr(released, "find_spec", lambda name: None if name == "h5py" else find(name))
    assert build(release[0], tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert len(told.strip().splitlines()) == 1 and "pip install -e '.[dev]'" in told


def test_what_can_be_trained_on(release, tmp_path, capsys):
    """The encoder takes what was built: as many picture tokens as frames, labels on the reply alone."""
    assert build(release[0], tmp_path / "out") == 0
    dataset = Dataset(tmp_path / "out")
    found = sft_dialogues(load_profile("tiny"), dataset, 2.0, 1)
    assert len(found) >= 2 and all(len(dataset.frames(d)) == len(d.frame_indices()) > 0 for d in found)
    capsys.readouterr()


def test_nothing_usable_is_one_sentence(tmp_path, capsys):
    (tmp_path / "r" / "sft").mkdir(parents=True)
    (tmp_path / "r" / "sft" / "a.jsonl").write_text("null\n[1]\n")
    assert build(tmp_path / "r", tmp_path / "out") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert READERS["mmduet2-data"].seen == "UNVERIFIED"
