"""Graph and reservation: circles, layers, what comes before, and the most that is held at one time."""

from pistage.core.definition.graph import layers_of, upstream_of
from pistage.core.plan import Resources, When
from tests.core.definition.documents import only_task, plan_of, refused


def test_layers_wait_for_all_that_they_need() -> None:
    needs = {"d": ("b", "c"), "a": (), "b": ("a",), "c": (), "e": ("d",)}
    assert layers_of(needs) == [["a", "c"], ["b"], ["d"], ["e"]]


def test_upstream_is_transitive() -> None:
    needs: dict[str, tuple[str, ...]] = {"a": (), "b": ("a",), "c": ("b",), "d": ("c", "a"), "x": ()}
    assert upstream_of("d", needs) == {"a", "b", "c"}
    assert upstream_of("a", needs) == frozenset()


def test_needs_between_groups() -> None:
    plan = plan_of(
        "name: a\nuses:\n  one: [{image: i, run: x}]\n  two: {needs: one, steps: [{image: i, run: x}]}\n"
        "  three: {needs: [one, two, one], when: always, steps: [{image: i, run: x}]}\n"
    )
    assert [(task.needs, task.when) for task in plan.tasks] == [
        ((), When.SUCCESS),
        (("one",), When.SUCCESS),
        (("one", "two"), When.ALWAYS),
    ]


def test_a_long_chain_of_needs_is_no_circle_and_exhausts_nothing() -> None:
    groups = "  g0: [{image: i, run: x}]\n" + "".join(
        f"  g{n}: {{needs: g{n - 1}, steps: [{{image: i, run: x}}]}}\n" for n in range(1, 1500)
    )
    assert len(plan_of(f"name: a\nuses:\n{groups}").tasks) == 1500


def test_a_circle_far_down_is_named() -> None:
    text = (
        "name: a\nuses:\n  a: {needs: b, steps: [{image: i, run: x}]}\n  b: {needs: c, steps: [{image: i, run: x}]}\n"
        "  c: {needs: [d, b], steps: [{image: i, run: x}]}\n  d: [{image: i, run: x}]\n"
    )
    (finding,) = refused(text)
    assert finding["message"] == "groups need each other in a circle: b -> c -> b"
    assert (finding["line"], finding["path"]) == (4, "uses.b.needs")


def reservation(*steps: str, actions: dict[str, str] | None = None) -> Resources:
    return only_task("name: a\nuses:\n  main:\n" + "".join(f"    - {step}\n" for step in steps), actions).resources


BIG = "{image: i, run: x, resources: {cpus: 2, memory: 1g}}"
SMALL = "{image: i, run: x, resources: {cpus: 1, memory: 2g, gpus: 1}}"


def test_nothing_asked_is_nothing_reserved() -> None:
    assert reservation("{image: i, run: x}") == Resources()


def test_a_sequence_reserves_the_most_of_its_steps_each_resource_by_itself() -> None:
    assert reservation(BIG, SMALL) == Resources(cpus_milli=2000, memory_bytes=2 * 2**30, gpus=1)


def test_a_container_that_is_shared_is_counted_once() -> None:
    assert reservation(BIG, "run: y", "run: z") == Resources(cpus_milli=2000, memory_bytes=2**30)


def test_an_async_step_runs_beside_what_follows() -> None:
    asynchronous = BIG.replace("run: x", "run: x, async: true")
    assert reservation(SMALL, asynchronous, SMALL).cpus_milli == 3000
    assert reservation(asynchronous, asynchronous, SMALL).cpus_milli == 5000


PAIR = "name: Pair\nuses:\n  one: [" + BIG + "]\n  two: [" + BIG + ", " + SMALL + "]\n"


def test_branches_of_a_parallel_block_add_up() -> None:
    assert reservation("dep: Pair", actions={"Pair": PAIR}) == Resources(
        cpus_milli=4000, memory_bytes=3 * 2**30, gpus=1
    )


def test_a_container_used_again_later_is_held_in_between() -> None:
    two = "name: Two\nuses:\n  main: [" + BIG + "]\n  side: [" + BIG + "]\n"
    held = reservation("dep: Two", "{run: again, from: main}", SMALL, actions={"Two": two})
    assert held.cpus_milli == 4000
