"""A model's folder rewritten as the authors published theirs: key layout of transformers 4.49, shards, a flat config."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

FLAT = ("hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size "
        "max_position_embeddings rms_norm_eps hidden_act initializer_range attention_dropout use_sliding_window").split()  # fmt: skip
IMAGES = {  # preprocessor_config.json of Qwen2.5-VL-3B-Instruct, with pixel limits that no frame of the tests fits
    "min_pixels": 200704, "max_pixels": 401408, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
}  # fmt: skip


def old_name(key: str) -> str:
    """The name of a weight in checkpoints made before transformers 4.52."""
    return key.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def publish(folder: Path, out: Path, head: bool = False) -> Path:
    """Write `out` from a folder of the kit; head: with the tied lm_head.weight too, as some tools save it."""
    out.mkdir(parents=True)
    weights = {old_name(key): tensor for key, tensor in load_file(folder / "model.safetensors").items()}
    if head:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    names = sorted(weights)
    shards = {f"model-0000{k + 1}-of-00002.safetensors": names[k::2] for k in range(2)}
    for file, keys in shards.items():
        save_file({key: weights[key] for key in keys}, out / file, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    rope = text["rope_parameters"]
    flat = {key: text[key] for key in FLAT} | {key: value for key, value in config.items() if key.endswith("token_id")}
    flat |= {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "tie_word_embeddings": True,
             "bos_token_id": text["bos_token_id"], "eos_token_id": text["eos_token_id"], "torch_dtype": "float32",
             "rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
             "transformers_version": "4.49.0", "use_cache": True, "sliding_window": 32768, "max_window_layers": 70}  # fmt: skip
    old = {key: value for key, value in vision.items() if key not in ("dtype", "_attn_implementation_autoset")}
    (out / "config.json").write_text(json.dumps(flat | {"vision_config": old | {"model_type": "qwen2_5_vl", "in_chans": 3}}))
    (out / "preprocessor_config.json").write_text(json.dumps(IMAGES))
    (out / "chat_template.json").write_text(json.dumps({"chat_template": (folder / "chat_template.jinja").read_text()}))
    (out / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.1, "eos_token_id": text["eos_token_id"]}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((folder / name).read_bytes())
    return out
