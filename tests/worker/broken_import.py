"""A module that nobody can import."""

import os
from pathlib import Path

with Path(os.environ["IMPORTS"]).open("a") as imports:
    imports.write("broken\n")
raise ValueError("broken for everybody")
