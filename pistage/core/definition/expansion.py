"""Expansion: groups of steps with every `dep` followed, every template rendered, every step in its container.

A `dep` becomes the tree of the action it names. Inside it the keys beside the `dep` win over the action's own, as its
`with` and `image` do (P4, P6); the caller's group and definition stand behind the action's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pistage.core import limits
from pistage.core.definition.admission import admitted_to_action
from pistage.core.definition.building import Budget, TaskBuilder
from pistage.core.definition.conditions import Verdict, verdict_of
from pistage.core.definition.fields import check_keys, count_field, text_field, texts_field, words_field
from pistage.core.definition.findings import Page
from pistage.core.definition.graph import layers_of, needs_of
from pistage.core.definition.images import UNKNOWN, Exit, Images, check_image, check_inherits, entered, exit_of
from pistage.core.definition.library import Library
from pistage.core.definition.nodes import Node, Place, ScalarNode, shortened
from pistage.core.definition.pistages import Definition, GroupSource, StepSource
from pistage.core.definition.scope import Renderer, Scope, check_names
from pistage.core.definition.scripts import program_of, title_of
from pistage.core.definition.settings import Settings, parse_settings
from pistage.core.definition.storage import declared_networks, declared_volumes
from pistage.core.plan import Block, Network, Program, Step, Volume, When
from pistage.core.plan import Node as PlanNode

_NO_SETTINGS = Settings()
_NO_IMAGES = Images()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reactions:
    """`on`: tries again in place, scripts before each, scripts after the last; None where it says nothing (P16)."""

    retries: int | None = None
    reentry: tuple[str, ...] | None = None
    failed: tuple[str, ...] | None = None

    def over(self, far: Reactions) -> Reactions:
        """These above those."""
        return Reactions(
            retries=far.retries if self.retries is None else self.retries,
            reentry=far.reentry if self.reentry is None else self.reentry,
            failed=far.failed if self.failed is None else self.failed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One use of a definition: at the root, or by a `dep`. Two uses share nothing (P5)."""

    definition: Definition
    scope: Scope
    far: Settings = _NO_SETTINGS  # what stands behind the definition: the caller's group and definition
    own: Settings = _NO_SETTINGS  # the definition's own, once it is settled
    chain: tuple[str, ...] = ()
    images: Images = _NO_IMAGES
    beside: Settings = _NO_SETTINGS  # the keys beside the `dep`
    reactions: Reactions = Reactions()
    entry: Exit | None = None  # the container of the step before the `dep`
    skip_reason: str | None = None
    when: When | None = None
    caller: tuple[Page, Place] | None = None  # the step at the root that led here

    @property
    def is_root(self) -> bool:
        return not self.chain


@dataclass(frozen=True, slots=True)
class Spot:
    """What a step finds where it stands: the settings and images around it, the step before it, the task it joins."""

    base: Settings
    images: Images
    previous: Exit | None
    task: TaskBuilder


@dataclass(frozen=True, slots=True)
class Expanded:
    """A group's steps, the container that the last of them leaves behind, its settings and its `when`."""

    children: tuple[PlanNode, ...]
    exit: Exit
    settings: Settings
    verdict: Verdict


