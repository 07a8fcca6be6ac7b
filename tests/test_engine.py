"""Silence verified ahead, decoding with fixed shapes, forgetting: all change the cost of a turn and not what is said."""

import numpy as np
import pytest
import torch

from mmduet2kit import cache
from mmduet2kit.attention import WINDOWS, grouped_attention
from mmduet2kit.cache import RaggedCache
from mmduet2kit.chat import ChatEncoder
from mmduet2kit.dialogue import NO_REPLY, PROACTIVE_SYSTEM, Dialogue, Turn
from mmduet2kit.engines import Session, StreamEngine
from mmduet2kit.errors import UserError
from mmduet2kit.model import load
from mmduet2kit.stream import Greedy, Sampler, Spoken, Stream, run

import cost
from played import frames_for, full_logits, pixels, random_dialogue, teach_silence
from tiny_models import tiny_folder  # noqa: F401

START = "Answer."


@pytest.fixture(scope="module")
def taciturn(tiny_folder):  # noqa: F811
    """A model that has learnt to be silent at some turns: an untrained one would never say NO REPLY."""
    return teach_silence(*load(tiny_folder))


def play(pair, dialogues, frames, choose, most=6, **options):
    model, processor = pair
    encoder = ChatEncoder(processor.tokenizer, 4)
    stream = Stream(model, encoder, processor.image_processor, len(dialogues), **options)
    for row in range(len(dialogues)):
        stream.begin(row, encoder.system(START))
    features = [stream.see(f) for f in frames]
    return run(stream, [d.turns for d in dialogues], features, choose(), most), stream


def cases(seed, lengths=(6, 3, 9)):
    rng = np.random.default_rng(seed)
    dialogues = [random_dialogue(rng, n) for n in lengths]
    return dialogues, [frames_for(rng, d) for d in dialogues]


CHOICES = {"greedy": Greedy, "sampled": lambda: Sampler([(3, r) for r in range(3)], 1.2),
           "few": lambda: Sampler([(4, r) for r in range(3)], 1.5, 5)}  # fmt: skip


@pytest.mark.parametrize("most", [1, 2, 3, 8])
@pytest.mark.parametrize("how", CHOICES)
def test_verified_silence_is_what_would_have_been_decoded(taciturn, how, most):
    dialogues, frames = cases(11)
    fast, stream = play(taciturn, dialogues, frames, CHOICES[how], most)
    slow, plain = play(taciturn, dialogues, frames, CHOICES[how], most, ahead=False)
    for mine, theirs in zip(fast, slow, strict=True):
        assert [s.ids for s in mine] == [s.ids for s in theirs]
        np.testing.assert_allclose([x for s in mine for x in s.logps], [x for s in theirs for x in s.logps], atol=2e-5)
    ends = [[int(n) + len(p) for n, p in zip(one.cache.lengths, one.pending)] for one in (stream, plain)]
    assert ends[0] == ends[1]  # a reply's last token may be fed already, or be pending
    assert stream.counts["silent"] == plain.counts["silent"] and plain.counts["accepted"] == 0
    if most == 8:
        assert stream.counts["accepted"] == stream.counts["silent"] > 0
        assert stream.counts["decisions"] > stream.counts["silent"]  # both ways were tried
        assert stream.counts["forwards"] < plain.counts["forwards"]


