"""The three training stages, thin over TRL: base (captioning), SFT (and the threshold baseline), multi-turn GRPO."""
