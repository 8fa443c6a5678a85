"""The loop of a kernel that streams logits: how many instructions a thread runs for each of their elements.

A hot loop holds loads of 16 bytes or more and MUFU.EX2, the exponential. Its body may branch to rare work (a new
maximum, the end of the row), so what counts is the cheapest way around it that treats every element it loads: from its
header back to it, or, where a kernel has no such loop, from its entry to its exit.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

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
    inner_loops: int  # loops on the path counted as if they ran once: 0, or the counts are a lower bound
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


def find_hot_path(function: Function, element_bytes: int, exponentials: int = 1) -> HotPath | None:
    """The cheapest path per element among the innermost loops that load vectors and take exponentials.

    Args:
        element_bytes: of the loaded elements.
        exponentials: MUFU.EX2 that every element needs: a path with fewer leaves elements out.

    Returns:
        None if no path of the function loads vectors and takes that many exponentials.
    """
    loops = find_loops(function)
    paths: list[tuple[frozenset[int], HotPath]] = []
    for loop in loops:
        if any(body < loop.body for body, _ in paths):
            continue  # a loop inside is hot already
        path = _cheapest(function, loops, loop, element_bytes, exponentials)
        if path is not None:
            paths.append((loop.body, path))
    if paths:
        return min((path for _, path in paths), key=lambda path: path.instructions_per_element)
    return _cheapest(function, loops, None, element_bytes, exponentials)


@dataclass(frozen=True)
class _Trail:
    """The cheapest way so far to a block with given counts of loaded bytes and exponentials."""

    instructions: int
    mufu: int
    blocks: tuple[int, ...]


def _cheapest(
    function: Function, loops: list[Loop], loop: Loop | None, element_bytes: int, exponentials: int
) -> HotPath | None:
    entry = loop.header if loop else 0
    body = loop.body if loop else frozenset(_dominators(function))
    headers = {one.header for one in loops if one.body <= body and (loop is None or one.header != loop.header)}
    finished: dict[tuple[int, int], _Trail] = {}
    at: dict[int, dict[tuple[int, int], _Trail]] = {entry: {(0, 0): _Trail(0, 0, ())}}
    for number in _topological(function, entry, body):
        block = function.blocks[number]
        loaded, exps = _vector_bytes(block), block.count("MUFU.EX2")
        leaves = entry in block.successors if loop else not block.successors
        for (bytes_before, exps_before), trail in at.pop(number, {}).items():
            key = (bytes_before + loaded, exps_before + exps)
            longer = _Trail(
                trail.instructions + len(block.instructions), trail.mufu + block.count("MUFU"), (*trail.blocks, number)
            )
            onward = [s for s in block.successors if s in body and s != entry and s not in trail.blocks]
            ends = [at.setdefault(s, {}) for s in onward] + ([finished] if leaves else [])
            for end in ends:
                if key not in end or longer.instructions < end[key].instructions:
                    end[key] = longer
    complete = [
        (loaded, trail)
        for (loaded, exps), trail in finished.items()
        if loaded > 0 and exps >= exponentials * (loaded // element_bytes)
    ]
    if not complete:
        return None
    loaded, trail = min(complete, key=lambda way: Fraction(way[1].instructions, way[0]))
    blocks = [function.blocks[number] for number in trail.blocks]
    return HotPath(
        looped=loop is not None,
        instructions=trail.instructions,
        mufu=trail.mufu,
        elements=loaded // element_bytes,
        scalar_loads=sum(0 < i.loaded_bytes < VECTOR_BYTES for block in blocks for i in block.instructions),
        inner_loops=len(headers.intersection(trail.blocks)),
        calls=sum(i.calls for block in blocks for i in block.instructions),
    )


def _vector_bytes(block: Block) -> int:
    return sum(i.loaded_bytes for i in block.instructions if i.loaded_bytes >= VECTOR_BYTES)


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
