"""Lesson 01: the twelve lines are the loop, asking for samples changes nothing, and the exercise's tables are readable."""

from dataclasses import replace
from functools import partial

import pytest

from minitrain.lab.grader import checks_of
from minitrain.lab.lessons import load_lesson
from minitrain.lab.places import lessons_folder
from minitrain.train import train

lesson = load_lesson("train_a_gpt")
CHECKS = checks_of(lessons_folder() / "exercises" / "train_a_gpt")
check = CHECKS["check_loop_1"].__globals__


def recipe(steps):
    return lesson.experiment(steps=steps, check_steps=steps, seeds=1)["arms"]["train"]


def test_the_twelve_lines_have_the_losses_of_the_loop_bit_for_bit():
    for seed in (0, 1):
        losses = [line["loss"] for line in lesson.twelve_lines(seed=seed, steps=12)]
        assert losses == train(replace(recipe(12), seed=seed)).losses.tolist()


def test_there_are_twelve_lines():
    lines = lesson.twelve_lines.__code__.co_lines()
    assert len({line for _, _, line in lines if line} - {lesson.twelve_lines.__code__.co_firstlineno}) == 12


def test_probes_leave_the_run_as_it_is_and_answer_where_they_are_asked():
    probed = train(recipe(4), probes=[lesson.Samples(steps=(0, 2, 4)), lesson.GradientNorm()], log_every=1)
    assert probed.losses.tolist() == train(recipe(4)).losses.tolist()
    found = lesson.samples(probed.metrics)
    assert sorted(found) == [0, 2, 4]
    assert all(answer["text"].startswith(lesson.PROMPT) for answer in found.values())
    assert found[0]["text"] != found[4]["text"]
    assert all("grad_norm" in line for line in probed.metrics[1:])


def test_without_zero_grad_the_gradients_add_up():
    broken = replace(recipe(2), make_optimizer=partial(lesson.Forgetful, lr=1e-12, weight_decay=0.0))
    healthy = replace(recipe(2), make_optimizer=partial(lesson.AdamW, lr=1e-12, weight_decay=0.0))
    sums, single = (train(r, probes=[Gradients()], log_every=1).metrics for r in (broken, healthy))
    assert sums[2]["gradient"] == pytest.approx(
        [a + b for a, b in zip(*(m["gradient"] for m in single[1:]), strict=True)]
    )


class Gradients:
    every = 1

    def before(self, run):
        pass

    def after(self, run):
        return {"gradient": run.model.head.weight.grad.flatten()[:50].tolist()}


def test_plain_shows_what_a_font_has():
    assert lesson.plain("a\n\x1b[0mb\té\ufffd") == "a\n·[0mb···"


def test_counting_pairs_beats_counting_bytes_and_both_beat_a_blind_guess():
    bits = [lesson.final_bits(lesson.counting(seed=0, pairs=pairs, context=64)) for pairs in (False, True)]
    assert 8 > bits[0] > bits[1] + 0.5


def test_the_table_in_the_stub_is_what_a_healthy_loop_measures():
    stub = check["STUB"]
    history = check["healthy"](stub.encode(stub.TEXT), stub.SEED, stub.STEPS)
    for column, values in stub.HEALTHY.items():
        assert history[column] == pytest.approx(values, rel=2e-3)


def test_the_first_abnormal_numbers_are_far_from_doubt():
    stub = check["STUB"]
    arguments = (stub.encode(stub.TEXT), stub.SEED, stub.STEPS)
    reference = check["healthy"](*arguments)
    for name in check["NAMES"]:
        broken = getattr(stub, name)(*arguments)
        assert check["first_beyond"](broken, reference, 0.001) == check["first_beyond"](broken, reference, 0.01)
