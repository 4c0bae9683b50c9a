"""The section `machine` of an evaluation spec: what changes only the speed, and who obeys it."""

from typing import Any, Literal

from defuse import spec as specs
from defuse.diffusion.execution import Execution
from defuse.menu import SpecError
from defuse.spec import Table

MACHINE: dict[str, tuple[Any, Any]] = {
    "device": (str, "auto"),
    "rows": (int | Literal["auto"], 256),
    "block": (int, 32),
    "execution": (Execution, "plain"),
    "engine": (Literal["local", "ray"], "local"),
    "cluster": (str | None, None),
}


def check_machine(section: Any) -> Table:
    """The section `machine`, checked and filled in.

    Raises:
        SpecError: An option is not known or does not fit, or a cluster is named that nobody asks.
    """
    machine = specs.fields("machine", section, MACHINE)
    if machine["cluster"] is not None and machine["engine"] != "ray":
        raise SpecError(
            "machine.cluster is an address of Ray: add machine.engine=ray, or leave the cluster out "
            "(--set machine.cluster=null)"
        )
    return machine


def refuse_ray(machine: Table, what: str) -> None:
    """Let `what` begin only where it obeys the engine of a checked section `machine`.

    Raises:
        SpecError: The engine is Ray.
    """
    if machine["engine"] == "ray":
        raise SpecError(
            f"machine.engine: {what} is done by this process alone; Ray does `defuse evaluate` and "
            "`defuse sweep`: use --set machine.engine=local --set machine.cluster=null"
        )
