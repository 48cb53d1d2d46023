"""Plans made by hand, for tests that do not want a document."""

from pistage.core.plan import Block, Context, FailureClass, Mount, Plan, Resources, Retry, Step, Task, When

NO_RETRY = Retry(limits={})


def a_task(
    name: str = "main",
    script: str = "true",
    *,
    needs: tuple[str, ...] = (),
    when: When = When.SUCCESS,
    retry: Retry = NO_RETRY,
    resources: Resources | None = None,
    skip_reason: str | None = None,
    image: str = "busybox",
    gang: str | None = None,
    volume: str | None = None,
) -> Task:
    step = Step(id="1", name=script, context="c1", script=script)
    return Task(
        name=name,
        body=Block(kind="sequence", children=(step,)),
        contexts=(Context(id="c1", image=image, mounts=() if volume is None else (_mount(volume),)),),
        needs=needs,
        when=when,
        retry=retry,
        resources=resources or Resources(),
        skip_reason=skip_reason,
        gang=gang,
    )


def _mount(volume: str) -> Mount:
    return Mount(kind="volume", source=volume, target="/data")


def a_plan(*tasks: Task, name: str = "demo") -> Plan:
    return Plan(name=name, dialect="pistages", tasks=tasks or (a_task(),))


def retrying(**limits: int) -> Retry:
    return Retry(limits={FailureClass(name): limit for name, limit in limits.items()})
