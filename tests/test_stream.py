"""The stream equals a full re-encode with transformers' own forward: positions, ragged turns, forks, log-probs."""

import numpy as np
import pytest
import torch

from mmduet2kit.chat import ChatEncoder
from mmduet2kit.dialogue import NO_REPLY
from mmduet2kit.stream import Greedy, Sampler, Stream, layout, run

from played import SHAPES, frames_for, full_logits, random_dialogue
from tiny_models import tiny_folder, tiny_model  # noqa: F401


def replay(encoder, dialogue, said, start):
    """Ids of a played dialogue, and which positions were sampled, with the stream's log-probs."""
    ids, sampled = list(start), []
    answers = iter(said)
    for turn in dialogue.turns:
        ids += encoder.user(turn)
        if not turn.frames:
            continue
        ids += encoder.header
        spoken = next(answers)
        for token, logp in zip(spoken.ids, spoken.logps):
            sampled.append((len(ids), logp))
            ids.append(token)
        ids += ([] if spoken.ids[-1] == encoder.im_end else [encoder.im_end]) + encoder.newline
    return ids, sampled


@pytest.mark.parametrize("shapes", [SHAPES[:1] * 3, SHAPES])
@pytest.mark.parametrize("sampling", [False, True])
def test_ragged_stream_equals_full_forward(tiny_model, sampling, shapes):
    model, processor = tiny_model
    encoder = ChatEncoder(processor.tokenizer, 4)
    rng = np.random.default_rng(5)
    dialogues = [random_dialogue(rng, n) for n in (5, 2, 7)]
    frames = [frames_for(rng, d, shape) for d, shape in zip(dialogues, shapes)]
    stream = Stream(model, encoder, processor.image_processor, 3)
    for row in range(3):
        stream.pending[row] = encoder.system("Answer.")
    features = [stream.see(f) for f in frames]
    choose = Sampler([(1, 2, 3, r) for r in range(3)], 1.3) if sampling else Greedy()
    said = run(stream, [d.turns for d in dialogues], features, choose, max_new_tokens=6)
    for d, f, s in zip(dialogues, frames, said):
        ids, sampled = replay(encoder.of(f), d, s, encoder.system("Answer."))
        logits = full_logits(model, processor, ids, f, encoder.image_pad)
        logps = (logits / choose.temperature).log_softmax(-1)
        assert sampled
        for position, logp in sampled:
            assert abs(float(logps[position - 1, ids[position]]) - logp) < 1e-4
            if not sampling:
                best = logits[position - 1].clone()
                best[encoder.never_sampled] = -torch.inf
                assert int(best.argmax()) == ids[position]


def test_forks_share_history_and_keys_make_sampling_independent_of_the_batch(tiny_model):
    model, processor = tiny_model
    encoder = ChatEncoder(processor.tokenizer, 4)
    rng = np.random.default_rng(6)
    dialogue = random_dialogue(rng, 4)
    frames = frames_for(rng, dialogue)

    def play(copies, keys):
        stream = Stream(model, encoder, processor.image_processor, 1)
        features = stream.see(frames)
        stream.feed([0], [encoder.system("Answer.")], [None])
        stream = stream.fork(copies)
        return run(stream, [dialogue.turns] * copies, [features] * copies, Sampler(keys, 1.0), max_new_tokens=5)

    together = play(3, [(0, 0, 0, r) for r in range(3)])
    alone = play(1, [(0, 0, 0, 2)])
    assert [s.ids for s in together[2]] == [s.ids for s in alone[0]]
    assert [s.ids for s in together[0]] != [s.ids for s in together[1]]


def test_layout_equals_transformers_rope_index(tiny_model):
    model, processor = tiny_model
    encoder = ChatEncoder(processor.tokenizer, 6)
    rng = np.random.default_rng(7)
    ids = encoder.encode(random_dialogue(rng, 5, [NO_REPLY] * 5)).ids
    frames = ids.count(encoder.image_pad) // 6
    tensor = torch.tensor([ids])
    expected, _ = model.model.get_rope_index(
        tensor, (tensor == encoder.image_pad).int(), image_grid_thw=torch.tensor([[1, 4, 6]] * frames)
    )
    got, end = layout(tuple(ids), encoder.image_pad, (2, 3))
    assert torch.equal(got, expected[:, 0])
    assert end == int(expected.max()) + 1


def test_vision_tokens_are_never_sampled(tiny_model):
    model, processor = tiny_model
    encoder = ChatEncoder(processor.tokenizer, 4)
    stream = Stream(model, encoder, processor.image_processor, 1)
    hidden = stream.feed([0], [encoder.header], [None])
    with torch.no_grad():
        model.lm_head.weight[encoder.image_pad] += 10 * hidden[0, 0] / hidden[0, 0].norm()
    (spoken,) = stream.speak([0], hidden, Greedy(), 4)
    assert encoder.image_pad not in spoken.ids
