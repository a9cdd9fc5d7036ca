"""AdaLoRA's budget: peft's schedule, what it may not be, and what it is where nothing is said."""

from types import SimpleNamespace

import pytest
from peft.tuners.adalora import RankAllocator

from gradex.adapters.kinds import parse_options, require_sound
from gradex.adapters.rank_budget import Budget, budget_of
from gradex.adapters.spec import AdapterSpec
from gradex.errors import GradexError

BUDGETS = [
    Budget(init_r=12, target_r=8, total=100, tinit=10, tfinal=30, delta=5),
    Budget(init_r=3, target_r=2, total=7, tinit=0, tfinal=0, delta=3),
    Budget(init_r=6, target_r=1, total=40, tinit=0, tfinal=39),
    Budget(init_r=2, target_r=1, total=1, tinit=0, tfinal=0),
]


def spec(rank: int = 8, *words: str) -> AdapterSpec:
    return AdapterSpec(kind="adalora", rank=rank, options=parse_options("adalora", words))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("matrices", [1, 14])
def test_it_is_the_schedule_of_peft(budget, matrices):
    config = SimpleNamespace(
        beta1=0.5, beta2=0.5, init_r=budget.init_r, target_r=budget.target_r, tinit=budget.tinit,
        tfinal=budget.tfinal, deltaT=budget.delta, total_step=budget.total,
    )  # fmt: skip
    theirs = RankAllocator(SimpleNamespace(named_parameters=list), config, "default")
    theirs.init_bgt, theirs.target_bgt = budget.init_r * matrices, budget.target_r * matrices
    for step in range(1, budget.total + 1):
        wanted, is_dealt = theirs.budget_schedule(step)
        assert budget.at(step, matrices) == wanted, step
        if step < budget.settled:
            assert budget.is_dealt_at(step) == is_dealt, step
    assert [s for s in range(1, budget.total + 1) if budget.is_dealt_at(s)][-1] == budget.settled


@pytest.mark.parametrize("budget", BUDGETS)
def test_it_goes_down_from_all_to_the_target(budget):
    course = [budget.at(step, 10) for step in range(budget.total + 1)]
    assert course[0] == 10 * budget.init_r and course[-1] == 10 * budget.target_r
    assert course == sorted(course, reverse=True)
    assert all(x < course[0] for x in course[budget.tinit + 1 :])  # there is always one to drop


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 99, 100, 1000, 30_000])
@pytest.mark.parametrize("rank", [1, 2, 3, 8])
def test_the_defaults_are_sound_for_short_and_long_trainings(steps, rank):
    budget = budget_of(spec(rank), steps)
    require_sound(spec(rank), steps=steps)
    assert budget.total == steps and budget.tinit < budget.settled
    assert budget.init_r == {1: 2, 2: 3, 3: 5, 8: 12}[rank]
    dealt = [step for step in range(1, steps + 1) if budget.is_dealt_at(step)]
    assert dealt and len(dealt) <= 200
    if steps >= 10:
        assert (budget.tinit, budget.tfinal) == (int(0.1 * steps), int(0.3 * steps))


def test_without_planned_steps_there_is_a_budget_too():
    assert budget_of(spec(8, "tinit=5", "tfinal=7"), 0).total == 13
    require_sound(spec(8, "tinit=500"))


@pytest.mark.parametrize(
    ("words", "steps", "message"),
    [
        (["init_r=8"], 0, "init_r=8.*--lora_r, which is 8.*such as 12"),
        (["init_r=4"], 100, "init_r=4"),
        (["tinit=10"], 10, "tinit=10 and tfinal=3 leave none of the 10 optimizer steps"),
        (["tinit=60", "tfinal=40"], 100, "tinit \\+ tfinal below 100"),
        (["tfinal=5"], 5, "raise --max_steps"),
        (["tinit=-1"], 0, "tinit=-1: expected tinit=INT \\(at least 0\\)"),
        (["deltaT=0"], 0, "deltaT=0"),
        (["init_r=0"], 0, "init_r=0"),
        (["beta1=1"], 0, "beta1=1.0: expected between 0 and 1"),
        (["beta2=nan"], 0, "beta2=nan"),
        (["orth_reg_weight=-0.1"], 0, "orth_reg_weight=-0.1.*at least 0"),
        (["orth_reg_weight=inf"], 0, "orth_reg_weight=inf"),
    ],
)
def test_what_leaves_nothing_to_deal_out_is_refused(words, steps, message):
    with pytest.raises(GradexError, match=message):
        require_sound(spec(8, *words), steps=steps)
