"""`--mode=report`."""

from diffjax.commands import Request
from diffjax.commands.setup import results_folder
from diffjax.experiment.run_report import REPORT, html
from diffjax.files import atomic_write


def run(request: Request) -> int:
    """Writes a page about the run in the workdir; reads no parameters and no data set."""
    text = html(request.workdir)
    path = results_folder(request) / REPORT
    atomic_write(path, lambda file: file.write(text.encode(errors="backslashreplace")))
    print(f"wrote {path}")
    return 0
