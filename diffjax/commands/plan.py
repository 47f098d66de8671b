"""`--mode=plan`."""

from diffjax.commands import Request
from diffjax.experiment import plan
from diffjax.progress import note_if_long


def run(request: Request) -> int:
    """Prints the memory and FLOPs of training; writes nothing."""
    with note_if_long("tracing and compiling a training step for the plan"):
        found = plan.plan(request.config)
    print(plan.as_text(found))
    return 0
