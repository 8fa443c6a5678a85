"""Machine code of NVIDIA GPUs as `nvdisasm` prints it: functions, basic blocks and the edges between them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_SECTION = re.compile(r"^\s*\.section\s+\.text\.([^\s,]+),", re.MULTILINE)
_LABEL = re.compile(r"^([^\s/][^\s]*):$")
_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]+)\*/\s+(?:@(?P<predicate>!?U?P[T\d]+)\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>.*?)\s*;"
)
_TARGET = re.compile(r"`\(([^)]+)\)|BRANCH_TARGETS ([^\"]+)")
_INDIRECT = ("BRX", "BRXU", "JMX", "JMXU")


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str  # "" where the instruction always runs
    opcode: str  # with its modifiers: LDG.E.128.CONSTANT
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.split(".", 1)[0]

    @property
    def conditional(self) -> bool:
        """Whether it may do nothing: it has a predicate or, in a branch, another operand before the label."""
        return bool(self.predicate) or (self.name == "BRA" and not self.operands.startswith("`("))

    @property
    def jumps(self) -> bool:
        """A branch to a label, also one that is written as a call: of a label that is no function's."""
        return self.name in ("BRA", *_INDIRECT) or (self.name == "CALL" and "`(.L_" in self.operands)

    @property
    def calls(self) -> bool:
        return self.name == "CALL" and not self.jumps

    @property
    def targets(self) -> list[str]:
        """Labels that a branch goes to; the disassembler lists those of an indirect one."""
        found = _TARGET.search(self.operands)
        return (found.group(1) or found.group(2)).split(",") if found else []

    @property
    def loaded_bytes(self) -> int:
        """Bytes that each thread loads from global memory: 0 for anything but a plain global load."""
        if self.name != "LDG":
            return 0
        widths = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
        return next((widths[part] for part in self.opcode.split(".") if part in widths), 4)

    @property
    def spills(self) -> bool:
        """Whether it moves registers to or from local memory."""
        return self.name in ("LDL", "STL")

    @property
    def tensor_core(self) -> bool:
        """Warp (HMMA), warp group (HGMMA) and Blackwell's (UTCHMMA) matrix instructions, of any type of element."""
        return "MMA" in self.name and "FMA" not in self.name


@dataclass
class Block:
    """Instructions that run from the first to the last. Successors are indices of blocks of the same function."""

    instructions: list[Instruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)

    def count(self, name: str) -> int:
        """Instructions whose opcode is `name`, or starts with `name.`."""
        return sum(i.opcode == name or i.opcode.startswith(f"{name}.") for i in self.instructions)


@dataclass
class Function:
    """One kernel with the device functions that it calls; blocks[0] is its entry."""

    name: str
    blocks: list[Block]

    def instructions(self) -> Iterator[Instruction]:
        for block in self.blocks:
            yield from block.instructions


def parse(text: str) -> list[Function]:
    """The functions of `nvdisasm -c`.

    Raises:
        ValueError: nothing says where a branch goes.
    """
    # re.split with one group: text before the first section, then name and text of each.
    parts = _SECTION.split(text)[1:]
    return [_function(name, body.splitlines()) for name, body in zip(parts[::2], parts[1::2], strict=True)]


def _function(name: str, lines: list[str]) -> Function:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}  # label -> index of the instruction after it
    for line in lines:
        if label := _LABEL.match(line):
            labels[label.group(1)] = len(instructions)
        elif line.lstrip().startswith("//-"):  # the next section, of data
            break
        elif found := _INSTRUCTION.match(line):
            address, predicate, opcode, operands = found.groups()
            instructions.append(Instruction(int(address, 16), predicate or "", opcode, operands))
    starts = {index for index in labels.values() if index < len(instructions)} | {0}
    starts |= {i + 1 for i, one in enumerate(instructions) if _ends_block(one) and i + 1 < len(instructions)}
    order = sorted(starts)
    number = {start: block for block, start in enumerate(order)}
    blocks = []
    for start, end in zip(order, [*order[1:], len(instructions)], strict=True):
        last = instructions[end - 1]
        successors = []
        if last.jumps:
            unknown = [label for label in last.targets if label not in labels]
            if unknown or not last.targets:
                raise ValueError(f"{name}: where does the branch at {last.address:#x} go? {unknown or last.operands}")
            successors += [number[labels[label]] for label in last.targets]
        if (not _ends_block(last) or last.conditional) and end < len(instructions):
            successors.append(number[end])
        blocks.append(Block(instructions[start:end], sorted(set(successors))))
    return Function(name, blocks)


def _ends_block(instruction: Instruction) -> bool:
    return instruction.jumps or instruction.name in ("EXIT", "RET", "KILL", "BPT")
