"""The loop of a kernel that streams logits: how many instructions a thread runs for each of their elements.

A hot loop holds loads of 16 bytes or more and MUFU.EX2, the exponential. Its body may branch to rare work (a forbidden
id, the end of the row), so what counts is the cheapest way around it that treats every element it loads: from its
header back to it, or, where a kernel has no such loop, from its entry to its exit. Where that would leave out work of
every tile, the caller names instructions that the way has to pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpu_free.machine_code.sass import Block, Function

VECTOR_BYTES = 16


@dataclass(frozen=True)
class HotPath:
    """Counts for one thread, once along the path."""

    looped: bool  # around a loop, or straight through the kernel
    instructions: int
    mufu: int
    elements: int
    scalar_loads: int  # global loads narrower than a vector
    inner_loops: int  # loops on the path without exponentials, counted as if they ran once
    calls: int  # calls on the path, of which only the call itself is counted

    @property
    def instructions_per_element(self) -> float:
        return self.instructions / self.elements

    @property
    def mufu_per_element(self) -> float:
        return self.mufu / self.elements


@dataclass(frozen=True)
class Loop:
    header: int
    body: frozenset[int]  # blocks, the header among them


def find_loops(function: Function) -> list[Loop]:
    """Natural loops: one for each block that some block it dominates jumps back to. Smallest first."""
    dominators = _dominators(function)
    predecessors = _predecessors(function)
    bodies: dict[int, set[int]] = {}
    for block, dominating in dominators.items():
        for header in function.blocks[block].successors:
            if header not in dominating:
                continue
            body = bodies.setdefault(header, {header})
            waiting = [block]
            while waiting:
                one = waiting.pop()
                if one not in body:
                    body.add(one)
                    waiting += [p for p in predecessors[one] if p in dominators]
    loops = [Loop(header, frozenset(body)) for header, body in bodies.items()]
    return sorted(loops, key=lambda loop: (len(loop.body), loop.header))


def find_hot_path(
    function: Function,
    element_bytes: int,
    exponentials: int = 1,
    load: str = "LDG",
    through: Mapping[str, int] | None = None,
) -> HotPath | None:
    """The cheapest path of a loop that loads vectors and takes exponentials, the best per element of innermost loops.

    Args:
        element_bytes: of the loaded elements.
        exponentials: MUFU.EX2 that every element needs: a path with fewer leaves elements out, one with as many again
            as there are elements does something else.
        load: part of the opcode that loads them; other wide loads do not count.
        through: part of an opcode -> how many such instructions the path passes at least.

    Returns:
        None if no path of the function loads vectors, takes that many exponentials and passes those instructions.
    """
    loops = find_loops(function)
    needs = _Needs(element_bytes, exponentials, load, dict(through or {}))
    paths: list[tuple[frozenset[int], HotPath]] = []
    for loop in loops:
        if any(body < loop.body for body, _ in paths):
            continue  # a loop inside is hot already
        path = _cheapest(function, loops, loop, needs)
        if path is not None:
            paths.append((loop.body, path))
    if paths:
        return min((path for _, path in paths), key=lambda path: path.instructions_per_element)
    return _cheapest(function, loops, None, needs)


@dataclass(frozen=True)
class _Needs:
    element_bytes: int
    exponentials: int
    load: str
    through: dict[str, int]

    def passed(self, key: tuple[int, ...], block: Block) -> tuple[int, ...]:
        """Counts after the block: loaded bytes, exponentials, then the named instructions up to as many as needed."""
        wide = [i for i in block.instructions if i.loaded_bytes >= VECTOR_BYTES]
        loaded = sum(i.loaded_bytes for i in wide if self.load in i.opcode)
        named = (
            min(before + sum(part in i.opcode for i in block.instructions), wanted)
            for before, (part, wanted) in zip(key[2:], self.through.items(), strict=True)
        )
        return (key[0] + loaded, key[1] + block.count("MUFU.EX2"), *named)

    def met(self, key: tuple[int, ...]) -> bool:
        elements = key[0] // self.element_bytes
        treated = self.exponentials * elements <= key[1] < (self.exponentials + 1) * elements
        return treated and list(key[2:]) == list(self.through.values())


@dataclass(frozen=True)
class _Trail:
    """The cheapest way so far to a block with given counts (`_Needs.passed`)."""

    instructions: int
    mufu: int
    blocks: tuple[int, ...]


def _cheapest(function: Function, loops: list[Loop], loop: Loop | None, needs: _Needs) -> HotPath | None:
    body = loop.body if loop else frozenset(_dominators(function))
    # How often an inner loop runs is not in the code. One that exponentiates runs once on a path with the exponentials
    # of all elements. Others are counted as if they ran once too, but only where no way leads around them.
    unknown = {
        one.header
        for one in loops
        if one.body < body and not any(function.blocks[number].count("MUFU.EX2") for number in one.body)
    }
    ways = _ways(function, loop, body - unknown, needs) or _ways(function, loop, body, needs)
    if not ways:
        return None
    # Not the cheapest per element: among ways through one loop, that might be one that loads the same logits twice,
    # in branches that exclude each other.
    loaded, trail = min(ways, key=lambda way: way[1].instructions)
    blocks = [function.blocks[number] for number in trail.blocks]
    return HotPath(
        looped=loop is not None,
        instructions=trail.instructions,
        mufu=trail.mufu,
        elements=loaded // needs.element_bytes,
        scalar_loads=sum(0 < i.loaded_bytes < VECTOR_BYTES for block in blocks for i in block.instructions),
        inner_loops=len(unknown.intersection(trail.blocks)),
        calls=sum(i.calls for block in blocks for i in block.instructions),
    )


def _ways(function: Function, loop: Loop | None, body: frozenset[int], needs: _Needs) -> list[tuple[int, _Trail]]:
    """Bytes loaded and trail, for every way through the body that meets the needs and is cheapest for its counts."""
    entry = loop.header if loop else 0
    finished: dict[tuple[int, ...], _Trail] = {}
    at: dict[int, dict[tuple[int, ...], _Trail]] = {entry: {(0, 0, *(0 for _ in needs.through)): _Trail(0, 0, ())}}
    for number in _topological(function, entry, body):
        block = function.blocks[number]
        leaves = entry in block.successors if loop else not block.successors
        for before, trail in at.pop(number, {}).items():
            key = needs.passed(before, block)
            longer = _Trail(
                trail.instructions + len(block.instructions), trail.mufu + block.count("MUFU"), (*trail.blocks, number)
            )
            onward = [s for s in block.successors if s in body and s != entry and s not in trail.blocks]
            ends = [at.setdefault(s, {}) for s in onward] + ([finished] if leaves else [])
            for end in ends:
                if key not in end or longer.instructions < end[key].instructions:
                    end[key] = longer
    return [(key[0], trail) for key, trail in finished.items() if needs.met(key)]


def _topological(function: Function, entry: int, body: frozenset[int]) -> list[int]:
    """Blocks of the body reached from the entry, each after all that lead to it, jumps back left out."""
    order: list[int] = []
    seen = {entry}
    stack = [(entry, iter(function.blocks[entry].successors))]
    while stack:
        block, successors = stack[-1]
        following = next((s for s in successors if s in body and s not in seen), None)
        if following is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(function.blocks[following].successors)))
    return order[::-1]


def _predecessors(function: Function) -> dict[int, list[int]]:
    predecessors: dict[int, list[int]] = {block: [] for block in range(len(function.blocks))}
    for number, block in enumerate(function.blocks):
        for successor in block.successors:
            predecessors[successor].append(number)
    return predecessors


def _dominators(function: Function) -> dict[int, frozenset[int]]:
    """Block -> blocks on every way from the entry to it, itself too; blocks that nothing reaches are left out."""
    order = _topological(function, 0, frozenset(range(len(function.blocks))))
    predecessors = _predecessors(function)
    everything = frozenset(order)
    dominators = dict.fromkeys(order, everything) | {0: frozenset({0})}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            before = [dominators[p] for p in predecessors[block] if p in dominators]
            now = frozenset.intersection(*before) | {block}
            changed |= now != dominators[block]
            dominators[block] = now
    return dominators
