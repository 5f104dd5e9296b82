"""Cove: one file becomes an MCP URL that scales from zero, isolated, on your own machine."""

__version__ = "0.1.0"
