"""Packed products against torch in float64, and the promise that a row's bits depend on nothing but the row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from engine.native.build import build
from engine.native.library import NativeLibrary
from engine.native.packed_linear import Kernel, PackedLinear, Packer, Store

DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8}
SHAPES = [(32, 32), (1, 1), (7, 3), (64, 48), (33, 17), (100, 33), (512, 96), (515, 130), (1024, 31), (1056, 200)]
ACTIVATIONS: dict[Store, Callable[[Tensor], Tensor]] = {
    Store.SILU_GATE: torch.nn.functional.silu,
    Store.GELU_TANH_GATE: partial(torch.nn.functional.gelu, approximate="tanh"),
}
ROWS = [1, 2, 3, 5, 16, 17, 31, 33, 48, 70, 130]


@pytest.fixture(scope="module", params=[1, 3], ids=["1-thread", "3-threads"])
def library(request: pytest.FixtureRequest) -> Iterator[NativeLibrary]:
    library = NativeLibrary(build(), request.param)
    yield library
    library.close()


@pytest.fixture
def packer(library: NativeLibrary) -> Packer:
    return Packer(library)


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def kernels(packer: Packer, dtype: torch.dtype) -> list[Kernel]:
    """Those that run on this machine: PLAIN everywhere."""
    if dtype == torch.float32:
        return [Kernel.BEST]
    matrix = packer.pack([numbers(4, 4, dtype=dtype)])
    found = []
    for kernel in Kernel:
        try:
            matrix.multiply(numbers(1, 4, dtype=dtype), kernel=kernel)
        except AssertionError:
            continue
        found.append(kernel)
    assert Kernel.PLAIN in found and Kernel.BEST in found
    return found


def sum_tolerance(x: Tensor, weight: Tensor) -> Tensor:
    """What float32 sums may be off: an ulp for each eighth of the depth, of the sum of the terms' sizes."""
    return 2.0**-24 * (4 + x.shape[-1] / 8) * (x.double().abs() @ weight.double().abs().t())


def assert_close(got: Tensor, expected: Tensor, tolerance: Tensor) -> None:
    """Within the tolerance and the rounding of the result's dtype."""
    assert got.shape == expected.shape
    excess = (got.double() - expected).abs() - (tolerance + ROUNDING[got.dtype] * expected.abs() + 1e-30)
    assert excess.max() <= 0, f"{excess.max()} over the tolerance"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("depth", "width"), SHAPES)
