"""The analyser of machine code, on code written here and on compiled kernels whose answers are known (planted.cu)."""

from pathlib import Path

import pytest
from gpu_free.machine_code import sass, tools
from gpu_free.machine_code.hot_loop import find_hot_path, find_loops
from gpu_free.machine_code.occupancy import occupancy

needs_nvcc = pytest.mark.skipif(
    any(tools.find(name) is None for name in ("nvcc", "nvdisasm", "cuobjdump")), reason="needs nvcc and Triton's tools"
)
LISTING = """
	.section	.text.kernel,"ax",@progbits
kernel:
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/               @P0 EXIT ;
.L_x_2:
        /*0020*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0030*/              @!P1 BRA `(.L_x_0) ;
        /*0040*/                   MUFU.LG2 R9, R4 ;
        /*0050*/                   FADD R9, R9, R4 ;
.L_x_0:
{exponentials}
        /*0100*/               @P2 CALL.REL.NOINC `(.L_x_1) ;
        /*0110*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0120*/                   CALL.REL.NOINC `($kernel$helper) ;
        /*0130*/                   EXIT ;
.L_x_3:
        /*0140*/                   BRA `(.L_x_3);
"""


def listing(exponentials: int) -> sass.Function:
    lines = [f"        /*{0x60 + 16 * i:04x}*/                   MUFU.EX2 R{i}, R4 ;" for i in range(exponentials)]
    (function,) = sass.parse(LISTING.format(exponentials="\n".join(lines)))
    return function


def test_listing_has_its_blocks_edges_and_loop() -> None:
    function = listing(exponentials=4)
    assert function.name == "kernel"
    #                    entry   the load  rare   exponentials  back  call, exit  padding
    assert [len(block.instructions) for block in function.blocks] == [2, 2, 2, 5, 1, 2, 1]
    assert [block.successors for block in function.blocks] == [[1], [2, 3], [3], [4, 5], [1], [], [6]]
    assert [(loop.header, sorted(loop.body)) for loop in find_loops(function)] == [(1, [1, 2, 3, 4])]


def test_hot_path_leaves_out_the_rare_block_and_needs_every_exponential() -> None:
    path = find_hot_path(listing(exponentials=4), element_bytes=4)
    assert path is not None and path.looped
    assert (path.instructions, path.mufu, path.elements) == (8, 4, 4)
    assert find_hot_path(listing(exponentials=4), element_bytes=2) is None  # four exponentials for eight elements
    assert find_hot_path(listing(exponentials=4), element_bytes=4, exponentials=2) is None


def test_a_block_that_has_to_be_passed_is_not_rare() -> None:
    path = find_hot_path(listing(exponentials=4), element_bytes=4, through={"MUFU.LG2": 1})
    assert path is not None
    assert (path.instructions, path.mufu) == (10, 5)
    assert find_hot_path(listing(exponentials=4), element_bytes=4, through={"MUFU.LG2": 2}) is None


def test_a_branch_that_goes_nowhere_is_refused() -> None:
    text = LISTING.format(exponentials="")
    with pytest.raises(ValueError, match=r"branch at 0x30 .* \['.L_x_9'\]"):
        sass.parse(text.replace("`(.L_x_0)", "`(.L_x_9)"))
    with pytest.raises(ValueError, match="branch at 0x110"):
        sass.parse(text.replace("BRA `(.L_x_2)", "BRX R4 -0x120"))


def test_an_indirect_branch_goes_to_all_its_labels() -> None:
    indirect = """BRX R4 -0x120  (*"BRANCH_TARGETS .L_x_2,.L_x_0"*)"""
    (function,) = sass.parse(LISTING.format(exponentials="").replace("BRA `(.L_x_2)", indirect))
    assert function.blocks[4].successors == [1, 3]


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "expected"),
    [
        ("90a", 256, 32, 0, 1.0),
        ("90a", 256, 33, 0, 6 / 8),  # 33 registers are allocated as 40: 51 warps, in whole blocks of 8
        ("90a", 128, 255, 0, 8 / 64),
        ("90a", 128, 32, 113 * 1024, 8 / 64),  # two blocks by shared memory
        ("90a", 128, 32, 114 * 1024, 4 / 64),  # with their KiB for the system, one
        ("80", 1024, 64, 0, 32 / 64),
        ("120", 1024, 32, 0, 32 / 48),
        ("120", 32, 32, 0, 24 / 48),  # by the number of blocks
    ],
)
def test_occupancy(arch: str, threads: int, registers: int, shared: int, expected: float) -> None:
    assert occupancy(arch, threads, registers, shared) == expected


