"""How a folder becomes layers and a command."""

from pathlib import Path

SERVE = Path(__file__).with_name("serve.py")
"""The program that serves objects inside instances: a file to mount, never imported by Cove."""
