"""A GPU that is not there: tensors that say they are on "cuda:0", and keep a CPU tensor inside.

What it is strict about is what only a GPU would tell: an operation that mixes devices raises, as CUDA's would; what makes the
host wait for results (`.item()`, boolean masks, copies from the device) is counted, and copies to the device apart (they wait
too); and a CUDA graph records kernels with their addresses and replays just them, so that Python that ran while it was recorded
does not run again. Waiting and copies are errors while a graph is recorded. Numbers are a CPU's, to the bit; with `shapes` there
are none, so that a model of any size fits, and its kernels, FLOPs and bytes can be counted (replayed ones are not counted again).

    with pretend_gpu() as gpu:
        model.to("cuda")  # torch.cuda.is_available() is true in here
        ...
    gpu.counts  # kernels (operations of ATen; views and empty tensors are none), waits, uploads, replays, flop
    gpu.peak  # bytes of live tensors at the worst moment; gpu.held: now

Not shown by it: speed, CUDA's own rounding and kernels (flash-attn, what a kernel uses inside), several streams or GPUs. Of a
CUDA graph: recording runs the kernels too, which CUDA leaves to the first replay, and what they made is never overwritten.
"""

import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch._dynamo  # noqa: F401  (it looks at torch.cuda when it is imported first: that must be the real one)
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary
from accelerate.state import AcceleratorState
from transformers.utils import is_torch_bf16_gpu_available

torch.utils._device._device_constructors()  # remembers, of torch.tensor and its like, those that are there at its first call
GPU = torch.device("cuda:0")
aten = torch.ops.aten
# What looks at values before it knows its result's shape or branch: the host waits for the device.
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.is_nonzero, aten.equal, aten._unique2, aten.unique_dim,
         aten.unique_consecutive, aten.bincount, aten.repeat_interleave, aten._is_all_true, aten.item}  # fmt: skip
# What takes tensors of the host beside those of the device; advanced indexing uploads its indices.
PUT = {aten.index_put, aten.index_put_, aten._index_put_impl_}
INDEXED = {aten.index, *PUT}
MIXED = {*INDEXED, aten._to_copy, aten.copy_}
STRICT = {aten.cat, aten.stack, aten.index_select, aten.gather}  # which take no single number of the host either
NO_KERNEL = {aten._unsafe_view, aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten._local_scalar_dense}


def sums_of_products_in_float32(c, a, b, dtype, *, beta=1, alpha=1, out):
    return out.copy_(torch.addmm(c, a.to(dtype), b.to(dtype), beta=beta, alpha=alpha))


ONLY_THERE = {aten.addmm.dtype_out: sums_of_products_in_float32}  # kernels that CPUs lack

plain_to = torch.Tensor.to


def to(tensor, *args, **kwargs):
    """Tensor.to for a tensor of the host: "cuda" is the first GPU (torch would ask CUDA which)."""
    if isinstance(tensor, OnGPU):
        return OnGPU.to(tensor, *args, **kwargs)
    device, dtype = asked(args, kwargs)
    if device is None or device.type != "cuda":
        return plain_to(tensor, *args, **kwargs)
    return plain_to(tensor, device=GPU, dtype=tensor.dtype if dtype is None else dtype)


def asked(args, kwargs):
    """(device, dtype) that a call of Tensor.to names."""
    return torch._C._nn._parse_to(*args, **{k: v for k, v in kwargs.items() if k != "copy"})[:2]


plain_tensor = torch.tensor


def tensor(data, *args, **kwargs):
    """torch.tensor, which reads what is in the tensors of a list without asking the dispatcher; made on the host, then moved."""
    data, device = tree_map(lambda a: a.tolist() if isinstance(a, OnGPU) else a, data), kwargs.get("device")
    contexts = [mode.device for mode in _get_current_function_mode_stack() if isinstance(mode, DeviceContext)]  # with torch.device(...)
    if torch.device((["cpu", *contexts][-1]) if device is None else device).type != "cuda":
        return plain_tensor(data, *args, **kwargs)
    return plain_tensor(data, *args, **kwargs | {"device": "cpu"}).to(GPU)


