"""What an evaluation did not try, from the checked spec alone."""

from collections.abc import Iterator, Sequence

from unfool.results.attack_roles import GRADIENT_FREE, TRANSFER, exact_attacks, is_custom, roles
from unfool.results.spec import AttackEntry, EvaluationSpec
from unfool.results.threat_model import eps_words

NORMS = ("linf", "l2", "l1", "l0")
ENSEMBLES = ("autoattack",)


def not_tried(spec: EvaluationSpec) -> list[str]:
    """Return what an attacker might do that this evaluation did not try, one sentence each."""
    return [*_attackers(spec), *_changes(spec), *_beyond(spec)]


def _attackers(spec: EvaluationSpec) -> Iterator[str]:
    """Attacks that are missing, the most informative first."""
    attacks = roles(spec["attacks"]).attacks
    names = {row["name"] for row in attacks}
    if not attacks:
        yield "Any attack: the run has none that counts toward the robust accuracy."
        return
    if not exact_attacks({row["label"]: row for row in attacks}):
        yield "An attack with the exact gradient of the whole model."
    if not names & set(GRADIENT_FREE):
        yield (
            "An attack without gradients (`square`, `random-search`), which masked gradients "
            "do not stop."
        )
    if not names & set(ENSEMBLES) and spec["threat"]["norm"] != "l0":
        yield "AutoAttack, the ensemble that public leaderboards use."
    if not names & set(TRANSFER):
        yield "Images made on another classifier (`transfer`)."
    if spec.get("purifier") and not roles(spec["attacks"]).known_noise:
        yield "An attacker who knows what noise the defense will draw (`knows`)."
    if not any(is_custom(row) for row in attacks):
        yield "An attack designed by hand for this defense."
    yield from _effort(attacks)


def _effort(attacks: Sequence[AttackEntry]) -> Iterator[str]:
    largest = {
        key: max(counts)
        for key in ("steps", "eot", "restarts", "queries")
        if (counts := [row[key] for row in attacks if isinstance(row.get(key), int)])
    }
    if largest:
        options = ", ".join(f"`{key}` above {count}" for key, count in largest.items())
        yield f"A longer search: {options}."


def _changes(spec: EvaluationSpec) -> Iterator[str]:
    """Changes of an image that no attack of the run made."""
    threat, by_role = spec["threat"], roles(spec["attacks"])
    if any(row.get("bounded", True) for row in by_role.attacks):
        eps = eps_words(threat["eps"]) if threat["norm"] == "linf" else f"{threat['eps']:.4g}"
        others = ", ".join(norm for norm in NORMS if norm != threat["norm"])
        yield f"Changes larger than {eps} in {threat['norm']}, or limited in {others} instead."
    if not by_role.unbounded and all(row.get("bounded", True) for row in by_role.attacks):
        yield "Changes that no norm bounds, such as warps, filters, patches, and printed objects."
    if not by_role.corruptions:
        yield "Corruptions that no attacker chose: noise, blur, weather, compression."


def _beyond(spec: EvaluationSpec) -> Iterator[str]:
    yield f"Images other than those of {spec['data']['name']} that the run used."
    yield "Poisoned training data, and changed weights."
