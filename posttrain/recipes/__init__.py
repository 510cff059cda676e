"""Recipes: functions that return a complete config, and the jobs that they configure."""
