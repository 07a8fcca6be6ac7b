"""`mmduet2 data look | card | export`: a page to look at, a card with counted numbers, a copy that `datasets.load_dataset` reads."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import load_dataset
from PIL import Image
from pyarrow import parquet

from mmduet2kit import cli, export
from mmduet2kit.corpus.build import Dataset, read_index
from mmduet2kit.corpus.dialogues import place_answers
from mmduet2kit.dialogue import NO_REPLY, Dialogue, Gold, Segment, to_rl_row, to_sft_row, user_turns
from mmduet2kit.errors import UserError
from mmduet2kit.files import STAMP, read_jsonl, write_atomic, write_json, write_jsonl
from mmduet2kit.report import script

page = script("dataset")


def spoken(name, domain, kind, *golds, frames=8, asked=((0.0, "What <b>now</b>?"),)):
    """A dialogue of two frames a turn, 2 s apart, replies at the ends of its spans."""
    gold = tuple(Gold(start, end, text, asked[-1][1]) for start, end, text in golds)
    return place_answers(Dialogue(f"{name}-{kind}", f"{name}.mp4", 2.0, tuple(user_turns(frames, 2, 2.0, list(asked), False)), gold, domain, kind))


@pytest.fixture
def made(tmp_path):
    """Three SFT dialogues: 16 s of web (4 turns, 1 reply), 16 s of web (2 replies, 2 questions), 24 s of ego (6 turns, 2 replies)."""
    folder, rng = tmp_path / "made", np.random.default_rng(0)
    one = spoken("one", "train_web", "1QnA", (1.0, 9.0, "A | dog."))
    two = spoken("two", "train_web", "nQnA", (1.0, 5.0, "A cat."), (5.0, 13.0, "<script>alert(1)</script>"), asked=((0.0, "What?"), (8.0, "Who?")))
    ego = spoken("ego", "train_ego", "1QnA", (1.0, 5.0, "She cuts."), (9.0, 17.0, "She stirs."), frames=12)
    write_jsonl(folder / "sft_2s.jsonl", map(to_sft_row, (one, two, ego)))
    write_jsonl(folder / "rl_2s.jsonl", [to_rl_row(Segment(ego, 2, 5, ego.gold[1:]))])
    (folder / "offline_sft.jsonl").touch()
    write_json(folder / "dev.json", [])
    record = {"video": "one.mp4", "question_id": "one=Q", "domain": "WEB", "duration": 15.0, "conversation": [{"role": "user", "content": "What?", "time": 0.0}],
              "answer": [{"role": "assistant", "content": "A dog.", "related_timespan": [1.0, 9.0], "reply_timespan": [1.0, 10.0]}]}  # fmt: skip
    write_json(folder / "test.json", [record])
    (folder / "frames").mkdir()
    for d in (one, two, ego):
        pictures = np.repeat(np.repeat(rng.integers(0, 255, (len(d.frame_indices()), 4, 8, 3), dtype=np.uint8), 56, axis=1), 56, axis=2)
        np.save(folder / "frames" / f"{d.video}.npy", pictures)
    write_json(folder / "frames.json", {"interval": 2.0, "videos": {f"{n}.mp4": f"{n}.mp4.npy" for n in ("one", "two", "ego")}})
    scene = lambda n, domain, seconds: {"video": f"{n}.mp4", "name": n, "domain": domain, "duration": seconds, "scenes": [], "subtitles": []}  # noqa: E731
    write_jsonl(folder / "scenes" / "sft.jsonl", [scene("one", "train_web", 15.0), scene("two", "train_web", 16.0)])
    write_jsonl(folder / "scenes" / "rl.jsonl", [scene("ego", "train_ego", 24.0)])
    dropped = [{"item": "<img src=x>.mp4", "reason": "no frame | of it"}]
    write_json(folder / "ledger.json", [{"rule": "scene has a caption", "in": 9, "out": 9, "examples": []}, {"rule": "video decodes", "in": 4, "out": 3, "examples": dropped}])
    source = {"corpus": "egoexolearn", "annotator": "llm", "model": "m-1", "kit": "0.1.0", "profile": "tiny", "settings": {"video": {"visual_tokens": 128}}}
    write_json(folder / "about.json", {"sources": [source]})
    write_atomic(folder / STAMP, "0123456789abcdef")
    read_index.cache_clear()
    return folder


def test_the_page_shows_dialogues_beside_their_frames(made, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert cli.main(["data", "look", str(made), "--out", str(out)]) == 0 and str(out) in capsys.readouterr().out
    text = out.read_text()
    assert "<script" not in text and "<img src=x>" not in text and "&lt;script&gt;" in text  # nobody's text is markup
    assert not re.search(r'(src|href)="(?!data:|#)', text)  # nothing is fetched
    assert "1 (25.0 %)" in text and "no frame | of it" in text and "scene has a caption (9)" in text
    assert text.count("<article") == 3 and "NO REPLY is 64.3 percent" in text  # 9 of 14 turns
    one = text[text.index("one-1QnA</h3>") :]
    assert "NO REPLY, 2 turns" in one and "1 s to 9 s" in one and "8 s to 16 s" in one
    assert text.count("data:image/jpeg") == sum(len(b["pictures"]) for d in Dataset(made).sft(2.0) for b in page.shown(Dataset(made), d)["blocks"])
    again = tmp_path / "again.html"
    assert cli.main(["data", "look", str(made), "--out", str(again)]) == 0 and again.read_bytes() == out.read_bytes()


def test_the_sample_goes_round_domains_and_kinds():
    many = [Dialogue(f"{domain}{kind}{k}", "v", 2.0, (), (), domain, kind) for domain, n in (("web", 50), ("ego", 2)) for kind in ("1QnA", "nQnA") for k in range(n)]
    picked = page.sample(many, 12)
    assert [(d.domain, d.kind) for d in picked].count(("ego", "nQnA")) == 2 and len({d.id for d in picked}) == 12
    assert picked == page.sample(many, 12) and len(page.sample(many, 1000)) == 104 and len(page.sample(many, 3)) == 3


def test_turns_of_silence_are_one_block():
    d = spoken("x", "w", "1QnA", (9.0, 13.0, "Yes."), frames=16)
    found = [(b["from"], b["until"], b["turns"], b["reply"]) for b in page.blocks(d)]
    assert found == [(0, 4.0, 1, NO_REPLY), (4.0, 8.0, 1, NO_REPLY), (8.0, 12.0, 1, "Yes."), (12.0, 32.0, 5, NO_REPLY)]


def test_a_long_dialogue_stays_small_and_lost_pictures_are_a_sentence(made):
    rng, long = np.random.default_rng(1), spoken("long", "train_ego", "1QnA", *((20.0 * k + 1, 20.0 * k + 9, "So.") for k in range(9)), frames=90)
    noise = np.repeat(np.repeat(rng.integers(0, 255, (90, 28, 56, 3), dtype=np.uint8), 8, axis=1), 8, axis=2)
    np.save(made / "frames" / "long.npy", noise)
    index = json.loads((made / "frames.json").read_text())
    write_json(made / "frames.json", index | {"videos": index["videos"] | {"long.mp4": "long.npy", "lost.mp4": "lost.npy"}})
    read_index.cache_clear()
    uris = [uri for b in page.shown(Dataset(made), long)["blocks"] for _, uri in b["pictures"]]
    assert 20 <= len(uris) <= page.PICTURES and sum(map(len, uris)) < 250_000  # 12 such dialogues stay under 3 MB, of coarse noise
    lost = page.shown(Dataset(made), spoken("lost", "w", "1QnA", (1.0, 9.0, "A.")))
    assert "lost.npy" in lost["problem"] and all(not b["pictures"] for b in lost["blocks"])


def front(text):
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(head), body


def test_every_number_of_the_card_is_counted(made):
    assert cli.main(["data", "card", str(made)]) == 0
    head, body = front((made / "README.md").read_text())
    assert head["license"] == "mit" and head["size_categories"] == ["n<1K"] and head["task_categories"] == ["video-text-to-text"]
    assert [c["config_name"] for c in head["configs"]] == ["sft_2s", "rl_2s", "benchmark"] and head["configs"][0]["default"]
    rows = {line.split("|")[1].strip(): [x.strip() for x in line.split("|")[2:-1]] for line in body.splitlines() if line.startswith("| `")}
    assert rows["`Web Videos`"] == ["2", "15.5", "2", "1.00", "1.50", "62.5"]  # 3 + 2 silent of 8 turns
    assert rows["`Ego Centric`"] == ["1", "24.0", "1", "1.00", "2.00", "66.7"]
    assert "64.3 percent of 14 assistant turns" in body and "2 1QnA, 1 nQnA" in body and "visual_tokens `128`" in body and "model `m-1`" in body
    assert "| video decodes | 4 | 1 | `<img src=x>.mp4` `no frame of it` |" in body and "OpenGVLab" not in body and "repository: MIT" in body
    assert "`0123456789ab`" in body and not re.search(r"\n{4}", body)


def test_a_card_says_what_it_does_not_know(made, capsys):
    write_json(made / "about.json", {"sources": [{"corpus": "procedural", "annotator": "template", "kit": "0.1.0", "profile": "tiny", "settings": {}}]})
    head, body = front(page.card(made, None).read_text())
    assert head["license"] == "apache-2.0" and "drawn by a program" in body and "written by a model" not in body
    (made / "about.json").unlink()
    (made / "ledger.json").unlink()
    head, body = front(page.card(made, None).read_text())
    assert head["license"] == "other" and "The dataset does not say" in body and "no filter ledger" in body
    (made / "about.json").write_text("[]")
    assert cli.main(["data", "card", str(made)]) == 2 and "about.json is damaged" in capsys.readouterr().err


def test_a_benchmark_alone_has_a_card_a_page_and_a_copy(made, tmp_path):
    for path in (*made.glob("sft_*"), *made.glob("rl_*"), *made.glob("scenes/*")):
        path.unlink()
    assert cli.main(["data", "card", str(made)]) == 0
    head, body = front((made / "README.md").read_text())
    assert [c["config_name"] for c in head["configs"]] == ["benchmark"] and head["size_categories"] == ["n<1K"]
    assert "1 test questions" in body and "Table 1" not in body and "nothing to train on" in body
    assert "| test | `WEB` | 1 | 1 | 15.0 | 1 | 9.0 | 1.0 |" in body and not re.search(r"\n{4}", body)
    html = page.look(made, None, 3).read_text()
    assert "1 of 1 test questions" in html and "A dog." in html and "What?" in html and "which the model answers" in html and "data:image/jpeg" in html
    out = export.export(made, tmp_path / "out", "png", 1)
    (row,) = load_dataset(str(out), split="test", cache_dir=str(tmp_path / "cache"))
    assert row["question_id"] == "one=Q" and len(row["images"]) == 8


@pytest.mark.parametrize("corpora, licence", [(["procedural"], "apache-2.0"), (["live-whisperx"], "other"), (["egoexolearn", "procedural"], "other"),
                                              (["own videos"], "other"), ([], "other")])  # fmt: skip
def test_a_licence_is_named_only_where_the_corpora_name_one(corpora, licence):
    assert page.licence([{"corpus": one} for one in corpora]) == licence


def test_datasets_reads_the_datasets_own_files_by_its_card(made, tmp_path):
    page.card(made, None)
    rows = load_dataset(str(made), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["messages"] for row in rows] == [row["messages"] for row in read_jsonl(made / "sft_2s.jsonl")]
    assert load_dataset(str(made), "rl_2s", split="train", cache_dir=str(tmp_path / "cache"))[0]["ability"] == "proactive"
    assert load_dataset(str(made), "benchmark", split="test", cache_dir=str(tmp_path / "cache"))[0]["question_id"] == "one=Q"


def test_an_export_comes_back_with_the_same_messages_and_pictures(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "ROWS", 2)
    monkeypatch.setattr(export, "GROUP", 1)
    out = tmp_path / "out"
    assert cli.main(["data", "export", str(made), str(out), "--pictures", "png", "--workers", "1"]) == 0
    assert sorted(p.name for p in (out / "data" / "sft_2s").iterdir()) == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert parquet.ParquetFile(out / "data" / "sft_2s" / "train-00000-of-00002.parquet").num_row_groups == 2  # a group is what memory holds
    dataset, rows = Dataset(made), load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 3
    for row, dialogue in zip(rows, dataset.sft(2.0)):
        assert row["messages"] == to_sft_row(dialogue)["messages"] and row["image_times"] == [2.0 * k for k in dialogue.frame_indices()]
        assert sum(m["content"].count("<image>") for m in row["messages"]) == len(row["images"])
        assert np.array_equal([np.asarray(image) for image in row["images"]], dataset.frames(dialogue))
        assert [(g["start"], g["end"], g["text"]) for g in row["metadata"]["gold"]] == [(g.start, g.end, g.text) for g in dialogue.gold]
    (segment,) = load_dataset(str(out), "rl_2s", split="train", cache_dir=str(tmp_path / "cache"))
    assert (segment["first_turn"], segment["last_turn"], segment["scored"][0]["text"]) == (2, 5, "She stirs.")
    (record,) = load_dataset(str(out), "benchmark", split="test", cache_dir=str(tmp_path / "cache"))
    assert len(record["images"]) == 8 and record["answer"][0]["reply_timespan"] == [1.0, 10.0]
    assert front((out / "README.md").read_text())[0]["configs"][0]["data_files"] == [{"split": "train", "path": "data/sft_2s/train-*.parquet"}]
    capsys.readouterr()


def test_a_killed_export_goes_on_with_the_same_bytes(made, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ROWS", 1)
    out = export.export(made, tmp_path / "out", "jpeg", 1)
    before = {p: p.read_bytes() for p in out.rglob("*.parquet")}
    lost = out / "data" / "sft_2s" / "train-00001-of-00003.parquet"
    lost.unlink()
    half = lost.with_name(f".{lost.name}.1.partial")
    half.touch()  # as a kill leaves it
    kept, times = set(before) - {lost}, {p: p.stat().st_mtime_ns for p in before if p != lost}
    encode, fails = export.encoded, iter([True])
    monkeypatch.setattr(export, "encoded", lambda *given: encode(*given) if not next(fails, False) else (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export.export(made, out, "jpeg", 1)
    assert {p for p in out.rglob("*") if p.suffix == ".parquet"} == kept and not list(out.rglob("*.partial"))
    export.export(made, out, "jpeg", 1)
    assert {p: p.read_bytes() for p in out.rglob("*.parquet")} == before and all(p.stat().st_mtime_ns == at for p, at in times.items())
    (row, *_) = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    difference = np.abs(np.stack([np.asarray(i, float) for i in row["images"]]) - Dataset(made).frames(next(iter(Dataset(made).sft(2.0)))))
    assert isinstance(row["images"][0], Image.Image) and difference.mean() < 3


@pytest.mark.parametrize("words", [["look"], ["look", "nowhere"], ["card", "{tmp}"], ["look", "{made}", "--count", "0"], ["export", "{made}"], ["export", "{made}", "{made}"],
                                   ["export", "{tmp}", "{tmp}/x"]])  # fmt: skip
def test_wrong_use_is_one_sentence_and_loses_nothing(words, made, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    before = sorted(p for p in made.rglob("*"))
    assert cli.main(["data", *(w.replace("{made}", str(made)).replace("{tmp}", str(tmp_path / "empty")) for w in words)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1 and sorted(p for p in made.rglob("*")) == before


def test_frames_that_are_lost_stop_an_export_with_one_sentence(made, tmp_path):
    (made / "frames" / "two.mp4.npy").unlink()
    with pytest.raises((UserError, OSError), match=r"two\.mp4\.npy"):
        export.export(made, tmp_path / "out", "png", 1)
    assert not list(Path(tmp_path / "out").rglob("*.parquet")) or not list(Path(tmp_path / "out").rglob("README.md"))