class OnGPU(torch.Tensor):
    """A tensor on the GPU that is not there; `raw` is what it holds. To C++ it is on the CPU: a build without CUDA has no guards for it."""

    device, is_cuda, is_cpu = GPU, True, False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, layout=raw.layout, device="cpu")  # fmt: skip

    def __init__(self, raw: torch.Tensor):
        self.raw = raw

    def __tensor_flatten__(self):
        return ["raw"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride):
        return OnGPU(inner["raw"])

    def __repr__(self):
        return f"OnGPU({self.raw!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} was called on a GPU's tensor outside `pretend_gpu()`")

    def to(self, *args, **kwargs):
        device, dtype = asked(args, kwargs)
        if device is None or device.type == "cuda":
            return plain_to(self, self.dtype if dtype is None else dtype, copy=kwargs.get("copy", False))
        return Down.apply(self if dtype is None else plain_to(self, dtype))

    def cpu(self):
        return self.to("cpu")

    def cuda(self, *_, **__):
        return self

    def get_device(self):
        return 0

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self):
        return self.cpu().tolist()

    def untyped_storage(self):
        return self.raw.untyped_storage()

    def data_ptr(self):
        return self.raw.data_ptr()

    def __reduce_ex__(self, protocol):
        return self.detach().cpu().__reduce_ex__(protocol)


class Down(torch.autograd.Function):
    """A copy to the host, and its gradient back."""

    asked = False  # else a copy "to the CPU" is C++'s own, of the device that it takes a tensor to be on

    @staticmethod
    def forward(ctx, there):
        Down.asked = True
        try:
            return aten._to_copy.default(there, device=torch.device("cpu"))
        finally:
            Down.asked = False

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to(GPU)


def flop(func, args) -> int:
    """FLOPs of a product or of attention; of all else 0. Attention's backward computes its scores again: 5 products for 2."""
    packet = func.overloadpacket
    if packet in (aten.mm, aten.bmm, aten.addmm, aten.baddbmm):
        a, b = args[:2] if packet in (aten.mm, aten.bmm) else args[1:3]
        return 2 * a.numel() * b.shape[-1]
    if packet in (aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention_for_cpu_backward):
        back = packet is aten._scaled_dot_product_flash_attention_for_cpu_backward
        q, k = args[1:3] if back else args[:2]
        causal = args[7] if back else len(args) > 4 and args[4]
        return (5 if back else 2) * 2 * q.numel() * k.shape[2] // (2 if causal else 1)
    return 0


plain_autocast = torch.autocast
LARGE = 2**24  # bytes of whole numbers, masks above all, whose values are given up too


class Graph:
    """A CUDA graph: the kernels that were launched between capture_begin and capture_end, with their tensors."""

    recording: "Graph | None" = None

    def __init__(self, gpu: "Device"):
        self.gpu, self.kernels = gpu, []

    def replay(self):
        with plain_autocast("cpu", enabled=False):  # which kernels were launched is settled
            for func, args, kwargs, results in self.kernels:
                again = func(*args, **kwargs)
                for old, new in zip(tree_flatten(results)[0], tree_flatten(again)[0]):
                    if isinstance(old, torch.Tensor) and old is not new:
                        old.copy_(new)
        self.gpu.counts["replays"] += 1


