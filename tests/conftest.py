"""What holds for every test: examples that do not depend on the clock or on the day."""

from hypothesis import settings

# No deadline: a busy machine is no bug. Derandomized: a test that passed passes again.
settings.register_profile("monro", deadline=None, derandomize=True, database=None)
settings.load_profile("monro")