@pytest.mark.parametrize("most", [1, 8])  # 1: the cap ends a turn within NO REPLY
@pytest.mark.parametrize("how", CHOICES)
def test_the_probability_of_speaking_is_that_of_a_full_forward(taciturn, how, most):
    """At each turn, whatever was said: log P(NO REPLY and the end token) by transformers' own forward over the session so far."""
    dialogues, frames = cases(11)
    said, stream = play(taciturn, dialogues, frames, CHOICES[how], most)
    encoder, spoke = stream.encoder, []
    for dialogue, images, row in zip(dialogues, frames, said, strict=True):
        ids, answers, seen = encoder.system(START), iter(row), 0
        for turn in dialogue.turns:
            ids, seen = ids + encoder.user(turn), seen + len(turn.frames)
            if turn.frames:
                one, ids = next(answers), ids + encoder.header
                logits = full_logits(*taciturn, ids + encoder.silence, images[:seen], encoder.image_pad)
                logps = (logits / CHOICES[how]().temperature).log_softmax(-1)
                expected = sum(float(logps[len(ids) - 1 + k, token]) for k, token in enumerate(encoder.silence))
                assert one.silence == pytest.approx(expected, abs=1e-4)
                assert one.speaking == pytest.approx(1 - np.exp(expected), abs=1e-4)
                spoke.append(one.text != NO_REPLY)
                ids += one.ids + encoder.closing(one.ids)
    assert len(spoke) > 10 and set(spoke) == ({True, False} if most > 1 else {True})
    plain, _ = play(taciturn, dialogues, frames, CHOICES[how], most, ahead=False)
    assert {one.speaking for row in plain for one in row} == {None} and Spoken(score=0.7).speaking == 0.7


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("how", CHOICES)
def test_fixed_shapes_decode_the_same_tokens(taciturn, how, ahead):
    dialogues, frames = cases(12)
    ragged, _ = play(taciturn, dialogues, frames, CHOICES[how], ahead=ahead)
    fixed, stream = play(taciturn, dialogues, frames, CHOICES[how], ahead=ahead, graphs=True, capacity=512)
    assert {1, 32} <= set(stream.replays) and 0 < stream.counts["replayed"] < stream.counts["forwards"]  # turns with frames, too
    assert [[s.ids for s in row] for row in ragged] == [[s.ids for s in row] for row in fixed]


def test_an_engine_uses_its_recorded_forwards_again(taciturn):
    """Sessions after sessions in the same buffers: what earlier ones left there is never read; nor by copies, which have their own."""
    model, processor = taciturn
    encoder, (dialogues, frames) = ChatEncoder(processor.tokenizer, 4), cases(14, (6, 3, 9, 5))
    sessions = [Session(encoder.system(START), some, one.turns) for one, some in zip(dialogues, frames)]
    again, fresh = (StreamEngine(model, processor.image_processor, **options) for options in ({"graphs": True, "capacity": 512}, {}))
    for some, copies in (([0], 1), ([1], 1), ([2, 3], 1), ([0], 2), ([1, 0], 1)):
        said = [engine.play(encoder, [sessions[i] for i in some], Greedy(), 6, copies) for engine in (again, fresh)]
        assert [[one.ids for one in row] for row in said[0]] == [[one.ids for one in row] for row in said[1]]
    assert set(again.fixed) == {1, 2} and again.fixed[1][1][32].cache is again.fixed[1][0]
    assert again.counts["replayed"] > 20 and not fresh.counts["replayed"]


@pytest.mark.parametrize("capacity", [0, 40, 300])
def test_fixed_shapes_follow_a_cache_that_grows(taciturn, monkeypatch, capacity):
    """Whatever was recorded for buffers that have moved since is recorded anew."""
    grown, grow, made, new = [], RaggedCache._grown, [], cache.Replay.__init__
    monkeypatch.setattr(RaggedCache, "_grown", lambda self, old, like: grown.append(old) or grow(self, old, like))
    monkeypatch.setattr(cache.Replay, "__init__", lambda self, *args: new(self, *args) or made.append((args[2], self.room)))
    dialogues, frames = cases(12, (30, 8, 25))
    ragged, _ = play(taciturn, dialogues, frames, CHOICES["greedy"])
    grown.clear()
    fixed, stream = play(taciturn, dialogues, frames, CHOICES["greedy"], graphs=True, capacity=capacity)
    assert [[s.ids for s in row] for row in ragged] == [[s.ids for s in row] for row in fixed]
    assert sum(old is not None for old in grown) and len(set(made)) == len(made) > len({width for width, _ in made})
    assert stream.cache.room >= int(stream.cache.lengths.max()) > 300 and stream.counts["replayed"] > 0.8 * stream.counts["forwards"]


