"""LLM post-training: SFT, GRPO and its family, evaluation, the DeepSeek-R1 pipeline."""
