"""Attention and generative models."""