@dataclass(slots=True)
class Expander:
    """Expands the groups of one document, and keeps what the plan needs beside its tasks."""

    library: Library
    renderer: Renderer
    budget: Budget = field(default_factory=Budget)
    volumes: dict[str, Volume] = field(default_factory=dict)
    networks: dict[str, Network] = field(default_factory=dict)
    images_missing: list[str] = field(default_factory=list)

    def settled(self, use: Use) -> Use:
        """`use` with its definition's own settings rendered, and the volumes and networks it declares noted."""
        page = use.definition.page
        if not use.definition.settings.entries:
            return use
        node = self.renderer.map(use.definition.settings, use.scope, page)
        for name, volume in declared_volumes(page, node.get("volumes")).items():
            self.volumes.setdefault(name, volume)
        for name, network in declared_networks(page, node.get("networks")).items():
            self.networks.setdefault(name, network)
        return replace(use, own=parse_settings(node, page, declares=True))

    def group(self, use: Use, group: GroupSource, task: TaskBuilder) -> Expanded:
        """The steps of a group in order, of a use that is settled."""
        page = use.definition.page
        verdict = verdict_of(group.when, use.scope, self.renderer, page)
        if verdict.skip_reason is not None:
            use = replace(
                use,
                skip_reason=use.skip_reason or verdict.skip_reason,
                scope=replace(use.scope, is_skipped=True),
            )
        own = parse_settings(self.renderer.map(group.settings, use.scope, page), page).over(use.own)
        if use.skip_reason is None:
            task.add_constraints(own.constraints)
        settings = own.over(use.far)
        base = replace(settings, timeout_s=None, retry=None) if use.is_root else settings
        images = self._images_of(use, group)
        previous = use.entry
        children: list[PlanNode] = []
        for step in group.steps:
            node, previous = self._step(use, step, Spot(base, images, previous, task))
            images = Images()
            if node is not None:
                children.append(node)
        return Expanded(tuple(children), previous or Exit(context=UNKNOWN), settings, verdict)

    def _images_of(self, use: Use, group: GroupSource) -> Images:
        """What the first step of a group may get: P4's replacement, or the image of the group or the definition."""
        for node in (group.image, use.definition.image):
            if node is not None:
                own = self._image(node, use.scope, use)
                return replace(use.images, fallback=own or use.images.fallback)
        return use.images

    def _image(self, node: Node | None, scope: Scope, use: Use) -> str | None:
        page = use.definition.page
        if node is None:
            return None
        rendered = self.renderer.node(node, scope, page)
        if isinstance(rendered, ScalarNode) and rendered.is_unknown:
            return rendered.text
        text = text_field(page, rendered, "image")
        if text is not None:
            check_image(text, page, node)
        return text

    def _step(self, use: Use, step: StepSource, spot: Spot) -> tuple[PlanNode | None, Exit]:
        if step.dep is not None:
            return self._dep(use, step, spot)
        return self._run(use, step, spot)

    # --- a step that runs something ------------------------------------------------------------------------

    def _run(self, use: Use, step: StepSource, spot: Spot) -> tuple[PlanNode | None, Exit]:
        page = use.definition.page
        verdict = self._verdict(use, step)
        scope = replace(use.scope, is_skipped=use.scope.is_skipped or verdict.skip_reason is not None)
        origin = "with of the step" if use.is_root else f"with of a step of action {use.definition.name}"
        scope = scope.with_entries(self.renderer.entries(step.with_, scope, page, origin))
        own = parse_settings(self.renderer.map(step.settings, scope, page), page, of_step=True)
        settings = use.beside.over(own.over(spot.base))
        own_image = self._image(step.node.get("image"), scope, use)
        image = spot.images.replacement or own_image or spot.images.fallback
        program = None
        if step.node.get("script") is not None:
            program = program_of(step.node, page, self.library.languages)
        context = self._context(use, step, spot, image, settings, program=program)
        if step.with_ is not None:
            check_names(scope, page, step.with_)
        if not scope.is_skipped:
            spot.task.add_services(settings.services, page, step.node)
            spot.task.add_constraints(own.constraints)
        reactions = use.reactions.over(self._reactions(step, scope, use))
        made = Step(
            id=spot.task.next_id(),
            name=step.name or (title_of(step.node) if program is not None else None) or "",
            context=context,
            script=self._script(step, scope, use),
            program=program,
            entrypoint=self._words(step, "entrypoint", scope, use),
            command=self._words(step, "command", scope, use),
            env=settings.env,
            parameters=self.renderer.parameters(scope, page, step.node),
            workdir=settings.workdir or "/workspace",
            user=settings.user,
            timeout_s=settings.timeout_s,
            when=verdict.when or When.SUCCESS,
            skip_reason=use.skip_reason or verdict.skip_reason,
            is_async=step.is_async or (use.is_root and use.definition.is_async),
            retries=settings.tries or 0 if reactions.retries is None else reactions.retries,
            reentry=reactions.reentry or (),
            failed=reactions.failed or (),
            action=None if use.is_root else use.definition.name,
        )
        made = made if made.name else replace(made, name=_title_of(made))
        self.budget.spend_step(made, page, step.node)
        return made, Exit(context=context)

    def _context(
        self, use: Use, step: StepSource, spot: Spot, image: str | None, settings: Settings, *, program: Program | None
    ) -> str:
        page = use.definition.page
        if image is not None:
            if step.node.get("from") is not None:
                page.error(
                    step.node.keys["from"], "bad-from", "'from' has no effect on a step with an image", "take one out"
                )
            return spot.task.new_context(image, settings)
        if program is not None and spot.previous is None:
            language = self.library.languages.get(program.language)
            image = "" if language is None else language.image
            return spot.task.new_context(image, settings, language=program.language)
        check_inherits(step.node, page)
        if spot.previous is not None:
            return entered(spot.previous, step.node, page)
        if step.node.get("script") is not None:
            return UNKNOWN  # said of the script
        at_page, at = use.caller or (page, step.node)
        self.images_missing.append(str(at.path))
        if self.renderer.is_strict:
            via = (
                f": the action '{shortened(use.definition.name)}' names none, and nothing runs before"
                if use.caller
                else ""
            )
            at_page.error(at, "no-image", f"the first step of a group needs an image{via}", "give it 'image: …'")
        return UNKNOWN

    def _script(self, step: StepSource, scope: Scope, use: Use) -> str | None:
        node = step.node.get("run")
        if node is None:
            return None
        lines = texts_field(use.definition.page, self.renderer.node(node, scope, use.definition.page), "run")
        return "\n".join(lines or ())

    def _words(self, step: StepSource, key: str, scope: Scope, use: Use) -> tuple[str, ...] | None:
        node = step.node.get(key)
        if node is None:
            return None
        return words_field(use.definition.page, self.renderer.node(node, scope, use.definition.page), key)

    def _reactions(self, step: StepSource, scope: Scope, use: Use) -> Reactions:
        page = use.definition.page
        if step.on is None:
            return Reactions()
        check_keys(page, step.on, {"retry", "reentry", "failed"}, "on")
        node = self.renderer.map(step.on, scope, page)
        return Reactions(
            retries=count_field(page, node.get("retry"), "on.retry", limits.STEP_RETRY_MAX),
            reentry=texts_field(page, node.get("reentry"), "on.reentry"),
            failed=texts_field(page, node.get("failed"), "on.failed"),
        )

    def _verdict(self, use: Use, step: StepSource) -> Verdict:
        return verdict_of(step.node.get("when"), use.scope, self.renderer, use.definition.page)

    # --- a step that uses an action ------------------------------------------------------------------------

    def _dep(self, use: Use, step: StepSource, spot: Spot) -> tuple[PlanNode | None, Exit]:
        assert step.dep is not None, "a step without a dep was expanded as one"
        page = use.definition.page
        verdict = self._verdict(use, step)
        definition = self.library.definition_of(step.dep, page, use.chain)
        inner = self._use_of(use, step, spot, definition, verdict)
        if definition is None or inner is None:
            return None, Exit(context=UNKNOWN)
        node, exit_ = self._body(inner, spot.task)
        return (
            replace(
                node,
                name=step.name or definition.name,
                when=verdict.when or inner.when or node.when,
                is_async=step.is_async or definition.is_async or node.is_async,
            ),
            exit_,
        )

    def _body(self, use: Use, task: TaskBuilder) -> tuple[PlanNode, Exit]:
        """What the action runs: a lone step as it is, a group in order, several groups at once."""
        use = self.settled(use)
        definition = use.definition
        groups = {group.name: self.group(use, group, task) for group in definition.groups}
        exit_ = exit_of({name: group.exit for name, group in groups.items()})
        blocks = {
            name: Block(kind="sequence", name=name, children=group.children, when=group.verdict.when or When.SUCCESS)
            for name, group in groups.items()
        }
        if len(blocks) > 1:
            return self._parallel(definition, blocks), exit_
        (block,) = blocks.values()
        if len(block.children) == 1:
            only = block.children[0]
            return replace(only, when=block.when if block.when is not When.SUCCESS else only.when), exit_
        return block, exit_

    def _parallel(self, definition: Definition, blocks: dict[str, Block]) -> Block:
        """Groups at once; where some need others, in layers, each of which waits for the whole layer before it."""
        needs = needs_of(definition.groups, definition.page)
        layers = layers_of(needs)
        for group in definition.groups:
            if len(layers) > 1 and blocks[group.name].when is not When.SUCCESS and isinstance(group.when, ScalarNode):
                definition.page.error(
                    group.when,
                    "nested-when",
                    f"in an action used by 'dep', groups with 'needs' run on success only, not on {group.when.text}",
                    "put 'when' on steps, or the group into the pipeline itself",
                )
        parallels = [
            Block(kind="parallel", name=definition.name, children=tuple(blocks[name] for name in layer))
            for layer in layers
        ]
        return parallels[0] if len(parallels) == 1 else Block(kind="sequence", children=tuple(parallels))

    def _use_of(
        self, use: Use, step: StepSource, spot: Spot, definition: Definition | None, verdict: Verdict
    ) -> Use | None:
        """How the action is used: the keys beside the `dep`, all rendered in the caller's scope."""
        page = use.definition.page
        scope = replace(use.scope, is_skipped=use.scope.is_skipped or verdict.skip_reason is not None)
        assert step.dep is not None, "a step without a dep was expanded as one"
        name = step.dep.text
        binding = self.renderer.entries(step.with_, scope, page, f"with beside dep {name}", is_binding=True)
        beside = parse_settings(self.renderer.map(step.settings, scope, page), page, of_step=True)
        image = spot.images.replacement or self._image(step.node.get("image"), scope, use)
        reactions = self._reactions(step, scope, use)
        if definition is None:
            return None
        given = admitted_to_action(
            definition.inputs,
            Scope(binding, is_root=False, is_skipped=scope.is_skipped),
            self.renderer,
            page,
            name=definition.name,
            with_=step.with_,
            dep=step.dep,
        )
        inner_scope = self.renderer.defaults(
            definition.with_, given, definition.page, f"with of action {definition.name}"
        )
        own = verdict_of(definition.when, inner_scope, self.renderer, definition.page)
        skip_reason = use.skip_reason or verdict.skip_reason or own.skip_reason
        return Use(
            definition=definition,
            scope=replace(inner_scope, is_skipped=skip_reason is not None),
            far=spot.base,
            chain=(*use.chain, step.dep.text),
            images=Images(replacement=image, fallback=spot.images.fallback),
            beside=use.beside.over(beside),
            reactions=use.reactions.over(reactions),
            entry=self._entry(step, spot.previous, page),
            skip_reason=skip_reason,
            when=own.when,
            caller=use.caller or (page, step.node),
        )

    def _entry(self, step: StepSource, previous: Exit | None, page: Page) -> Exit | None:
        if step.node.get("from") is None:
            return previous
        if previous is None:
            page.error(
                step.node.keys["from"],
                "bad-from",
                "'from' on the first step: there is no step before it",
                "take it out",
            )
            return None
        return Exit(context=entered(previous, step.node, page))


def _title_of(step: Step) -> str:
    """A name for a step that has none: the first line of what it runs."""
    text = " ".join((*(step.entrypoint or ()), *(step.command or ())))
    if step.script is not None or step.program is not None:
        text = step.script or (step.program.text if step.program else "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return shortened(lines[0]) if lines else f"step {step.id}"
