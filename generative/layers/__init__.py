"""Layers: activations, smooth metrics, upsampling."""
