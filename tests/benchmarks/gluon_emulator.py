"""Run a Gluon kernel for Hopper GPUs on a CPU, one program after the other, on torch tensors.

Threads, registers and layouts are not modelled; asynchronous operations are. Copies to and from shared memory, and
products, happen either at once or as late as a kernel's waits allow. A kernel that gives the same correct result in
every mode waits for what it reads, and reuses no buffer too early.
"""

import math
from types import FunctionType, SimpleNamespace
from typing import NamedTuple

import torch


class Modes(NamedTuple):
    """Which operations happen as late as possible, rather than at once."""

    loads: bool
    stores: bool
    products: bool


class Integer(int):
    """A scalar of a kernel. Tensors without axes would take most of the time of an emulation."""

    def to(self, dtype):
        return self


def _of_integers(name):
    compute = getattr(int, name)

    def operator(self, other):
        result = compute(self, other)
        return result if result is NotImplemented else Integer(result)

    return operator


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod", "rmod", "and", "rand"):
    setattr(Integer, f"__{_name}__", _of_integers(f"__{_name}__"))


class Pointer:
    def __init__(self, array, offsets=0):
        self.array, self.offsets = array, offsets

    def __add__(self, offsets):
        return Pointer(self.array, self.offsets + offsets)

    def memory(self):
        """Return all memory from the array's first element on, in one dimension."""
        size = self.array.untyped_storage().nbytes() // self.array.itemsize - self.array.storage_offset()
        return self.array.as_strided((size,), (1,))


class Shared:
    """A block of shared memory."""

    def __init__(self, array):
        self.array = array

    def index(self, i):
        return Shared(self.array[int(i)])

    def reshape(self, shape):
        return Shared(self.array.view(shape))

    def permute(self, order):
        return Shared(self.array.permute(order))

    def slice(self, start, length, dim=0):
        return Shared(self.array.narrow(dim, int(start), length))

    def load(self, layout):
        return self.array.clone()

    def store(self, x):
        assert x.dtype == self.array.dtype
        self.array.copy_(x)


class Barrier:
    """An mbarrier: the expected bytes and the copies of each phase, and the number of phases waited for."""

    def __init__(self):
        self.phases, self.waited = [], 0

    def expect(self, size, pred=True):
        if pred:
            self.phases.append((size, []))

    def wait(self, parity):
        assert parity == self.waited & 1, "the parity of another phase"
        assert self.waited < len(self.phases), "nothing was started: the GPU would hang"
        size, copies = self.phases[self.waited]
        self.waited += 1
        assert size == sum(bytes for bytes, _ in copies), "not the expected bytes: the GPU would hang"
        for _, copy in copies:
            copy()


class Descriptor:
    """What a Gluon TensorDescriptor describes: reads are filled with zeros, and writes clipped, at its bounds."""

    def __init__(self, described):
        base = described.base
        self.view = base.as_strided(described.shape, described.strides, base.storage_offset())
        self.block, self.layout = described.block_shape, None
        self.block_type = SimpleNamespace(nbytes=math.prod(self.block) * base.itemsize)

    def part(self, at):
        return self.view[tuple(slice(int(i), int(i) + size) for i, size in zip(at, self.block, strict=True))]

    def read(self, at):
        part = self.part(at)
        if list(part.shape) == list(self.block):
            return part
        block = torch.zeros(self.block, dtype=self.view.dtype)
        block[tuple(slice(size) for size in part.shape)] = part
        return block

    def write(self, at, block):
        part = self.part(at)
        part.copy_(block[tuple(slice(size) for size in part.shape)])


