"""Run an evaluation spec into a run folder."""

from pathlib import Path

from unfool.evaluation.forecast import with_forecast
from unfool.evaluation.prepare import prepare, run_blocks
from unfool.evaluation.spec import check
from unfool.results.run_folder import Run
from unfool.results.spec import EvaluationSpec
from unfool.results.starts import record_start

__all__ = ["check", "run"]


def run(
    spec: EvaluationSpec, folder: Path, shard: tuple[int, int] = (0, 1), quiet: bool = False
) -> Run:
    """Evaluate a checked `spec`, from where `folder` left off.

    Args:
        spec: What `check` returned.
        folder: The run folder.
        shard: (i, n): only images i, i + n, i + 2 n, ...
        quiet: Show no progress.

    Raises:
        SpecError: A part refuses its options, or the parts do not fit each other.
        RuntimeError: The folder holds another run, an attack exceeded the threat, or the logits are
            not finite.
    """
    prepared = prepare(spec)
    if spec["machine"]["engine"] == "ray":
        from unfool.evaluation import run_on_ray

        return run_on_ray.run(spec, prepared, folder, shard, quiet)
    store = Run.begin(folder, prepared.manifest, prepared.fingerprint)
    record_start(store, prepared.device)
    run_blocks(
        spec,
        prepared,
        store,
        with_forecast(prepared.set_up_machine(spec, shard, quiet), spec, prepared),
    )
    return store
