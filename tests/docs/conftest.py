"""The manual's generators are found as Sphinx finds them: in docs/."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "docs"))
