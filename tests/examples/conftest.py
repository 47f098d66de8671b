"""The examples' modules are found as from a script or a config in their folder."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "emoji"))
