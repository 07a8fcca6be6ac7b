"""Qwen2.5-VL of any size, its processor and tokenizer, as ordinary Hugging Face folders."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import huggingface_hub as hub
import numpy as np
import torch

from .attention import WINDOWS
from .chat import SPECIALS, ChatEncoder
from .errors import UserError
from .manifest import attention_for
from .profile import Model, Profile
from .progress import rank

QWEN_SPLIT = (  # Qwen's own pre-tokenizer pattern (transformers' Qwen2 tokenizer)
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)


def train_tokenizer(texts: Iterable[str], vocabulary: int):
    """A byte-level BPE tokenizer of `vocabulary` entries trained on `texts`, with Qwen's special tokens in their roles."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast

    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet, size = pre_tokenizers.ByteLevel.alphabet(), vocabulary - len(SPECIALS) - 1
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return Qwen2TokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None,
        additional_special_tokens=list(SPECIALS),
    )  # fmt: skip


def make_processor(tokenizer):
    """Qwen2.5-VL's own processor around a tokenizer; pictures arrive resized (corpus/video.py): it does not resize."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor
    import trl

    template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5_vl.jinja").read_text()
    image_processor = Qwen2VLImageProcessor(patch_size=14, merge_size=2, temporal_patch_size=2, do_resize=False)
    return Qwen2_5_VLProcessor(image_processor, tokenizer, Qwen2VLVideoProcessor(), chat_template=template)


def make_model(spec: Model, tokenizer, seed: int):
    """A Qwen2.5-VL with random weights at the sizes of `spec`."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, set_seed

    set_seed(seed)
    third, ids = spec.head_dim // 2 // 8, {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIALS}
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=-(-max(len(tokenizer), spec.vocabulary) // 64) * 64, hidden_size=spec.hidden, num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads, num_key_value_heads=spec.kv_heads, head_dim=spec.head_dim,
            intermediate_size=spec.intermediate, max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0,
                             "mrope_section": [2 * third, 3 * third, 3 * third]},  # the 3B model's 16, 24, 24 of 64
            bos_token_id=None, eos_token_id=ids["<|im_end|>"], pad_token_id=tokenizer.pad_token_id,
            initializer_range=spec.init_range,
        ),
        vision_config=dict(
            depth=spec.vision_layers, hidden_size=spec.vision_hidden, num_heads=spec.vision_heads,
            intermediate_size=spec.vision_intermediate, out_hidden_size=spec.hidden, patch_size=14,
            spatial_merge_size=2, temporal_patch_size=2, window_size=112,
            fullatt_block_indexes=[*range(7, spec.vision_layers - 1, 8), spec.vision_layers - 1], initializer_range=spec.init_range,
        ),
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        initializer_range=spec.init_range, tie_word_embeddings=True,
    )  # fmt: skip
    config._attn_implementation = attention_for(spec.attention)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.update(eos_token_id=ids["<|im_end|>"], pad_token_id=tokenizer.pad_token_id)
    return model


def save(model, processor, folder: Path | str, dtype: str = "float32", state: dict | None = None) -> Path:
    """Write an ordinary Hugging Face folder, which `from_pretrained` loads; of several ranks the first does it.

    state: the weights, where the model does not hold them itself (ZeRO-3).
    """
    from transformers import logging

    folder, kind = Path(folder), getattr(torch, dtype)
    if rank() == 0:
        logging.disable_progress_bar()
        state, cast = state or model.state_dict(), {}
        for tensor in state.values():  # tied weights stay one
            cast.setdefault((tensor.data_ptr(), tensor.shape), tensor.to(kind))
        state = {name: cast[tensor.data_ptr(), tensor.shape] for name, tensor in state.items()}
        model.save_pretrained(folder, state_dict=state)
        processor.save_pretrained(folder)
    return folder


def _snapshot(name: str) -> str:
    """The hub's files of `owner/name` or `owner/name@revision` as a folder: downloaded now, or what its cache holds."""
    name, _, revision = name.partition("@")
    at = {"revision": revision or None}
    cached = isinstance(hub.try_to_load_from_cache(name, "config.json", **at), str)
    if not cached:
        hub.file_exists(name, "config.json", **at)  # raises at once when the hub is out of reach
    try:
        return hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"], **at)
    except Exception:
        if not cached:
            raise
        return hub.snapshot_download(name, local_files_only=True, **at)


def _loaded(what: str, folder: Path | str, get: Callable):
    """get(folder, a hub's name's too), every failure of which is a UserError: what transformers raises for damaged files is of many kinds."""
    here, parts = Path(folder).is_dir(), Path(folder).parts
    if not here and parts[:1] == ("runs",):
        raise UserError(f"There is no model in {folder} yet: make it first (notebook 03 or 05; mmduet2 base, sft, grpo).")
    if not here and (len(parts) != 2 or str(folder)[0] in "./"):  # the hub's names are owner/name
        raise UserError(f"No {what} could be loaded from {folder}: that folder does not exist.")
    try:
        hub.logging.set_verbosity_error()
        return get(folder if here else _snapshot(str(folder)))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        advice = "mend that folder or make it anew" if here else "no such folder is here; check the name, and that the hub can be reached"
        raise UserError(f"No {what} could be loaded from {folder} ({reason}): {advice}.") from None


def fetched(name: Path | str) -> Path:
    """The folder of a model: itself, or the hub's snapshot of owner/name[@revision]; UserError when there is none."""
    return _loaded("model", name, Path)


