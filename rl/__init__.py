"""Reinforcement learning, from stochastic approximation to deep agents."""