@pytest.fixture(scope="module")
def cubin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cubin = tmp_path_factory.mktemp("planted") / "planted.cubin"
    source = str(Path(__file__).with_name("planted.cu"))
    tools.run("nvcc", "-cubin", "-O3", "-arch=sm_90a", source, "-o", str(cubin))
    return cubin


@pytest.fixture(scope="module")
def functions(cubin: Path) -> dict[str, sass.Function]:
    return {function.name: function for function in sass.parse(tools.disassemble(cubin))}


@needs_nvcc
@pytest.mark.parametrize("kernel", ["one_vector", "rare_branch", "inner_loop", "straight"])
def test_a_vector_takes_eight_exponentials(functions: dict[str, sass.Function], kernel: str) -> None:
    path = find_hot_path(functions[kernel], element_bytes=2)
    assert path is not None
    assert (path.elements, path.mufu, path.scalar_loads, path.calls) == (8, 8, 0, 0)
    # A load, 8 shifts or masks, 8 subtractions, 8 exponentials, 8 additions, and at most 12 for the loop.
    assert 33 <= path.instructions <= 45
    assert path.looped == (kernel != "straight")
    assert path.inner_loops == (kernel == "inner_loop")


@needs_nvcc
def test_an_unrolled_loop_counts_all_its_vectors(functions: dict[str, sass.Function]) -> None:
    path = find_hot_path(functions["four_vectors"], element_bytes=2)
    assert path is not None
    assert (path.elements, path.mufu_per_element) == (32, 1.0)
    assert 4.1 < path.instructions_per_element < 4.5


@needs_nvcc
def test_two_exponentials_of_every_element_where_they_are_asked_for(
    functions: dict[str, sass.Function]
) -> None:
    once = find_hot_path(functions["two_exponentials"], element_bytes=2)
    twice = find_hot_path(functions["two_exponentials"], element_bytes=2, exponentials=2)
    assert once is not None and twice is not None
    assert (once.mufu_per_element, twice.mufu_per_element) == (1.0, 2.0)
    assert twice.instructions - once.instructions >= 24  # 8 subtractions, exponentials and additions


@needs_nvcc
def test_scalar_loads_are_no_hot_path(functions: dict[str, sass.Function]) -> None:
    loads = [i.loaded_bytes for i in functions["scalar_loads"].instructions() if i.loaded_bytes]
    assert set(loads) == {2}
    assert find_hot_path(functions["scalar_loads"], element_bytes=2) is None


@needs_nvcc
def test_spills_are_seen_by_both_tools(cubin: Path, functions: dict[str, sass.Function]) -> None:
    resources = tools.resources(cubin, "90a")
    spilled = {name: sum(i.spills for i in function.instructions()) for name, function in functions.items()}
    assert spilled["spilling"] > 0 and resources["spilling"].stack > 0
    assert resources["spilling"].registers == 64
    for name in set(functions) - {"spilling"}:
        assert spilled[name] == 0 and resources[name].stack == 0


@needs_nvcc
def test_shared_memory_is_the_blocks_own(cubin: Path) -> None:
    resources = tools.resources(cubin, "90a")
    assert (resources["through_shared_memory"].shared, resources["one_vector"].shared) == (1024, 0)


@needs_nvcc
def test_block_sizes_are_those_of_launch_bounds(cubin: Path) -> None:
    bounds = tools.largest_blocks(cubin)
    assert (bounds["one_vector"], bounds["spilling"]) == (256, 1024)
