"""Counts the costs of one training step, operation by operation: FLOPs, bytes saved for backward, peak memory.

A multiply-add is two FLOPs. Attention's backward pass is two products for each product of the forward pass, whatever
the kernel: a fused kernel's recomputation of the scores is not counted. The recomputation of gradient checkpointing is
counted. Elementwise operations count as 0 FLOPs.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count, shape_wrapper

AFTER_THE_MODEL = "loss"
ATTENTION = ("efficient_attention", "flash_attention", "cudnn_attention", "flash_attention_for_cpu")


def _attention_forward(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **options: Any
) -> int:
    return 2 * sdpa_flop_count(query, key, value)


FORMULAS: dict[Any, Callable[..., int]] = dict(flop_registry)
for _kernel in ATTENTION:
    FORMULAS[getattr(torch.ops.aten, f"_scaled_dot_product_{_kernel}")] = shape_wrapper(_attention_forward)
    FORMULAS[getattr(torch.ops.aten, f"_scaled_dot_product_{_kernel}_backward")] = shape_wrapper(_attention_backward)


class Flops(TorchDispatchMode):
    """Inside, counts FLOPs with torch's formulas under this file's conventions, for every fused attention kernel.

    It replaces FlopCounterMode, which takes as long as a third of a step on fake tensors, and whose hooks on modules
    keep what gradient checkpointing recomputes in cycles that are not collected: memory would be counted as if nothing
    were recomputed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = FORMULAS.get(getattr(func, "_overloadpacket", None))
        is_device = func is torch.ops.prim.device.default  # which cannot be decomposed
        # elsewhere than in inference mode autograd has decomposed the operation
        if formula is None and not is_device and torch.is_inference_mode_enabled():
            with self:
                if (result := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return result
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


class SavedBytes:
    """Inside, counts the bytes that a forward pass saves for the backward pass: each storage once, without the model's
    parameters and buffers.

    Works on real and on fake tensors. Tensors computed from weights, such as autocast's copies, are counted.
    """

    def __init__(self, model: nn.Module, part: Callable[[], str] = lambda: "all") -> None:
        self.by_part: Counter[str] = Counter()
        self._part = part
        own = [*model.parameters(), *model.buffers()]
        self._seen = {StorageWeakRef(tensor.untyped_storage()) for tensor in own}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @property
    def total(self) -> int:
        return sum(self.by_part.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in self._seen:
            self._seen.add(reference)
            self.by_part[self._part()] += storage.nbytes()
        return tensor

    def __enter__(self) -> "SavedBytes":
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)


class LiveBytes(TorchDispatchMode):
    """Inside, measures the most bytes that newly made tensors occupy at once, without the model's parameters and
    buffers. An operation may return a view of one: a Linear transposes its weight."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        held = (tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers()))
        self._known: weakref.WeakSet[Any] = weakref.WeakSet(held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._subtract, storage.nbytes())
        return result

    def _subtract(self, size: int) -> None:
        self.now -= size


def norm_as_on_cuda(model: nn.Module) -> None:
    """Makes the model's norms run in fp32 inside autocast on a CPU, as autocast's rules for CUDA do."""

    def widen(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (inputs[0].float(), *inputs[1:]) if torch.is_autocast_enabled("cpu") else None

    for module in model.modules():
        if type(module) in (nn.GroupNorm, nn.LayerNorm):  # urepa.models.speed_switches's subclasses switch autocast off
            module.register_forward_pre_hook(widen)


class ActivePart:
    """Tracks which part of a model computes, forward and backward: that of the leaf module that was entered last.

    Autograd runs a graph in the reverse of the order in which it was made. So a gradient that arrives at a leaf's
    output shows that the backward pass enters the leaf's part.
    """

    def __init__(self, model: nn.Module, part_of: Callable[[str], str], switched: Callable[[], None]) -> None:
        self.part = AFTER_THE_MODEL
        self._model, self._part_of, self._switched = model, part_of, switched
        self._handles: list[Any] = []

    def _switch(self, part: str) -> None:
        self._switched()
        self.part = part

    def __enter__(self) -> "ActivePart":
        for name, module in self._model.named_modules():
            if not list(module.children()):
                self._handles += self._watch(module, self._part_of(name))
        after = self._model.register_forward_hook(lambda *_: self._switch(AFTER_THE_MODEL))
        self._handles.append(after)
        return self

    def _watch(self, leaf: nn.Module, part: str) -> list[Any]:
        def on_enter(module: nn.Module, inputs: Any) -> None:
            self._switch(part)

        def on_exit(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda grad: self._switch(part))

        return [leaf.register_forward_pre_hook(on_enter), leaf.register_forward_hook(on_exit)]

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()


@dataclass(frozen=True)
class StepCount:
    """One forward and backward pass of a batch. FLOPs and bytes are by part. `peak`: the most bytes that tensors made
    during the step, including gradients, occupy at once."""

    forward: dict[str, int]
    backward: dict[str, int]
    saved: dict[str, int]
    peak: int


def count_step(model: nn.Module, part_of: Callable[[str], str], step: Callable[[], Tensor]) -> StepCount:
    """Counts `step`, which returns the loss of a forward pass through `model`, and the loss's backward pass.

    `part_of` names the part of a module or parameter by its dotted name.
    """
    flops: dict[str, Counter[str]] = {"forward": Counter(), "backward": Counter()}
    counter, direction, seen = Flops(), "forward", 0

    def note() -> None:
        nonlocal seen
        flops[direction][at_work.part] += counter.total - seen
        seen = counter.total

    live = LiveBytes(model)
    with counter, live, ActivePart(model, part_of, note) as at_work:
        with SavedBytes(model, lambda: at_work.part) as saved:
            loss = step()
        note()
        direction = "backward"
        loss.backward()
        note()
    return StepCount(dict(+flops["forward"]), dict(+flops["backward"]), dict(saved.by_part), live.peak)


def on_fake_cpu(model: nn.Module) -> FakeTensorMode:
    """Moves a model from the meta device to a fake CPU. Inside the returned mode it uses a CPU's kernels and autocast;
    its tensors have shapes without values and need no memory. All other tensors made inside are fake, too."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    made: dict[int, Tensor] = {}
    with mode:
        for name, tensor in tensors:
            if id(tensor) not in made:
                copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
                is_parameter = isinstance(tensor, nn.Parameter)
                made[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if is_parameter else copy
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, made[id(tensor)])
    return mode
