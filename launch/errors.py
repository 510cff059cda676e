"""Errors that a user can mend: one line, no traceback, exit code 2."""

__all__ = ["UsageError"]


class UsageError(ValueError):
    """A wrong config, flag, file or folder: says what came, what was expected and what to do.

    ``monro`` prints it in one line and exits with code 2.
    """
