"""What changes the speed of a run is no part of what it is asked."""

from unfool import spec as specs
from unfool.evaluation import run as evaluation

SMALL = [
    "data.size=4",
    "purifier.steps=2",
    "evaluation={draws: 2, examples: 0}",
    "attacks=[{name: pgd, steps: 2, eot: 2}]",
]


def test_rows_and_execution_change_no_outcome(elsewhere, facts):
    """Begun with few rows, gone on with as many as fit: the same run, and the same outcomes."""

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


def test_what_is_no_number_and_no_way_is_told(elsewhere, mistake):
    assert "batch_size" in mistake("evaluate", "blobs", "--set", "machine.batch_size=many")
    assert "batch_size" in mistake("evaluate", "blobs", "--set", "machine.batch_size=0")
    said = mistake("evaluate", "blobs", "--set", "machine.execution=fast")
    assert "execution" in said
    assert "channels_last" in said
