"""The one runtime and the command line: they know no algorithm."""
