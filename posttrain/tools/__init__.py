"""Tools that a model may call while it writes a completion."""

from posttrain.tools.base import Tool, ToolOutput
from posttrain.tools.calculator import Calculator
from posttrain.tools.use import ToolUse

__all__ = ["Calculator", "Tool", "ToolOutput", "ToolUse"]