def test_an_engine_makes_room_for_what_it_is_to_play(taciturn, monkeypatch):
    model, processor = taciturn
    encoder, (dialogues, frames) = ChatEncoder(processor.tokenizer, 4), cases(14, (6, 3))
    sessions = [Session(encoder.system(START), some, one.turns) for one, some in zip(dialogues, frames)]
    grown, grow = [], RaggedCache._grown
    monkeypatch.setattr(RaggedCache, "_grown", lambda self, old, like: grown.append((old, self.capacity)) or grow(self, old, like))
    engine = StreamEngine(model, processor.image_processor, graphs=True)
    sure = max(len(one.start) + sum(len(encoder.user(turn)) for turn in one.turns) for one in sessions)
    engine.play(encoder, sessions, Greedy(), 6, 2)
    assert grown[0] == (None, 5 * sure // 4) == (None, int(cost.ROOM * sure))  # as doctor plans it
    assert engine.counts["replayed"] > 0 and not engine.fixed and engine.play(encoder, [], Greedy(), 6) == []


def test_forgetting_equals_a_fresh_session_that_was_told_what_is_left(taciturn):
    model, processor = taciturn
    encoder = ChatEncoder(processor.tokenizer, 4)
    (dialogue,), (frames,) = cases(13, (60,))
    stream = Stream(model, encoder, processor.image_processor, 1, limit=260)
    stream.begin(0, encoder.system(START))
    used, most = 0, 0
    for turn in dialogue.turns:
        features = stream.see(frames[used : used + len(turn.frames)]) if turn.frames else None
        used += len(turn.frames)
        said = stream.turn([0], [turn], [features], Greedy(), 6)
        most = max(most, int(stream.cache.lengths[0]))
        if not turn.frames:
            continue
        told = encoder.system(START)  # what the definition says is left, by transformers' own forward
        left, kept = stream.heard[0], []
        for one in left:
            shown = len(one.features) if one.features is not None else 0
            kept.append(shown)
            told += encoder.user(type(turn)(tuple(range(shown)), one.text))
            told += encoder.header + one.reply if one.reply is not None else []
            told += encoder.newline if one.reply is not None and one.reply[-1] == encoder.im_end else []
            told += [encoder.im_end] + encoder.newline if one.reply is not None and one.reply[-1] != encoder.im_end else []
        seen = frames[used - sum(kept) : used]
        logits = full_logits(model, processor, told, seen, encoder.image_pad)
        (spoken,) = said.values()
        end = len(told) - 1 - (spoken.ids[-1] != encoder.im_end)
        for k, token in enumerate(spoken.ids):
            row = logits[end - len(spoken.ids) + k - 1]
            row[encoder.never_sampled] = -torch.inf
            assert int(row.argmax()) == token
    assert most <= 260 and stream.counts["re-encoded"] >= 3 and stream.counts["forgotten"] > 20
    print(stream.counts, [one.text for one in stream.heard[0]][:4])
    assert any(one.text and one.text.startswith("What") for one in stream.heard[0])  # the question stays


def test_words_alone_can_fill_a_stream_and_the_question_is_the_last_to_go(taciturn):
    model, processor = taciturn
    encoder = ChatEncoder(processor.tokenizer, 4)
    stream = Stream(model, encoder, processor.image_processor, 1, limit=150)
    stream.begin(0, encoder.system(START))
    frames = np.zeros((1, 56, 56, 3), np.uint8)
    turn = random_dialogue(np.random.default_rng(0), 1).turns[0]
    for k in range(30):
        words = "What things show up?" if k == 0 else None
        stream.turn([0], [type(turn)((0,), words)], [stream.see(frames)], Sampler([(0, k)], 3.0), 8)
        assert int(stream.cache.lengths[0]) <= 150
    assert stream.counts["turns"] > 0 and stream.heard[0][0].text == "What things show up?"
    with pytest.raises(UserError, match="does not fit a context of 150"):
        stream.turn([0], [type(turn)(tuple(range(40)))], [stream.see(np.repeat(frames, 40, 0))], Greedy(), 8)


# --- The paper's Appendix A: silence without a token ---------------------------------------------------------------

def test_in_the_format_frames_silence_leaves_no_token(taciturn):
    encoder = ChatEncoder(taciturn[1].tokenizer, 4, "frames")
    im_end, start = encoder.im_end, encoder.im_start

    def word(text):
        return list(encoder._text(text))

    turns = (Turn((0,), "What?", NO_REPLY), Turn((1,), None, NO_REPLY), Turn(text="Now?"), Turn((2,), None, "A ring."),
             Turn((3,), None, NO_REPLY), Turn((4,), None, NO_REPLY))  # fmt: skip
    encoded = encoder.encode(Dialogue("d", "v", 1.0, turns), no_reply_weight=0.5)
    frame, user, begin = encoder.frame, [start, *word("user\n")], encoder.system(PROACTIVE_SYSTEM)
    reply = [im_end, *encoder.newline, start, *word("assistant\n"), *word("A ring."), im_end, *encoder.newline]
    assert encoded.ids == begin + user + frame + word("What?") + frame + word("Now?") + frame + reply + user + frame + frame
    learnt = [(token, weight) for token, label, weight in zip(encoded.ids, encoded.labels, encoded.weights) if label >= 0]
    more = (encoder.vision_start, 0.5)  # after the first turn, and after the fifth; not where words follow
    assert learnt == [more, (im_end, 1.0), *[(token, 1.0) for token in [*word("A ring."), im_end]], more]


@pytest.mark.parametrize("limit", [0, 240])
def test_the_stream_in_the_format_frames_equals_a_full_forward(tiny_folder, limit):  # noqa: F811
    model, processor = teach_silence(*load(tiny_folder), form="frames")
    encoder = ChatEncoder(processor.tokenizer, 4, "frames")
    (dialogue,), (frames,) = cases(14, (24,))
    stream, used, spoke = Stream(model, encoder, processor.image_processor, 1, limit=limit or 10**6), 0, []
    stream.begin(0, encoder.system(START))
    for turn in dialogue.turns:
        features = stream.see(frames[used : used + len(turn.frames)]) if turn.frames else None
        used += len(turn.frames)
        said = stream.turn([0], [turn], [features], Greedy(), 8)
        if not turn.frames:
            continue
        told, begun, kept = encoder.system(START), False, 0
        for one in stream.heard[0]:
            shown = len(one.features) if one.features is not None else 0
            told, kept = told + encoder.user(Turn(tuple(range(shown)), one.text), begun), kept + shown
            begun = one.reply is None
            if one is not stream.heard[0][-1] and one.reply is not None:
                told += encoder.header + one.reply + ([] if one.reply[-1] == encoder.im_end else [encoder.im_end]) + encoder.newline
        seen = frames[used - kept : used]
        logits = full_logits(model, processor, told, seen, encoder.image_pad)[-1]
        speaks = bool(logits[encoder.im_end] > logits[encoder.vision_start])
        assert speaks == (said[0].text != NO_REPLY)
        assert abs(float(logits[[encoder.im_end, encoder.vision_start]].softmax(-1)[0]) - said[0].score) < 1e-4
        spoke.append(speaks)
        if speaks:
            logits = full_logits(model, processor, told + encoder.header + said[0].ids, seen, encoder.image_pad)
            logits[:, encoder.never_sampled] = -torch.inf
            assert logits[-1 - len(said[0].ids) : -1].argmax(-1).tolist() == said[0].ids
    assert 0 < sum(spoke) < len(spoke) and (stream.counts["re-encoded"] > 0) == bool(limit)


# --- Attention without copies and loops ------------------------------------------------------------------------------

@pytest.mark.parametrize("sides", [(56, 56), (140, 252), (112, 224)])
def test_windows_at_once_are_windows_one_by_one(tiny_folder, sides):  # noqa: F811
    """At 140 x 252 pixels some windows are smaller than others."""
    (model, processor), frames = load(tiny_folder), np.random.default_rng(0).integers(0, 255, (3, *sides, 3), np.uint8)
    values, grid = pixels(processor.image_processor, frames)
    visual, found = model.model.visual, {}
    assert visual.config._attn_implementation == WINDOWS
    for name in (WINDOWS, "sdpa"):
        visual.config._attn_implementation = name
        out = visual(values, grid_thw=grid).pooler_output
        out.square().sum().backward()
        found[name] = out.detach(), torch.cat([p.grad.flatten() for p in visual.parameters() if p.grad is not None])
        visual.zero_grad()
    for mine, theirs in zip(found[WINDOWS], found["sdpa"], strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_heads_that_share_keys_need_no_copies():
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 11, 8), torch.randn(2, 2, 11, 8)
    mask = torch.rand(2, 1, 5, 11) > 0.3
    mask[..., 0] = True
    mine, _ = grouped_attention(None, query, key, value, mask, 0.4)
    wide = [one.repeat_interleave(3, dim=1) for one in (key, value)]
    theirs = torch.nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=mask, scale=0.4)
    assert torch.allclose(mine, theirs.transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_limit_is_kept_by_every_row_of_a_batch(taciturn, graphs):
    """A short row beside one that is encoded anew: its padding must not need room."""
    model, processor = taciturn
    encoder, rng = ChatEncoder(processor.tokenizer, 4), np.random.default_rng(3)
    stream = Stream(model, encoder, processor.image_processor, 2, limit=300, graphs=graphs)
    for row in range(2):
        stream.begin(row, encoder.system("Answer."))
    for k in range(60):
        rows = [0, 1] if k % 3 else [0]
        features = [stream.see(rng.integers(0, 255, (2, 56, 56, 3), dtype=np.uint8)) for _ in rows]
        stream.turn(rows, [Turn((0, 1), None if k else "What?")] * len(rows), features, Sampler([(k, 0), (k, 1)], 1.0), 8)
    assert stream.counts["re-encoded"] >= 2 and int(stream.cache.lengths.max()) <= 300
    assert stream.cache.room <= (300 if graphs else 450)  # growing by half; before, 664


def test_a_limit_has_room_for_the_header_that_follows_a_decision(taciturn):
    model, processor = taciturn
    encoder, rng = ChatEncoder(processor.tokenizer, 4, "frames"), np.random.default_rng(3)
    for limit in range(200, 215):
        stream = Stream(model, encoder, processor.image_processor, 1, limit=limit, graphs=True)
        stream._own_turn = lambda hidden: torch.ones(len(hidden))  # it speaks at every turn
        stream.begin(0, encoder.system("Answer."))
        for k in range(30):
            frame = rng.integers(0, 255, (1, 56, 56, 3), dtype=np.uint8)
            stream.turn([0], [Turn((0,), None if k else "What?")], [stream.see(frame)], Sampler([(limit, k)], 3.0), 12)
        assert int(stream.cache.lengths[0]) <= limit == stream.cache.room  # nor was it longer in between


def test_a_history_with_frames_plays_alike_alone_and_in_copies(taciturn, monkeypatch):
    model, processor = taciturn
    encoder, rng = ChatEncoder(processor.tokenizer, 4), np.random.default_rng(4)
    dialogue = random_dialogue(rng, 6, [NO_REPLY] * 6)
    start = encoder.encode(Dialogue("d", "v", 2.0, dialogue.turns[:3])).ids
    session = Session(start, frames_for(rng, dialogue), [Turn(turn.frames, turn.text) for turn in dialogue.turns[3:]])
    engine = StreamEngine(model, processor.image_processor)
    one, two = (engine.play(encoder, [session], Greedy(), 6, copies=copies)[0] for copies in (1, 2))
    assert [said.ids for said in one] == [said.ids for said in two] and one
    first, last = dialogue.turns[0], session.turns[-1]
    brief = encoder.encode(Dialogue("d", "v", 2.0, (first,))).ids
    beside = Session(brief, np.concatenate([session.frames[: len(first.frames)], session.frames[-len(last.frames) :]]), [last])
    (apart,) = engine.play(encoder, [beside], Greedy(), 6)
    monkeypatch.setattr(cache, "MASKED", 0)  # histories are fed without a mask, a short one beside a long one
    long, short = engine.play(encoder, [session, beside], Greedy(), 6, copies=2)[::2]
    assert [said.ids for said in long] == [said.ids for said in one]
    assert [said.ids for said in short] == [said.ids for said in apart]
    for mine, theirs in ((long, one), (short, apart)):
        assert [said.logps for said in mine] == [pytest.approx(said.logps, abs=1e-4) for said in theirs]
    with pytest.raises(ValueError, match="history"):
        StreamEngine(model, processor.image_processor, limit=200).play(encoder, [session], Greedy(), 6)