class Device(TorchDispatchMode):
    """Runs everything on the CPU and keeps account of where it would have run.

    shapes: floats have shapes and no values (what is read of them is 0), so that any size fits; whole numbers are real.
    """

    def __init__(self, shapes: bool = False):
        super().__init__()
        self.shapes, self.counts, self.waits = shapes, Counter(), Counter()  # waits: by operation
        self.held, self.peak, self.known = 0, 0, WeakIdKeyDictionary()  # bytes on the device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat, spec = tree_flatten((args, kwargs))
        packet, wanted = func.overloadpacket, next((a for a in flat if isinstance(a, torch.device)), None)
        there = [a for a in flat if isinstance(a, OnGPU)]
        if not there and (wanted is None or wanted.type != "cuda"):
            return func(*args, **kwargs)
        here = [a for a in flat if isinstance(a, torch.Tensor) and not isinstance(a, OnGPU)]
        mixed = packet not in MIXED and any(a.ndim or packet in STRICT for a in here)
        if packet in INDEXED:  # indices may be the host's
            mixed = not isinstance(args[0], OnGPU) or packet in PUT and not isinstance(args[2], OnGPU) and args[2].ndim > 0
        if there and mixed:
            tensors = ", ".join(f"{a.device} {tuple(a.shape)}" for a in flat if isinstance(a, torch.Tensor))
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {tensors}")
        down = packet is aten._to_copy and Down.asked or packet is aten.copy_ and not isinstance(flat[0], OnGPU)
        up = not down and packet in MIXED and any(a.ndim or packet not in INDEXED for a in here)
        masked = packet in INDEXED and any(isinstance(a, OnGPU) and a.dtype == torch.bool for a in tree_flatten(args[1])[0])
        masked &= packet not in PUT or args[2].ndim > 0  # one number is filled in without waiting
        wait = packet in WAITS or down or masked
        self.counts.update(waits=wait, uploads=up)
        self.waits.update([str(packet)] * wait)
        if Graph.recording and (wait or up):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        flat = [a.raw if isinstance(a, OnGPU) else torch.device("cpu") if isinstance(a, torch.device) else a for a in flat]
        out = self._run(func, *tree_unflatten(flat, spec), down)
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not view and Graph.recording:
            Graph.recording.kernels.append((func, *tree_unflatten(flat, spec), out))
        if not view and packet not in NO_KERNEL:
            self.counts.update(kernels=1, flop=flop(func, args))
        if down:
            return args[0] if packet is aten.copy_ else out
        wrapped = tree_map(lambda a: OnGPU(self._hold(a)) if isinstance(a, torch.Tensor) else a, out)
        return wrapped if packet is aten._to_copy or not there else return_and_correct_aliasing(func, args, kwargs, wrapped)

    def _run(self, func, args, kwargs, down: bool):
        """An operation on what the tensors hold; with `shapes`, on their shapes where a float is among them."""
        kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"}
        flat, spec = tree_flatten((args, kwargs))
        tensors = [a for a in flat if isinstance(a, torch.Tensor)]
        if not self.shapes or tensors and not any(a.is_meta for a in tensors):
            out = ONLY_THERE.get(func, func)(*args, **kwargs)
            forgotten = lambda a: isinstance(a, torch.Tensor) and (a.is_floating_point() or a.nbytes > LARGE)  # noqa: E731
            return tree_map(lambda a: a.to("meta") if forgotten(a) else a, out) if self.shapes and not down else out
        if not tensors:  # one that makes a tensor
            empty = func(*args, **kwargs | {"device": torch.device("meta")})
            return empty if empty.is_floating_point() else func(*args, **kwargs)
        if down:
            return torch.zeros_like(tensors[-1], device="cpu", dtype=kwargs.get("dtype"))
        if func.overloadpacket is aten._local_scalar_dense:
            return 0.0 if tensors[0].is_floating_point() else 0
        if func.overloadpacket in INDEXED:  # whose masks' sizes must be known
            places = [one for a in args[1] for one in (a.nonzero(as_tuple=True) if a is not None and a.dtype == torch.bool else (a,))]
            flat, spec = tree_flatten(((args[0], places, *args[2:]), kwargs))
        if func._schema.is_mutable and not tensors[0].is_meta:  # whole numbers that would come from floats stay as they are
            return tensors[0]
        args, kwargs = tree_unflatten([a.to("meta") if isinstance(a, torch.Tensor) else a for a in flat], spec)
        out = func(*args, **{k: torch.device("meta") if k == "device" else v for k, v in kwargs.items()})
        if func._schema.is_mutable or any(one.alias_info for one in func._schema.returns):
            return out
        known = lambda a: isinstance(a, torch.Tensor) and not a.is_floating_point() and a.nbytes <= LARGE  # noqa: E731
        return tree_map(lambda a: torch.zeros_like(a, device="cpu") if known(a) else a, out)  # what is computed from floats is 0

    def _hold(self, raw: torch.Tensor) -> torch.Tensor:
        """Count the bytes of a tensor for as long as anything uses them."""
        storage = raw.untyped_storage()
        if storage not in self.known:
            size = storage.nbytes()
            self.known[storage] = size
            self.held += size
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._free, size)
        return raw

    def _free(self, size: int) -> None:
        self.held -= size