class Emulator:
    """The functions of Gluon by name, and the operations that have not happened yet."""

    def __init__(self, modes):
        self.modes, self.stores, self.products = modes, [], []
        self.program = self.programs = Integer(0)
        self.converted = {}
        self.names = {
            "gl": self._language(),
            "mbarrier": SimpleNamespace(expect=Barrier.expect, wait=Barrier.wait),
            "tma": SimpleNamespace(store_wait=self._wait_for_stores),
            "barriers": Barriers,
            "async_load": self._load,
            "async_store": self._store,
            "warpgroup_mma": self._multiply,
            "warpgroup_mma_wait": self._wait_for_products,
            **dict.fromkeys(["fence_async_shared", "barrier", "gdc_wait", "gdc_launch_dependents"], lambda: None),
        }

    def launcher(self, kernel):
        """Return an object that is launched like the kernel, and emulates it."""
        return _Launcher(self, kernel)

    def function(self, jitted):
        """Return the Python function of a kernel or of a function that it calls, with Gluon's operations emulated."""
        plain = jitted.fn
        if plain not in self.converted:
            names = {}
            self.converted[plain] = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__)
            for name in plain.__code__.co_names:
                if name in self.names:
                    names[name] = self.names[name]
                elif name in plain.__globals__:
                    value = plain.__globals__[name]
                    names[name] = self.function(value) if hasattr(value, "fn") else value
        return self.converted[plain]

    def _language(self):
        def pair(a, b):
            return torch.as_tensor(a), torch.as_tensor(b, dtype=torch.as_tensor(a).dtype)

        def minimum(a, b):
            return min(a, b) if isinstance(a, int) else torch.minimum(*pair(a, b))

        def where(condition, a, b):
            if isinstance(condition, int):
                return a if condition else b
            return torch.where(condition, *map(torch.as_tensor, (a, b)))

        def load(pointer, mask=None, other=0.0):
            memory, offsets = pointer.memory(), torch.as_tensor(pointer.offsets)
            mask = torch.ones_like(offsets, dtype=torch.bool) if mask is None else mask.expand(offsets.shape)
            result = torch.full(offsets.shape, other, dtype=memory.dtype)
            result[mask] = memory[offsets[mask]]
            return result

        def store(pointer, x, mask):
            mask = mask.expand(x.shape)
            pointer.memory()[pointer.offsets.expand(x.shape)[mask]] = x[mask].to(pointer.array.dtype)

        def layout(*_, **__):
            return None

        def check(condition):
            assert condition

        return SimpleNamespace(
            bfloat16=torch.bfloat16, float32=torch.float32, int64=torch.int64,
            program_id=lambda _: self.program, num_programs=lambda _: self.programs,
            cdiv=lambda a, b: -(-a // b), static_range=range,
            minimum=minimum, where=where, maximum=lambda a, b: torch.maximum(*pair(a, b)),
            exp=torch.exp, exp2=torch.exp2, log2=torch.log2, fma=lambda a, b, c: a * b + c,
            sum=lambda x, axis: x.sum(axis), max=lambda x, axis: x.amax(axis),
            arange=lambda start, end, layout: torch.arange(start, end),
            zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
            full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
            convert_layout=lambda x, layout: x,
            allocate_shared_memory=lambda dtype, shape, layout: Shared(torch.full(shape, float("nan"), dtype=dtype)),
            SliceLayout=layout, NVMMADistributedLayout=layout, DotOperandLayout=layout,
            NVMMASharedLayout=SimpleNamespace(get_default_for=layout),
            static_assert=check, load=load, store=store,
        )  # fmt: skip

    def _load(self, desc, at, full, smem, pred):
        if not pred:
            return

        def copy():
            smem.array.copy_(desc.read(at))

        if not self.modes.loads:
            copy()
        full.phases[-1][1].append((desc.block_type.nbytes, copy if self.modes.loads else lambda: None))

    def _store(self, desc, at, smem):
        def copy():
            desc.write(at, smem.array)

        if not self.modes.stores:
            copy()
        self.stores.append(copy if self.modes.stores else lambda: None)

    def _wait_for_stores(self, pending):
        while len(self.stores) > pending:
            self.stores.pop(0)()

    def _multiply(self, a, b, acc, use_acc=True, is_async=False):
        result = []

        def compute():
            base = (acc[0] if isinstance(acc, list) else acc) if use_acc else 0
            left = a.array if isinstance(a, Shared) else a
            result.append(left.float() @ b.array.float() + base)

        if is_async and self.modes.products:
            self.products.append(compute)
        else:
            compute()
        return result if is_async else result[0]

    def _wait_for_products(self, num_outstanding, deps):
        while len(self.products) > num_outstanding:
            self.products.pop(0)()
        results = [dep[0] if isinstance(dep, list) else dep for dep in deps]
        return results[0] if len(results) == 1 else tuple(results)


class Barriers:
    def __init__(self, count):
        self.barriers = [Barrier() for _ in range(count)]

    def index(self, i):
        return self.barriers[int(i)]


class _Launcher:
    def __init__(self, emulator, kernel):
        self.emulator, self.kernel = emulator, kernel

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            function = self.emulator.function(self.kernel)
            parameters = function.__code__.co_varnames[: function.__code__.co_argcount]
            constants = {name: value for name, value in options.items() if name in parameters}
            converted = [self._converted(argument) for argument in arguments]
            self.emulator.programs = Integer(grid[0])
            for program in range(grid[0]):
                self.emulator.program = Integer(program)
                function(*converted, **constants)
                assert not self.emulator.stores and not self.emulator.products

        return launch

    @staticmethod
    def _converted(argument):
        if hasattr(argument, "block_shape"):
            return Descriptor(argument)
        return Pointer(argument) if isinstance(argument, torch.Tensor) else argument
