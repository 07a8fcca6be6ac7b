"""Two attention functions for transformers, over PyTorch's own kernels: without copies of keys, and without loops.

`mmduet2kit_grouped` is for masks over a ragged cache; `mmduet2kit_flashless` for the vision tower, whose windows transformers
visits one by one in Python unless the name of its attention has "flash" in it.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

GROUPED, WINDOWS = "mmduet2kit_grouped", "mmduet2kit_flashless"


def grouped_attention(module, query, key, value, attention_mask, scaling=None, **_):
    """Attention of query heads that share keys, without a copy of the keys for each of them.

    query [B, heads, W, D], key and value [B, groups, K, D], mask [B, 1, W, K]: a group's heads stand as further queries.
    Without a mask each of W = K positions sees itself and those before it: there the keys are copied, and kernels need no mask.
    """
    batch, heads, width, size = query.shape
    groups, shared = key.shape[1], heads // key.shape[1]
    if attention_mask is None:
        copied = (part.repeat_interleave(shared, dim=1) for part in (key, value))
        return scaled_dot_product_attention(query, *copied, is_causal=True, scale=scaling).transpose(1, 2).contiguous(), None
    folded = query.reshape(batch, groups, shared * width, size)
    mask = attention_mask.expand(batch, shared, width, -1).reshape(batch, 1, shared * width, -1)
    out = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return out.view(batch, heads, width, size).transpose(1, 2).contiguous(), None


def window_attention(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, **_):
    """Attention within windows of one long sequence [1, heads, N, D]: one call for all windows of a length.

    cu_seq_lens_q [windows + 1]: where they begin, and N.
    """
    if not hasattr(cu_seq_lens_q, "windows"):  # the same tensor in many layers: a GPU is waited for once, not in each
        lengths, steps = cu_seq_lens_q.diff(), torch.arange(query.shape[2], device=query.device)
        sizes = lengths.unique().tolist()
        cu_seq_lens_q.windows = {n: (cu_seq_lens_q[:-1][lengths == n][:, None] + steps[:n]).flatten() if len(sizes) > 1 else slice(None) for n in sizes}
    out, (_, heads, _, size) = torch.empty_like(query[0]), query.shape
    for length, index in cu_seq_lens_q.windows.items():
        parts = (part[0][:, index].view(heads, -1, length, size).transpose(0, 1) for part in (query, key, value))
        out[:, index] = scaled_dot_product_attention(*parts, scale=scaling).transpose(0, 1).reshape(heads, -1, size)
    return out.transpose(0, 1)[None], None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionInterface.register(WINDOWS, window_attention)
