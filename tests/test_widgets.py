"""What can be played with: static pictures and tables with worked numbers, controls that redraw in place, errors in one sentence."""

import re
from types import SimpleNamespace

import ipywidgets
import numpy as np
import pytest
from IPython.display import HTML
from matplotlib.colors import to_rgb

from mmduet2kit import show, widgets
from mmduet2kit.corpus.dialogues import benchmark_record
from mmduet2kit.corpus.films import annotate, write_video
from mmduet2kit.corpus.world import plan
from mmduet2kit.dialogue import NO_REPLY, Dialogue, Gold, Turn
from mmduet2kit.errors import UserError
from mmduet2kit.evaluate import Evaluator
from mmduet2kit.files import write_jsonl
from mmduet2kit.profile import load_profile
from mmduet2kit.score import Reward, pauc
from mmduet2kit.train.rollout import Rollout

from played import FakeDataset, make_segments
import style  # of figures/
from tiny_models import tiny_folder, tiny_model  # noqa: F401

PROFILE = load_profile("tiny")


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, in order; the redrawn in place of what they replace."""
    out = []

    def display(thing, display_id=False):
        out.append(thing)
        return SimpleNamespace(update=lambda new, k=len(out) - 1: out.__setitem__(k, new)) if display_id else None

    monkeypatch.setattr(widgets, "display", display)
    return out


@pytest.fixture
def case():
    video = plan(PROFILE.world, "test", "WEB", 0)
    record = benchmark_record(annotate(video, "test"), np.random.default_rng(0), ("all",))
    return record, {(record["video"], scene.start): scene.onset for scene in video.scenes}


def alts(html):
    return re.findall(r'alt="([^"]*)"', html.data)


def controls(box):
    return {one.description: one for one in box.children}


def test_a_picture_alone_when_not_live_and_controls_above_it_when_live(shown):
    spec = {"at, s": (2, [1, 2, 3]), "who": ("a", ["a", "b"]), "text": ("hm", None), "turn": (4, range(1, 5))}
    draw = lambda *values: HTML(repr(values))  # noqa: E731
    widgets.explore(draw, spec, False)
    assert [one.data for one in shown] == ["(2, 'a', 'hm', 4)"]  # no widget, so no widget state in a saved notebook
    shown.clear()
    widgets.explore(draw, spec, True)
    box, picture = shown
    kinds = [type(one).__name__ for one in box.children]
    assert kinds == ["SelectionSlider", "Dropdown", "Text", "Play", "SelectionSlider"] and picture.data == "(2, 'a', 'hm', 4)"
    for name, value in (("at, s", 3), ("who", "b"), ("text", "so"), ("turn", 1)):
        controls(box)[name].value = value
    assert shown[1].data == "(3, 'b', 'so', 1)"


def test_a_button_draws_only_when_pressed_and_errors_are_one_sentence(shown):
    def draw(text):
        raise UserError(f"<{text}> is not there: check the name.")

    widgets.explore(draw, {"path": ("a", None)}, True, button="Watch")
    (box, _), first = shown, shown[1].data
    assert first == '<p role="alert">&lt;a&gt; is not there: check the name.</p>'
    controls(box)["path"].value = "b"
    assert shown[1].data == first
    assert isinstance(box.children[-1], ipywidgets.Button)
    box.children[-1].click()
    assert "&lt;b&gt; is not there" in shown[1].data


def test_the_pauc_explorer_equals_pauc_in_every_form(shown):
    widgets.pauc_explorer(True)
    box, by = shown[0], controls(shown[0])
    value = lambda replies, most, omega: f"PAUC {100 * pauc((0, 10), replies, most, omega):.1f}."  # noqa: E731
    found = alts(shown[1])
    assert [text.rpartition("; ")[2] for text in found] == [
        value([(3, 2), (6, 2)], 2, 0.5), value([(3, 2), (6, 2), (8, 1)], 2, 0.5), value([(3, 4), (6, 2), (8, 0)], 4, 0.5)]  # fmt: skip
    by["reply 3 at, s"].value = 6.5  # before the event's end the filter leaves it in
    assert "score 1 at 6.5 s" in alts(shown[1])[0]
    for k in (1, 2, 3):
        by[f"reply {k} is"].value = "no reply"
    assert [text.rpartition("; ")[2] for text in alts(shown[1])] == ["PAUC 25.0.", "PAUC 25.0.", "PAUC 12.5."]
    by["reply 2 is"].value, by["omega"].value = "right", 1.0
    assert all(text.endswith("PAUC 100.0.") for text in alts(shown[1])) and len(box.children) == 7


def test_the_reward_explorer_shows_each_term_under_each_variant(shown):
    def rows():
        cells = re.findall(r"<td[^>]*>(.*?)</td>", shown[1].data.rpartition("Its reward")[2])
        return {cells[k]: [float(cell) for cell in cells[k + 1 : k + 6]] for k in range(0, len(cells), 6)}

    widgets.reward_explorer(True)
    by = controls(shown[0])
    assert rows()["paper"][1:4] == [-0.25, -0.25, -0.25] and rows()["upstream"][1:4] == [-0.25, -1.0, -0.1]
    for name in ("at 6 s", "at 20 s"):
        by[name].value = NO_REPLY
    # right at 4 s of (0, 8) and at 14 s of (10, 18): half a span each at 0.5 of 4, half at 4 of 4
    assert rows()["paper"] == pytest.approx([0.5625, 0, 0, 0, 3 * 0.5625], rel=1e-2)
    by["at 8 s"].value = "the first gold answer"  # the span's end: inside for upstream, outside for the paper
    assert rows()["paper"][2] < 0 and rows()["upstream"][2] == 0


def test_the_player_shows_what_was_seen_and_said_so_far(shown, case, tiny_model):  # noqa: F811
    evaluator = Evaluator(PROFILE, FakeDataset(), *tiny_model)
    widgets.player(evaluator, case[0], True)
    turn = controls(shown[0])["turn"]
    (watched,) = evaluator.watch([case[0]], PROFILE.video.test_interval)
    assert turn.value == watched.decisions == len(watched.speaking) and all(0 <= chance <= 1 for _, chance in watched.speaking)
    assert shown[1].data.count("probability of speaking</td>") == turn.value  # in the data's table
    assert f"is {watched.speaking[-1][1]:.3f}." in alts(shown[1])[1]
    turn.value = 2
    now, chance = watched.speaking[1]
    assert f"Turn 2 at {now:g} s, its last frame; the probability of speaking is {chance:.3f}." in alts(shown[1])
    assert shown[1].data.count("probability of speaking</td>") == 2


def three_rollouts(times, totals=(1.0, 2.0, 3.0)):
    return [Rollout([], turns=[(times[0], text), (times[1], NO_REPLY)], reward=Reward(0, 0, 0, 0, total, {}))
            for text, total in zip((NO_REPLY, "A red circle.", "A blue ring."), totals)]  # fmt: skip


def test_a_groups_rollouts_are_pushed_by_the_sign_and_size_of_their_advantage():
    segment = make_segments()[0]
    times = segment.rollout_times()
    html = widgets.group(three_rollouts(times), segment, "Three rollouts.")
    assert "rollout 1 (-1.00) 0, rollout 2 (+0.00) 1, rollout 3 (+1.00) 1" in alts(html)[0]
    assert "silent" in html.data and f"{times[0]:g} s: A blue ring." in html.data
    assert "Tokens of" not in html.data  # without a tokenizer
    assert show.MARKS[1] != show.MARKS[-1] != show.MARKS[0]  # told apart by form, not by colour alone


def test_a_group_stands_behind_its_history_with_the_question():
    segment = next(s for s in make_segments() if s.history_replies())
    past, times = segment.dialogue.turns[: segment.first], segment.rollout_times()
    html = widgets.group(three_rollouts(times), segment, "Three rollouts.")
    question = next(turn.text for turn in past if turn.text)
    assert f"“{question}”" in alts(html)[0] and "none of the history (grey)" in alts(html)[0]
    assert f"replies: history (given) {len(segment.history_replies())}, rollout 1" in alts(html)[0]
    history = html.data[html.data.index("the history, given and not sampled") :].partition("</table>")[0]
    assert question in history and all(reply in history for reply in segment.history_replies())
    assert "A blue ring." not in history
    begun = next(s for s in make_segments() if not s.first)
    assert "history (given)" not in widgets.group(three_rollouts(begun.rollout_times()), begun, "No history.").data


def test_the_tokens_of_each_rollout_bear_the_sign_of_its_push(tiny_model):  # noqa: F811
    segment, tokenizer = make_segments()[0], tiny_model[1].tokenizer
    rollouts = three_rollouts(segment.rollout_times())
    for one in rollouts:
        for _, text in one.turns:
            one.add(tokenizer("user")["input_ids"])  # what the environment writes is not pushed
            ids = tokenizer(text)["input_ids"]
            one.add(ids, [0.0] * len(ids))
    html = widgets.group(rollouts, segment, "Three rollouts.", tokenizer)
    rows = re.findall(r"<tr>(.*?)</tr>", html.data.rpartition("Tokens of")[2])
    names, first, second = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    assert names == ["turn, s", "rollout 3 (+1.00)", "rollout 2 (+0.00)", "rollout 1 (-1.00)"]
    plain = lambda cell, sign: "".join(part[1:] for part in re.split(rf"(?:^| )(?=\{sign})", re.sub("<.*?>", "", cell)) if part)  # noqa: E731
    assert [plain(first[1], "+"), plain(second[1], "+"), plain(first[3], "-")] == ["A blue ring.", NO_REPLY, NO_REPLY]
    assert style.BLUE in first[1] and style.RED in first[3]
    same = three_rollouts(segment.rollout_times(), (2.0, 2.0, 2.0))
    same[0].add(tokenizer("A")["input_ids"], [0.0])
    assert ">·A<" in widgets.group(same, segment, "No variance.", tokenizer).data


def test_gold_spans_that_overlap_stand_at_alternating_heights(monkeypatch):
    drawn = []
    monkeypatch.setattr(show, "picture", lambda drawing, *_: drawn.append(drawing))
    for spans in ([(2, 6), (5, 9), (12, 14)], [(2, 5), (5, 9), (12, 14)]):
        gold = tuple(Gold(*span, "A thing.") for span in spans)
        show.timeline(Dialogue("d", "", 1.0, tuple(Turn((k,)) for k in range(15)), gold), {"replies": []}, "Spans.")
    over, apart = ([(bar.get_y(), bar.get_y() + bar.get_height()) for bar in one.axes[0].patches if bar.get_height() < 1 and bar.get_width()] for one in drawn)
    assert over[0][0] > over[1][1] and over[2] == over[0] and len(set(apart)) == 1


def test_before_and_after_marks_the_latency_to_the_onset(case, tmp_path, monkeypatch):
    record, onsets = case
    monkeypatch.chdir(tmp_path)
    (start, end), text = record["answer"][0]["reply_timespan"], record["answer"][0]["content"]
    onset = onsets[record["video"], start]
    for name, time in (("sft", end - 0.1), ("rl", onset + 0.4)):
        line = {"question_id": record["question_id"], "model_response_list": [
            {"role": "user", "content": "Q", "time": 0.0}, {"role": "assistant", "content": text, "time": time}]}  # fmt: skip
        write_jsonl(PROFILE.results / "eval" / "predictions" / f"{name}-seed1-WEB-1s.jsonl", [line])
    said = {name: widgets.predictions(PROFILE, name, 1) for name in ("base", "sft", "rl")}
    evaluator = Evaluator(PROFILE, FakeDataset(), None, None)
    html = widgets.compare(evaluator, record, said, onsets)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", html.data.rpartition("The first right reply")[2])
    assert cells[1:5] == [f"{onset:.3g}", "-", f"{end - 0.1 - onset:.3g}", "0.4"]
    assert "dotted: the onsets" in alts(html)[0]
    without = widgets.compare(evaluator, record, said, {})
    assert "onset" not in without.data and "replies: base 0, sft 1, rl 1" in alts(without)[0]


def test_an_own_video_is_watched_and_what_cannot_be_is_said(tiny_model, tmp_path):  # noqa: F811
    rng, evaluator = np.random.default_rng(0), Evaluator(PROFILE, None, *tiny_model)
    evaluator.model.config.visual_tokens = 4
    film = tmp_path / "a film.mp4"
    write_video(film, (rng.integers(0, 255, (56, 56, 3), np.uint8) for _ in range(40)), 8)
    html = widgets.own_video(evaluator, f" {film} ", "What moves?")
    assert "a film.mp4. “What moves?” 5 s; gold spans: 0; replies: 5." in alts(html)[0]  # random weights always speak
    assert "a film.mp4 (its first 3 s)." in alts(widgets.own_video(evaluator, str(film), "What moves?", most=3))[0]
    (tmp_path / "text.mp4").write_text("no video")
    for path, question, says in ((film, " ", "Nothing is asked"), (tmp_path / "no.mp4", "Q", "does not exist"), (tmp_path / "text.mp4", "Q", "text.mp4")):
        with pytest.raises(UserError, match=says):
            widgets.own_video(evaluator, str(path), question)


def test_colours_stand_out_from_a_white_page():
    """WCAG 2: letters at least 4.5 to 1 against their ground, marks and lines 3 to 1 (the sky blue only fills areas that have an edge)."""

    def against_white(color, ground=1.0):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return (ground + 0.05) / (np.dot((0.2126, 0.7152, 0.0722), parts) + 0.05)

    assert against_white("black") == pytest.approx(21) and against_white("#767676") == pytest.approx(4.54, abs=0.01)
    stripe = ((0xF5 / 255 + 0.055) / 1.055) ** 2.4  # JupyterLab and the pages grey every second row of a table
    assert all(against_white(color, stripe) >= 4.5 for color in (*show.COLOR.values(), style.RED))
    assert all(against_white(color) >= 3 for color in (style.BLUE, style.ORANGE, style.GREEN, style.RED, style.PURPLE, style.GREY))