class Autocast(plain_autocast):
    """Autocast of the GPU, as a CPU's: the list of operations is another, the dtype is the same."""

    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


class Idle:
    """A stream, an event: there is one order of things here."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def forget() -> None:
    """Let nobody remember what devices there were."""
    AcceleratorState._reset_state(reset_partial_state=True)
    is_torch_bf16_gpu_available.cache_clear()


@contextmanager
def pretend_gpu(shapes: bool = False):
    """One GPU, as far as torch, transformers, accelerate and TRL ask for it."""
    gpu = Device(shapes)

    @contextmanager
    def graph(one, *args, **kwargs):
        Graph.recording = one
        try:
            yield
        finally:
            Graph.recording = None

    memory = 140 * 10**9
    properties = SimpleNamespace(total_memory=memory, name="a GPU that is not there", major=9, minor=0, multi_processor_count=132)
    state = torch.zeros(16, dtype=torch.uint8)
    nothing = lambda *args, **kwargs: None  # noqa: E731
    stand_ins = {
        "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "_lazy_init": nothing, "init": nothing, "set_device": nothing, "synchronize": nothing, "empty_cache": nothing,
        "reset_peak_memory_stats": lambda *a: setattr(gpu, "peak", gpu.held),
        "max_memory_allocated": lambda *a: gpu.peak, "memory_allocated": lambda *a: gpu.held,
        "mem_get_info": lambda *a: (memory, memory), "get_device_name": lambda *a: properties.name,
        "get_device_properties": lambda *a: properties, "get_device_capability": lambda *a: (9, 0), "is_bf16_supported": lambda *a, **k: True,
        "manual_seed": nothing, "manual_seed_all": nothing, "get_rng_state": lambda *a: state, "get_rng_state_all": lambda: [state],
        "set_rng_state": nothing, "set_rng_state_all": nothing, "Stream": Idle, "Event": Idle, "current_stream": Idle,
        "stream": lambda *a: nullcontext(), "CUDAGraph": lambda *a, **k: Graph(gpu), "graph": graph, "_is_in_bad_fork": lambda: False,
        "device": lambda *a: nullcontext(), "is_current_stream_capturing": lambda: Graph.recording is not None,
    }  # fmt: skip
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    torch_s = {"autocast": Autocast, "is_autocast_enabled": lambda *a: enabled("cpu"), "get_autocast_dtype": lambda *a: dtype("cpu"), "tensor": tensor}
    lifts = torch._C._only_lift_cpu_tensors()
    with ExitStack() as stack:
        for owner, names in ((torch, torch_s), (torch.amp, {"autocast": Autocast}), (torch.cuda, stand_ins), (torch._C, {"_cuda_clearCublasWorkspaces": nothing}),
                             (torch.cuda.random, {name: stand_ins[name] for name in stand_ins if "rng" in name}),
                             (torch.Tensor, {"to": to, "cuda": lambda one, *a, **k: one.to(GPU)})):  # fmt: skip
            stack.enter_context(patch.multiple(owner, create=True, **names))
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") is made on the CPU, then moved
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        stack.callback(forget)
        forget()
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))  # its threads are of devices that are there
        yield stack.enter_context(gpu)
