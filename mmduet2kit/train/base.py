"""The tiny base model: tokenizer, random Qwen2.5-VL, then captioning - the stand-in for a pretrained Qwen2.5-VL."""

from itertools import chain
from pathlib import Path

from torch.utils.data import ConcatDataset

from ..chat import dialogue_text
from ..corpus.build import Dataset
from ..corpus.questions import QUESTIONS
from ..corpus.world import SUBTITLES
from ..dialogue import PROACTIVE_SYSTEM, SUBTITLE
from ..model import load_processor, make_model, make_processor, save, train_tokenizer
from ..profile import Profile, add_profile_arguments, load_profile
from .sft import train


def base_texts(dataset: Dataset, interval: float) -> list[str]:
    """What the tokenizer is trained on: the training splits' dialogues, all questions, subtitles, the system prompts."""
    texts = [dialogue_text(d) for d in chain(dataset.sft(interval), dataset.offline("sft"))]
    texts += [q for pair in QUESTIONS.values() for q in pair] * 4 + [SUBTITLE + s for s in SUBTITLES] * 4
    return texts + [PROACTIVE_SYSTEM] * 4


def processor_for(profile: Profile, dataset: Dataset):
    """The processor of the profile's model; the tiny one's tokenizer is trained on the training texts."""
    if profile.model.path:
        return load_processor(profile.model.path)
    return make_processor(train_tokenizer(base_texts(dataset, profile.video.train_interval), profile.model.vocabulary))


def train_base(profile: Profile, dataset: Dataset, out: Path, seed: int) -> Path:
    """Make the tiny model and teach it to caption; `out` becomes an ordinary Hugging Face folder.

    A profile that names a model (`model.path`) uses that instead, and nothing is trained here.
    """
    if profile.model.path:
        load_processor(profile.model.path)
        return Path(profile.model.path)
    start = out.with_name(out.name + ".start")
    processor = processor_for(profile, dataset)
    model = make_model(profile.model, processor.tokenizer, seed)
    model.config.visual_tokens = profile.video.visual_tokens  # for `mmduet2 watch`, which has no profile
    save(model, processor, start)
    log = profile.results / f"train_base_seed{seed}.csv"
    clips = ConcatDataset([dataset.offline("base"), dataset.offline("sft")])
    return train(profile, profile.base, clips, dataset, start, out, log, seed)


def add_arguments(parser) -> None:
    add_profile_arguments(parser)


def run(args) -> None:
    """`mmduet2 base`: make and train the base model of a profile and seed."""
    profile = load_profile(args.profile)
    train_base(profile, Dataset(profile.data), profile.model_dir("base", args.seed), args.seed)
