"""The encoder: byte for byte Qwen2.5-VL's template, the paper's Figure 2, labels, weights, silence without tokens."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mmduet2kit.chat import IGNORE, ChatEncoder, dialogue_text
from mmduet2kit.dialogue import (
    NO_REPLY, PROACTIVE_SYSTEM, Dialogue, Turn, from_sft_row, to_sft_row, user_turns,
)  # fmt: skip

from tiny_models import tiny_folder, tiny_model  # noqa: F401

FIGURE2 = Dialogue(
    "office", "office.mp4", 1.0,
    (
        Turn((0, 1), "What are people doing in office?", NO_REPLY),
        Turn((2, 3), None, "People are working at desks with computers and monitors, engaged in various tasks."),
        Turn((4, 5), None, NO_REPLY),
        Turn((6, 7), None, "A reporter is speaking, people are busy at their desks with computers and monitors."),
    ),
)  # fmt: skip

words = st.text("abcdefghijklmnopqrstuvwxyz .?!'0123456789é中", min_size=1, max_size=40).map(str.strip).filter(bool)
turns = st.lists(
    st.tuples(st.integers(0, 3), st.none() | words, st.none() | words | st.just(NO_REPLY)), min_size=1, max_size=6
)


def as_dialogue(parts):
    made, frame = [], 0
    for count, text, reply in parts:
        made.append(Turn(tuple(range(frame, frame + count)), text if count else text or "hm", reply))
        frame += count
    return Dialogue("d", "v", 2.0, tuple(made))


def messages(dialogue):
    yield {"role": "system", "content": dialogue.system}
    for turn in dialogue.turns:
        text = [{"type": "text", "text": turn.text}] if turn.text else []
        yield {"role": "user", "content": [{"type": "image"} for _ in turn.frames] + text}
        if turn.reply is not None:
            yield {"role": "assistant", "content": turn.reply}


def test_figure2_word_for_word():
    text = dialogue_text(FIGURE2)
    frame = "<|vision_start|><|image_pad|><|vision_end|>"
    assert text.startswith(f"<|im_start|>system\n{PROACTIVE_SYSTEM}<|im_end|>\n<|im_start|>user\n{frame}{frame}What are")
    assert text.count("<|im_start|>assistant\nNO REPLY<|im_end|>\n") == 2
    assert FIGURE2.times() == [2.0, 4.0, 6.0, 8.0]  # the paper: question at the 2nd second, replies at the 4th and 8th


@settings(deadline=None, max_examples=60)
@given(turns)
def test_text_equals_the_models_own_template_and_ids_its_tokens(tiny_folder, parts):  # noqa: F811
    processor = cached(tiny_folder)
    dialogue = as_dialogue(parts)
    template = processor.apply_chat_template(list(messages(dialogue)), tokenize=False)
    assert dialogue_text(dialogue) == template
    encoder = ChatEncoder(processor.tokenizer, 6)
    whole = template.replace("<|image_pad|>", "<|image_pad|>" * 6)
    assert encoder.encode(dialogue).ids == processor.tokenizer(whole)["input_ids"]


_processors = {}


def cached(folder):
    from mmduet2kit.model import load_processor

    return _processors.setdefault(folder, None) or _processors.update({folder: load_processor(folder)}) or _processors[folder]


def test_labels_are_the_assistants_turns_with_end_token(tiny_model):  # noqa: F811
    encoder = ChatEncoder(tiny_model[1].tokenizer, 4)
    encoded = encoder.encode(FIGURE2, no_reply_weight=0.25)
    learned = [token for token in encoded.labels if token != IGNORE]
    expected = "".join(f"{turn.reply}<|im_end|>" for turn in FIGURE2.turns)
    assert encoder.tokenizer.decode(learned) == expected
    assert all(label in (IGNORE, token) for label, token in zip(encoded.labels, encoded.ids))
    silent = sum(w == 0.25 for w in encoded.weights)
    assert silent == 2 * len(encoder.reply(NO_REPLY))
    assert sum(w == 1.0 for w in encoded.weights) == len(learned) - silent


def test_silence_can_leave_no_tokens(tiny_model):  # noqa: F811
    encoder = ChatEncoder(tiny_model[1].tokenizer, 4)
    encoded = encoder.encode(FIGURE2, silence=False)
    assert NO_REPLY not in encoder.tokenizer.decode([t for t in encoded.labels if t != IGNORE])
    assert [turn for _, turn in encoded.decisions] == [0, 1, 2, 3]
    assert all(encoded.ids[position] == encoder.newline[0] for position, _ in encoded.decisions)


def test_rows_of_the_upstream_schema_come_back():
    row = to_sft_row(FIGURE2)
    assert row["messages"][1] == {"role": "user", "content": "<image><image>What are people doing in office?"}
    assert len(row["images"]) == 8
    assert from_sft_row(row) == FIGURE2


def test_questions_stand_after_frames_or_in_a_turn_of_their_own():
    after = user_turns(5, 2, 1.0, [(0.0, "Q1"), (3.0, "Q2")], text_only=False)
    assert [(t.frames, t.text) for t in after] == [((0, 1), "Q1"), ((2, 3), "Q2"), ((4,), None)]
    alone = user_turns(5, 2, 1.0, [(0.0, "Q1"), (3.0, "S")], text_only=True)
    assert [(t.frames, t.text) for t in alone] == [((), "Q1"), ((0, 1), None), ((2, 3), None), ((), "S"), ((4,), None)]