def test_product_is_that_of_torch(packer: Packer, dtype: torch.dtype, depth: int, width: int) -> None:
    """Whatever the shape, the number of rows and the kernel."""
    weight, bias = numbers(width, depth, dtype=dtype), numbers(width, dtype=dtype, seed=1)
    matrix, biased = packer.pack([weight]), packer.pack([weight], [bias])
    for kernel in kernels(packer, dtype):
        for num_rows in ROWS:
            x = numbers(num_rows, depth, dtype=dtype, seed=num_rows)
            expected = x.double() @ weight.double().t()
            assert_close(matrix.multiply(x, kernel=kernel), expected, sum_tolerance(x, weight))
            assert_close(biased.multiply(x, kernel=kernel), expected + bias.double(), 2 * sum_tolerance(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_and_a_deep_matrix(packer: Packer, dtype: torch.dtype) -> None:
    """Rows beyond one chunk of the cache, depth beyond one span."""
    x, weight = numbers(700, 2100, dtype=dtype), numbers(70, 2100, dtype=dtype, seed=1)
    for kernel in kernels(packer, dtype):
        got = packer.pack([weight]).multiply(x, kernel=kernel)
        assert_close(got, x.double() @ weight.double().t(), sum_tolerance(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("store", list(ACTIVATIONS))
@pytest.mark.parametrize("width", [1, 15, 16, 40, 96])
def test_gated_product(packer: Packer, dtype: torch.dtype, store: Store, width: int) -> None:
    """activation(gate) * up, with a bias on one of them, as torch computes it in float64."""
    depth = 70
    gate, up = numbers(width, depth, dtype=dtype), numbers(width, depth, dtype=dtype, seed=1)
    bias = numbers(width, dtype=torch.float32, seed=2)
    matrix = packer.pack_gated(gate, up, [bias, None])
    for num_rows in (1, 5, 40):
        x = 3 * numbers(num_rows, depth, dtype=dtype, seed=num_rows)
        gates, ups = x.double() @ gate.double().t() + bias.double(), x.double() @ up.double().t()
        activated = ACTIVATIONS[store](gates)
        tolerance = activated.abs() * sum_tolerance(x, up) + 3 * ups.abs() * sum_tolerance(x, gate)
        tolerance += 2.0**-20 * (activated * ups).abs()
        for kernel in kernels(packer, dtype):
            assert_close(matrix.multiply(x, store=store, kernel=kernel), activated * ups, tolerance)


def test_activation_is_accurate_over_its_whole_range(packer: Packer) -> None:
    """Gates from -200 to 200, beyond where the exponential overflows; up is 1."""
    one = torch.ones(1, 1)
    matrix = packer.pack_gated(one, torch.zeros(1, 1), [None, torch.ones(1)])
    x = torch.cat([torch.linspace(-200, 200, 4001), torch.linspace(-1, 1, 4001)]).unsqueeze(1)
    silu, gelu = (activation(x.double()) for activation in ACTIVATIONS.values())
    got = matrix.multiply(x, store=Store.SILU_GATE)
    assert_close(got, silu, 2.0**-22 * silu.abs())
    got = matrix.multiply(x, store=Store.GELU_TANH_GATE)
    assert_close(got, gelu, 2.0**-22 * gelu.abs() * (1 + x.double().abs() ** 3) + 1e-14)
    assert matrix.multiply(torch.full((1, 1), float("nan"))).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_added_to_the_residual(packer: Packer, dtype: torch.dtype) -> None:
    weight, x = numbers(50, 65, dtype=dtype), numbers(19, 65, dtype=dtype, seed=1)
    matrix, before = packer.pack([weight]), numbers(19, 50, dtype=torch.float32, seed=2)
    for kernel in kernels(packer, dtype):
        after = before.clone()
        assert matrix.multiply(x, out=after, store=Store.ADD, kernel=kernel) is after
        sums = torch.empty(19, 50)
        matrix.multiply(x, out=sums, kernel=kernel)
        assert torch.equal(after, before + sums)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("gated", [False, True])
def test_nothing_is_written_beside_the_result(
    packer: Packer, dtype: torch.dtype, out_dtype: torch.dtype, gated: bool
) -> None:
    """Strided rows in, strided rows out of a larger matrix whose other numbers stay."""
    for width in (1, 16, 17, 31, 33, 47):
        weight, up = numbers(width, 40, dtype=dtype), numbers(width, 40, dtype=dtype, seed=1)
        matrix = packer.pack_gated(weight, up) if gated else packer.pack([weight])
        for num_rows in (1, 4, 18, 33):
            x = numbers(num_rows, 50, dtype=dtype, seed=num_rows)[:, 3:43]
            around = torch.full((num_rows + 2, width + 9), 7.0, dtype=out_dtype)
            out = around[1:-1, 4:-5]
            expected = torch.empty(num_rows, width, dtype=out_dtype)
            matrix.multiply(x.contiguous(), out=expected)
            matrix.multiply(x, out=out)
            assert torch.equal(out, expected)
            out.fill_(7.0)
            assert (around == 7.0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("depth", "width"), [(64, 64), (1031, 75), (2080, 33)])
def test_row_bits_do_not_depend_on_the_company(packer: Packer, dtype: torch.dtype, depth: int, width: int) -> None:
    """Every number of rows from 1 to 70, and many, in every kernel: the same bits, wherever a row stands."""
    matrix = packer.pack([numbers(width, depth, dtype=dtype)])
    gated = packer.pack_gated(numbers(width, depth, dtype=dtype), numbers(width, depth, dtype=dtype, seed=1))
    x = numbers(601, depth, dtype=dtype, seed=2)
    for kernel in kernels(packer, dtype):
        for packed in (matrix, gated):
            alone = torch.cat([packed.multiply(row.unsqueeze(0), kernel=kernel) for row in x])
            for num_rows in (*range(1, 71), 127, 300, 512, 601):
                first = (num_rows * 7) % (602 - num_rows)
                got = packed.multiply(x[first : first + num_rows], kernel=kernel)
                assert torch.equal(got, alone[first : first + num_rows]), f"{num_rows} rows, {kernel.name}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_threads(dtype: torch.dtype) -> None:
    weight, x = numbers(301, 130, dtype=dtype), numbers(150, 130, dtype=dtype, seed=1)
    results = []
    for num_threads in (1, 2, 3):
        library = NativeLibrary(build(), num_threads)
        results.append(Packer(library).pack([weight]).multiply(x))
        library.close()
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_projections_side_by_side(packer: Packer, dtype: torch.dtype) -> None:
    """q, k and v in one matrix: each as if it were alone, its bias its own, a transposed one too."""
    q, k, v = (numbers(width, 72, dtype=dtype, seed=width) for width in (50, 21, 33))
    biases = [numbers(50, dtype=dtype), None, numbers(33, dtype=dtype)]
    x = numbers(9, 72, dtype=dtype)
    together = packer.pack([q, k.t().contiguous().t(), v], biases).multiply(x)
    alone = [packer.pack([weight], [bias]).multiply(x) for weight, bias in zip((q, k, v), biases, strict=True)]
    assert torch.equal(together, torch.cat(alone, dim=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_leading_shape(packer: Packer, dtype: torch.dtype) -> None:
    """As a linear module's forward: [1, T, depth] in, [1, T, N] out; also no rows, and columns as rows."""
    matrix: PackedLinear = packer.pack([numbers(24, 40, dtype=dtype)])
    x = numbers(1, 6, 40, dtype=dtype)
    result = matrix.multiply(x)
    assert result.shape == (1, 6, 24) and torch.equal(result[0], matrix.multiply(x[0]))
    assert matrix.multiply(x[:, :0]).shape == (1, 0, 24)
    columns = numbers(40, 6, dtype=dtype)
    assert torch.equal(matrix.multiply(columns.t()), matrix.multiply(columns.t().contiguous()))
