"""Proofs: each fault of base, tuned or both is found and told, and such a pair is refused."""

import math
from dataclasses import replace

import pytest

from deepdoctor.errors import ProofError
from deepdoctor.proof import Proof

PROOF = Proof(1e-6, 2e-6, 3.5, 0.6, 0.6, 1e-4, "b" * 64, "b" * 64, "a" * 64, "p" * 64)


def test_a_proof_that_holds_says_nothing() -> None:
    assert PROOF.problems() == []
    PROOF.require()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"base_difference": 0.1}, "the base side differs from the plain base by 0.1"),
        ({"base_difference": math.nan}, "the base side differs"),
        ({"tuned_difference": 0.1}, "the tuned side differs from PEFT's forward by 0.1"),
        ({"tuned_difference": math.nan}, "the tuned side differs"),
        ({"effect": 0.0}, "the adapter changes nothing"),
        ({"base_nearer": 0.0}, "cannot be told apart"),
        ({"tuned_nearer": -0.1}, "cannot be told apart"),
        ({"tuned_nearer": math.nan}, "cannot be told apart"),
        ({"effect": math.nan}, "the adapter changes nothing"),
        ({"base_hash": "c" * 64}, "the base weights have changed"),
    ],
)
def test_each_fault_is_found_and_the_pair_refused(fault: dict[str, float | str], words: str) -> None:
    proof = replace(PROOF, **fault)  # type: ignore[arg-type]
    assert [problem for problem in proof.problems() if words in problem] == proof.problems()
    assert len(proof.problems()) == 1
    with pytest.raises(ProofError, match="This pair is not shown"):
        proof.require()


def test_an_effect_smaller_than_rounding_is_enough_where_the_sides_can_be_told_apart() -> None:
    assert replace(PROOF, tolerance=1.0, effect=0.3, base_nearer=0.01, tuned_nearer=0.01).problems() == []


def test_a_proof_saved_before_nearness_was_measured_keeps_its_verdict() -> None:
    saved = {name: value for name, value in vars(PROOF).items() if not name.endswith("_nearer")}
    assert Proof.from_dict(saved).problems() == []
    assert Proof.from_dict({**saved, "effect": saved["tolerance"] / 2}).problems() != []


def test_all_faults_are_told_at_once() -> None:
    proof = replace(PROOF, base_difference=1.0, tuned_difference=1.0, effect=0.0, base_hash="other")
    assert len(proof.problems()) == 4