def safe_name(model: str) -> str:
    """A name for result files of a checkpoint that is not the run's: the last two parts of its folder or hub name, never a run's own."""
    return re.sub(r"[^\w.-]+", "-", "--".join(Path(os.path.abspath(model)).parts[-2:]))


def load_model(folder: Path | str, dtype: str = "float32", attention: str = "sdpa"):
    """The model of a Hugging Face folder or hub name, in the published key layouts too; UserError when there is none, or when weights
    are missing or unknown. attention: see `attention_for`."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, logging

    logging.disable_progress_bar()  # it fills logs, and in notebooks it leaves widgets behind
    attention = attention_for(attention)
    kind = {"dtype": getattr(torch, dtype), "attn_implementation": attention}

    def get(folder):
        config = Qwen2_5_VLConfig.get_config_dict(folder)[0]  # without one, transformers would build its default: billions
        if config.get("model_type") != "qwen2_5_vl" or "vision_config" not in config:
            raise ValueError("its config.json is not a Qwen2.5-VL's")
        model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True, **kind)
        wrong = {"missing": info["missing_keys"], "unknown": (key for key in info["unexpected_keys"] if not key.startswith("threshold_head."))}
        if wrong := [f"{kind} {key}" for kind, keys in wrong.items() for key in sorted(keys)]:  # transformers makes up what is missing
            raise ValueError(f"its weights are not a whole Qwen2.5-VL's: {wrong[0]}, and {len(wrong) - 1} more")
        if attention == "sdpa":
            model.model.visual.config._attn_implementation = WINDOWS
        return model

    return _loaded("model", folder, get)


def load(folder: Path | str, dtype: str = "float32", attention: str = "sdpa"):
    """(model, processor) of a Hugging Face folder or hub name."""
    return load_model(folder, dtype, attention), load_processor(folder)


def load_to_play(profile: Profile, folder: Path | str):
    """`load` as the profile says, to be played: in evaluation mode, on this process's GPU where there is one."""
    model, processor = load(folder, profile.model.dtype, profile.model.attention)
    return model.eval().to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"), processor


def load_processor(folder: Path | str):
    """The processor (tokenizer, image processor, chat template) of a Hugging Face folder or hub name."""
    from transformers import AutoProcessor

    def get(folder):
        processor = AutoProcessor.from_pretrained(folder)
        if processor.tokenizer.decode(processor.tokenizer.encode("NO REPLY<|im_end|>")) != "NO REPLY<|im_end|>":
            raise ValueError("its tokenizer cannot write NO REPLY and the end of a turn: is tokenizer.json there?")
        return processor

    return _loaded("processor", folder, get)


def checkpoint(profile: Profile, name: str, seed: int) -> tuple[Path, str]:
    """(folder, name for result files) of one of the run's models, or with a slash of anybody's: a folder, or owner/name[@revision] on the hub."""
    return (fetched(name), safe_name(name)) if "/" in name else (profile.model_dir(name, seed), name)


def freeze_vision(model) -> None:
    """Freeze the vision tower but not its merger, the aligner (upstream SFT: ViT frozen, aligner trained)."""
    model.enable_input_require_grads = lambda: None  # checkpointing's: gradients would run through the frozen tower to its input
    for name, parameter in model.model.visual.named_parameters():
        parameter.requires_grad_(name.startswith("merger"))


def encoder_for(processor, frames: np.ndarray, form: str = "turns") -> ChatEncoder:
    """The encoder for frames of this size [N, H, W, 3]: its visual tokens a frame follow from the grid. form: see ChatEncoder."""
    side = processor.image_processor.patch_size * processor.image_processor.merge_size
    return ChatEncoder(processor.tokenizer, (frames.shape[1] // side) * (frames.shape[2] // side), form)


def patches(image_processor, clips: Sequence[np.ndarray], device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of frames [N, H, W, 3] uint8 -> (the vision tower's patches [P, 588] uint8, image_grid_thw [frames, 3]).

    An eighth of the bytes of their pixel_values, which `normalised` makes of them on the device where the tower is.
    """
    patch, merge, parts, grids = image_processor.patch_size, image_processor.merge_size, [], []
    for frames in clips:
        count, rows, columns = len(frames), frames.shape[1] // patch, frames.shape[2] // patch
        x = torch.from_numpy(np.ascontiguousarray(frames)).to(device).view(count, rows // merge, merge, patch, columns // merge, merge, patch, 3)
        # frame, row, column, within the merge, channel, pixel
        parts.append(x.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(count * rows * columns, 3 * patch * patch))
        grids += [[1, rows, columns]] * count
    return torch.cat(parts), torch.tensor(grids)


def normalised(image_processor, patches: torch.Tensor) -> torch.Tensor:
    """Patches [P, 588] uint8 -> pixel_values [P, 1176] float32: every patch stands once for each of the tower's two moments.

    The same numbers as the processor gives for pictures that need no resizing (a test compares them), in one pass over the batch:
    the processor takes 0.7 ms a picture, which would dominate a training step of the tiny model.
    """
    mean, std = (torch.tensor(v, device=patches.device)[:, None, None] for v in (image_processor.image_mean, image_processor.image_std))
    x = (patches.view(len(patches), 3, 1, image_processor.patch_size**2).float() / 255 - mean) / std
    return x.expand(-1, -1, image_processor.temporal_patch_size, -1).flatten(1)
