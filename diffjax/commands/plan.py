"""`--mode=plan`."""

from diffjax.commands import Request
from diffjax.experiment import plan


def run(request: Request) -> int:
    """Prints what a training would take; nothing is written."""
    print(plan.as_text(plan.plan(request.config)))
    return 0
