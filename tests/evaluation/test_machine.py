"""Tests of machine settings, which change the speed of a run but not its outcomes."""

from unfool import spec as specs
from unfool.evaluation import run as evaluation

SMALL = [
    "data.size=4",
    "purifier.steps=2",
    "evaluation={draws: 2, examples: 0}",
    "attacks=[{name: pgd, steps: 2, eot: 2}]",
]


def test_batch_size_and_execution_mode_do_not_change_outcomes(elsewhere, facts):
    """A run that starts with small batches and resumes with automatic ones has the same outcomes."""

    def go_on(name: str, machine: str, shard: tuple[int, int] = (0, 1)):
        checked = evaluation.check(specs.load("blobs", [*SMALL, f"machine={machine}"]))
        evaluation.run(checked, elsewhere / name, shard, quiet=True)
        return facts(elsewhere / name)

    plain = go_on("one", "{batch_size: 5}")
    assert len(go_on("other", "{batch_size: 3}", (0, 2))) == 2
    mixed = go_on("other", "{batch_size: auto, execution: channels_last}")
    assert len(plain) == len(mixed) == 4
    for one, other in zip(plain, mixed, strict=True):
        assert one[:3] == other[:3]
        for name in one[3]:
            assert one[3][name].draws == other[3][name].draws


def test_invalid_batch_size_and_execution_mode_are_refused(elsewhere, mistake):
    assert "batch_size" in mistake("evaluate", "blobs", "--set", "machine.batch_size=many")
    assert "batch_size" in mistake("evaluate", "blobs", "--set", "machine.batch_size=0")
    said = mistake("evaluate", "blobs", "--set", "machine.execution=fast")
    assert "execution" in said
    assert "channels_last" in said
